"""Cut a graph at its cached regions and run the compiled pieces from the host.

A region becomes a piece of its own; what lies before, between and after regions becomes pieces too. Every piece is an
ordinary graph with a tuple output, compiled like a whole one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..passes.base import FACTORIES, Pass
from ..passes.plan import CachedRegion
from ..passes.report import GraphReport, RewriteRecord
from ..passes.reuse import CachePolicy
from ..patterns.graph import NormalGraph
from ..patterns.reasons import Reason
from .controller import Controller

CompilePiece = Callable[[GraphModule, Sequence[Any]], Callable[..., Any]]


@dataclass(eq=False)
class Piece:
    """Nodes that run together. ``inputs`` and ``outputs`` are nodes of the graph that was cut."""

    nodes: list[Node] = field(default_factory=list)
    inputs: list[Node] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)
    region: CachedRegion | None = None


def compile_pieces(
    graph: NormalGraph,
    inputs: Sequence[Any],
    regions: Sequence[CachedRegion],
    compile_piece: CompilePiece,
    report: GraphReport,
    error_budget: float | None = None,
) -> Callable[..., Any]:
    """The callable of a graph whose ``regions`` are decided on the host; it returns the graph's outputs as a tuple.

    ``inputs`` are the example inputs by position; nothing of them is kept. Regions that cannot be run one after another
    are given up together, with a line in the report. Raises what ``compile_piece`` raises.
    """
    try:
        pieces = cut(graph, regions)
    except ValueError as error:
        report.refuse(Reason("rolled-back", f"the graph cannot be cut at its cached regions: {error}"))
        return compile_piece(graph.module, inputs)
    values: dict[Node, Any] = dict(zip(graph.placeholders, inputs, strict=True))
    slots: dict[Node, int] = {node: index for index, node in enumerate(graph.placeholders)}
    position = dict(slots)
    stages: list[Stage] = []
    for piece in pieces:
        # Inductor keeps the strides of a graph's outputs, so the next piece meets the values as they were traced.
        examples = [values.get(node, node.meta["val"]) for node in piece.inputs]
        compiled = compile_piece(extract(graph, piece), examples)
        for node in piece.outputs:
            slots.setdefault(node, len(slots))
        controller = None
        if piece.region is not None:
            number = sum(stage.controller is not None for stage in stages)
            controller = _controller(graph, piece.region, number, position, report, error_budget)
        stages.append(
            Stage(
                compiled,
                tuple(slots[node] for node in piece.inputs),
                tuple(slots[node] for node in piece.outputs),
                controller,
                tuple(slots[node] for node in piece.region.entries) if piece.region is not None else (),
            )
        )
    template = [slots[value] if isinstance(value, Node) else Constant(value) for value in _results(graph)]
    return Runner(stages, len(slots), template)


@dataclass(frozen=True)
class Constant:
    """An output of the graph that is no computed value."""

    value: Any


@dataclass(eq=False)
class Stage:
    """A compiled piece with the slots it reads and writes."""

    compiled: Callable[..., Any]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    controller: Controller | None
    entries: tuple[int, ...]

    def run(self, slots: Sequence[Any]) -> Sequence[Any]:
        """The piece's outputs."""
        return self.compiled(*[slots[slot] for slot in self.reads])


class Runner:
    """Runs the stages in order over a list of slots; the first slots are the graph's inputs."""

    def __init__(self, stages: Sequence[Stage], size: int, template: Sequence[int | Constant]) -> None:
        self.stages = list(stages)
        self.size = size
        self.template = list(template)
        last_use = {slot: index for index, stage in enumerate(stages) for slot in (*stage.reads, *stage.entries)}
        kept = {item for item in self.template if isinstance(item, int)}
        # A value's memory is given back after its last reader, as inside one compiled graph.
        self.free_after: list[list[int]] = [[] for _ in self.stages]
        for slot, index in last_use.items():
            if slot not in kept:
                self.free_after[index].append(slot)

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        slots: list[Any] = [*args, *[None] * (self.size - len(args))]
        for stage, done in zip(self.stages, self.free_after, strict=True):
            if stage.controller is None:
                results = stage.run(slots)
            else:
                results = stage.controller(
                    args, [slots[slot] for slot in stage.entries], functools.partial(stage.run, slots)
                )
            for slot, value in zip(stage.writes, results, strict=True):
                slots[slot] = value
            for slot in done:
                slots[slot] = None
        return tuple(item.value if isinstance(item, Constant) else slots[item] for item in self.template)


def cut(graph: NormalGraph, regions: Sequence[CachedRegion]) -> list[Piece]:
    """The pieces of a graph, in an order in which they can run.

    Every node goes into the earliest piece that may hold it: a region's own piece, or the piece after the latest region
    it depends on. Constants are copied into each piece that reads them and belong to none.
    """
    owner: dict[Node, int] = {}
    for index, region in enumerate(regions):
        for node in region_nodes(graph, region):
            if node in owner:
                raise ValueError(f"two cached regions both compute {node.name}")
            owner[node] = 2 * index + 1
    place: dict[Node, int] = {}
    for node in graph.module.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        earliest = max((place.get(operand, 0) for operand in node.all_input_nodes), default=0)
        wanted = owner.get(node)
        if wanted is None:
            # After a region's piece (odd) comes the plain piece behind it.
            place[node] = earliest + earliest % 2
        elif earliest > wanted:
            raise ValueError(f"{node.name} of a cached region needs a result that is computed after the region")
        else:
            place[node] = wanted
    pieces = {
        number: Piece(region=regions[number // 2] if number % 2 else None) for number in sorted({*place.values()})
    }
    for node, number in place.items():
        pieces[number].nodes.append(node)
    results = {value for value in _results(graph) if isinstance(value, Node)}
    for number, piece in pieces.items():
        own = set(piece.nodes)
        reads = {operand for node in piece.nodes for operand in node.all_input_nodes if operand not in own}
        reads |= _symbol_inputs(graph, piece, reads)
        piece.inputs = [node for node in graph.module.graph.nodes if node in reads and node.op != "get_attr"]
        if piece.region is not None:
            piece.outputs = list(piece.region.exits)
            escaping = [
                node for node in piece.nodes if node not in piece.outputs and _leaves(node, place, number, results)
            ]
            if escaping:
                raise ValueError(f"{escaping[0].name} is read outside its cached region but is no exit of it")
        else:
            piece.outputs = [node for node in piece.nodes if _leaves(node, place, number, results)]
    return [piece for piece in pieces.values() if piece.outputs]


def region_nodes(graph: NormalGraph, region: CachedRegion) -> set[Node]:
    """What need not run when the region is reused: everything before its exits that nothing outside reads."""
    stop = set(region.entries)
    exits = set(region.exits)
    inside: set[Node] = set()
    for node in reversed(graph.module.graph.nodes):
        if node.op in ("placeholder", "get_attr", "output") or node in stop:
            continue
        if node in exits or (node.users and all(user in inside for user in node.users)):
            inside.add(node)
    return inside


def extract(graph: NormalGraph, piece: Piece) -> GraphModule:
    """The piece as a graph module of its own, with the facts AOTAutograd and Inductor read from Dynamo's graphs."""
    new = Graph()
    copies: dict[Node, Node] = {}
    for node in piece.inputs:
        copy = copies[node] = new.placeholder(node.name)
        copy.meta = dict(node.meta)
        copy._dynamo_source = getattr(node, "_dynamo_source", None)
    for node in piece.nodes:
        for operand in node.all_input_nodes:
            if operand.op == "get_attr" and operand not in copies:
                copies[operand] = new.node_copy(operand)
                copies[operand].meta = dict(operand.meta)
        copies[node] = new.node_copy(node, copies.__getitem__)
        copies[node].meta = dict(node.meta)
    new.output(tuple(copies[node] for node in piece.outputs))
    module = GraphModule(graph.module, new)
    module.meta.update(graph.module.meta)
    if hasattr(graph.module, "_param_name_to_source"):
        held = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
        known: Any = graph.module._param_name_to_source
        sources: Any = {name: source for name, source in known.items() if name in held}
        module._param_name_to_source = sources
    return module


def _leaves(node: Node, place: dict[Node, int], number: int, results: set[Node]) -> bool:
    return node in results or any(place.get(user, number) != number for user in node.users)


def _symbol_inputs(graph: NormalGraph, piece: Piece, reads: set[Node]) -> set[Node]:
    """Symbolic integers a piece mentions in its shapes: AOTAutograd needs each of them bound by an input."""
    symbols = {symbol for node in piece.nodes for symbol in _symbols(node.meta.get("val"))}
    if not symbols:
        return set()
    return {
        node
        for node in graph.placeholders
        if isinstance(value := node.meta.get("val"), torch.SymInt) and node not in reads and _symbols(value) & symbols
    }


def _symbols(value: Any) -> set[Any]:
    from torch.fx.experimental.symbolic_shapes import free_symbols

    try:
        return set(free_symbols(value)) if isinstance(value, torch.Tensor | torch.SymInt) else set()
    except AttributeError:
        return set()


def _results(graph: NormalGraph) -> Sequence[Any]:
    results = graph.output.args[0]
    if not isinstance(results, list | tuple):
        raise ValueError("the graph does not return a flat tuple")
    return results


def _controller(
    graph: NormalGraph,
    region: CachedRegion,
    number: int,
    position: dict[Node, int],
    report: GraphReport,
    error_budget: float | None,
) -> Controller:
    policy = region.policy
    assert isinstance(policy, CachePolicy)
    record = RewriteRecord(
        _spelled(policy),
        region.site.id if region.site is not None else "",
        "applied",
        "exact" if policy.identity else policy.fidelity.value,
        "reuse across steps",
        provider="host",
    )
    report.rewrites.append(record)
    prepared = {node for _, nodes in graph.facts.get("prepared", ()) for node in nodes}
    statics = [position[node] for node in graph.placeholders if graph.is_static(node)]
    moving = [
        position[node]
        for node in graph.placeholders
        if not graph.is_static(node) and node not in prepared and isinstance(node.meta.get("val"), torch.Tensor)
    ]
    return Controller(policy, number, statics, moving, report, record, error_budget)


def _spelled(policy: CachePolicy) -> str:
    """The call that makes the policy, as the report spells a pass."""
    for name, factory in FACTORIES.items():
        for key, kind in factory.policies.items():
            if type(policy) is kind:
                return repr(Pass(name, key, policy))
    return repr(policy)
