"""Compile the parts of a cut graph and run them from the host.

Every part is an ordinary graph with a tuple output, compiled like a whole one; parts that compute the same from other
values are compiled once and called for each. What a cached region computes may be skipped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..passes.preconditions import differentiated
from ..passes.report import GraphReport
from ..patterns.graph import NormalGraph
from .controller import Controller, Desk, Turn, control
from .cutting import Cutting, Part
from .distinct import key_of

CompilePiece = Callable[[GraphModule, Sequence[Any]], Callable[..., Any]]


def compile_pieces(
    graph: NormalGraph,
    inputs: Sequence[Any],
    cutting: Cutting,
    compile_piece: CompilePiece,
    report: GraphReport,
    error_budget: float | None = None,
) -> Callable[..., Any]:
    """The callable of a cut graph, whose cached regions the host decides on; it returns the outputs as a tuple.

    ``inputs`` are the example inputs by position; nothing of them is kept. Raises what ``compile_piece`` raises.
    """
    slots: dict[Node, int] = {node: index for index, node in enumerate(graph.placeholders)}
    values = dict(zip(graph.placeholders, inputs, strict=True))
    desk = Desk.of(graph, report)
    builder = _Builder(graph, values, slots, desk, cutting, error_budget)
    stages = builder.stages(cutting.parts)
    # The largest first: its kernels are compiled to machine code while the others are lowered.
    for piece in sorted(builder.pieces, key=lambda piece: -len(piece.part.nodes)):
        compiled = compile_piece(extract(graph, piece.part), piece.examples)
        for stage in piece.stages:
            stage.compiled = compiled
    report.pieces = (builder.count, len(builder.pieces))
    template = [slots[value] if isinstance(value, Node) else Constant(value) for value in _results(graph)]
    return Runner(stages, len(slots), template, desk)


@dataclass(eq=False)
class _Piece:
    """A part to be compiled, the values it is compiled with, and every stage that will call it."""

    part: Part
    examples: list[Any]
    stages: list[Stage] = field(default_factory=list)


@dataclass(eq=False)
class _Builder:
    """Finds the pieces to compile and gives every value that crosses a border a slot."""

    graph: NormalGraph
    values: dict[Node, Any]
    slots: dict[Node, int]
    desk: Desk
    cutting: Cutting
    error_budget: float | None
    count: int = 0
    pieces: list[_Piece] = field(default_factory=list)
    known: dict[Any, _Piece] = field(default_factory=dict)

    def stages(self, parts: Sequence[Part]) -> list[Stage]:
        """The stages of ``parts``, those inside first."""
        made = []
        for part in parts:
            piece = None if part.parts else self._piece(part)
            stage = Stage(None, self._numbers(part.inputs), self._numbers(part.outputs), self.stages(part.parts))
            if piece is not None:
                piece.stages.append(stage)
            if part.region is not None:
                stage.controller = control(self.desk, part.region, self.cutting.records[part.region], self.error_budget)
                stage.entries = self._numbers(part.region.entries)
                stage.writes = self._numbers(part.region.exits)
            made.append(stage)
        return made

    def _numbers(self, nodes: Sequence[Node]) -> tuple[int, ...]:
        return tuple(self.slots.setdefault(node, len(self.slots)) for node in nodes)

    def _piece(self, part: Part) -> _Piece:
        """What is compiled for a part: the piece of an equal one, if there was one."""
        self.count += 1
        if part.region is not None:
            # The host wants the exits, in the region's order.
            part.outputs = list(part.region.exits)
        examples = [self._example(node) for node in part.inputs]
        key = key_of(self.graph, part, examples) if self.cutting.share else None
        known = self.known.get(key) if key is not None else None
        if known is None:
            known = _Piece(part, examples)
            self.pieces.append(known)
            if key is not None:
                self.known[key] = known
        return known

    def _example(self, node: Node) -> Any:
        """What a piece is compiled with: the graph's own inputs, and computed values as they were traced.

        Inductor keeps the strides of a graph's outputs, so the next piece meets them so. The retrace detached them:
        whether they carry a gradient is said by the dataflow.
        """
        if node in self.values:
            return self.values[node]
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor) or node not in differentiated(self.graph):
            return value
        if not value.dtype.is_floating_point and not value.dtype.is_complex:
            return value
        with self.graph.fake_mode:
            return value.detach().requires_grad_(True)


@dataclass(frozen=True)
class Constant:
    """An output of the graph that is no computed value."""

    value: Any


@dataclass(eq=False)
class Stage:
    """A compiled piece, or stages run one after another, with the slots it reads and writes.

    ``controller`` decides whether it runs at all, seeing the values in ``entries``; ``done`` are the slots nothing
    reads afterwards.
    """

    compiled: Callable[..., Any] | None
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    inner: list[Stage]
    controller: Controller | None = None
    entries: tuple[int, ...] = ()
    done: tuple[int, ...] = ()

    def run(self, slots: list[Any], turn: Turn | None) -> Sequence[Any]:
        """Compute the values of ``writes``."""
        if self.compiled is not None:
            results: Sequence[Any] = self.compiled(*[slots[slot] for slot in self.reads])
            return results
        _run(self.inner, slots, turn)
        return [slots[slot] for slot in self.writes]


def _run(stages: Sequence[Stage], slots: list[Any], turn: Turn | None) -> None:
    for stage in stages:
        if turn is None or stage.controller is None:
            results = stage.run(slots, turn)
        else:
            entries = [slots[slot] for slot in stage.entries]
            results = stage.controller(turn, entries, functools.partial(stage.run, slots, turn))
        for slot, value in zip(stage.writes, results, strict=True):
            slots[slot] = value
        for slot in stage.done:
            slots[slot] = None


class Runner:
    """Runs the stages in order over a list of slots; the first slots are the graph's inputs."""

    def __init__(
        self,
        stages: Sequence[Stage],
        size: int,
        template: Sequence[int | Constant],
        desk: Desk,
    ) -> None:
        self.stages = list(stages)
        self.size = size
        self.template = list(template)
        self.desk = desk if desk.controllers else None
        _free(self.stages, {item for item in self.template if isinstance(item, int)})

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        slots: list[Any] = [*args, *[None] * (self.size - len(args))]
        if self.desk is None:
            _run(self.stages, slots, None)
        else:
            with self.desk.turn(args) as turn:
                _run(self.stages, slots, turn)
        return tuple(item.value if isinstance(item, Constant) else slots[item] for item in self.template)


def _free(stages: Sequence[Stage], kept: set[int]) -> set[int]:
    """Set where each slot is done with: memory is given back after the last reader, as in one compiled graph.

    ``kept`` are slots that are read after these stages. Returns every slot the stages touch.
    """
    touched: set[int] = set()
    later = set(kept)
    for stage in reversed(stages):
        own = {*stage.reads, *stage.entries, *stage.writes}
        # Inside, the values the stage hands on and its exits must survive.
        own |= _free(stage.inner, later | set(stage.writes) | set(stage.entries)) if stage.inner else set()
        stage.done = tuple(sorted(own - later))
        later |= own
        touched |= own
    return touched


def extract(graph: NormalGraph, part: Part) -> GraphModule:
    """The part as a graph module of its own, with the facts AOTAutograd and Inductor read from Dynamo's graphs."""
    new = Graph()
    copies: dict[Node, Node] = {}
    for node in part.inputs:
        copy = copies[node] = new.placeholder(node.name)
        copy.meta = dict(node.meta)
        copy._dynamo_source = getattr(node, "_dynamo_source", None)
    for node in part.nodes:
        for operand in node.all_input_nodes:
            if operand.op == "get_attr" and operand not in copies:
                copies[operand] = new.node_copy(operand)
                copies[operand].meta = dict(operand.meta)
        copies[node] = new.node_copy(node, copies.__getitem__)
        copies[node].meta = dict(node.meta)
    new.output(tuple(copies[node] for node in part.outputs))
    module = GraphModule(graph.module, new)
    module.meta.update(graph.module.meta)
    if hasattr(graph.module, "_param_name_to_source"):
        held = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
        known: Any = graph.module._param_name_to_source
        sources: Any = {name: source for name, source in known.items() if name in held}
        module._param_name_to_source = sources
    return module


def _results(graph: NormalGraph) -> Sequence[Any]:
    results = graph.output.args[0]
    if not isinstance(results, list | tuple):
        raise ValueError("the graph does not return a flat tuple")
    return results
