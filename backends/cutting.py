"""Where a graph is cut: cached regions and shared blocks become parts of their own, the rest what lies between them.

Parts may hold parts. Whatever the dataflow, an order is found in which they can run one after another, or a region is
left out with the reason.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.fx import Node

from ..passes.cached_regions import region_nodes
from ..passes.plan import CachedRegion, Cut
from ..passes.report import RewriteRecord
from ..patterns.effects import Effects
from ..patterns.graph import NormalGraph
from ..patterns.nodes import mutates
from .cut_order import is_switch, kept_in_order, seen_twice, switched_spans

Wanted = CachedRegion | Cut


@dataclass(eq=False)
class Part:
    """Nodes that run together: as one graph, or, when it holds ``parts``, as these one after another.

    ``inputs`` and ``outputs`` are nodes of the graph that was cut. ``region`` is what the part was made for, if the
    host decides whether it runs. ``rest`` is a part that was not asked for: what lies between others.
    """

    nodes: list[Node]
    inputs: list[Node] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)
    region: CachedRegion | None = None
    parts: list[Part] = field(default_factory=list)
    rest: bool = False

    def leaves(self) -> Iterable[Part]:
        """The parts that are compiled, in order."""
        pending = [self]
        while pending:
            part = pending.pop()
            if part.parts:
                pending.extend(reversed(part.parts))
            else:
                yield part


@dataclass(eq=False)
class Cutting:
    """The parts of a graph in an order in which they can run, and the regions that could not be cut out.

    ``records`` are the lines of the cached regions in the report; with ``share`` equal parts are compiled once.
    """

    parts: list[Part]
    refused: list[tuple[Wanted, str]]
    cuts: list[Cut] = field(default_factory=list)
    records: dict[CachedRegion, RewriteRecord] = field(default_factory=dict)
    share: bool = False

    @property
    def whole(self) -> bool:
        """Whether nothing was cut after all."""
        return all(part.region is None and not part.parts for part in self.parts) and len(self.parts) == 1

    def regions(self) -> list[CachedRegion]:
        """The cached regions that became parts, outer ones before what they hold."""
        pending, found = list(reversed(self.parts)), []
        while pending:
            part = pending.pop()
            found += [part.region] if part.region is not None else []
            pending.extend(reversed(part.parts))
        return found


@dataclass(eq=False)
class _Child:
    """A wanted part with its nodes and the wanted parts inside it."""

    wanted: Wanted
    nodes: frozenset[Node]
    children: list[_Child] = field(default_factory=list)


def cut(graph: NormalGraph, regions: Sequence[CachedRegion], cuts: Sequence[Cut] = ()) -> Cutting:
    """Cut ``graph`` at its cached regions and at ``cuts``, which give way to regions they overlap in part or hold.

    Every other node goes into the earliest part that may hold it. Constants are copied into each part that reads them
    and belong to none. In-place writes, what reads the written memory, and random numbers keep their order.
    """
    refused: list[tuple[Wanted, str]] = []
    wanted: list[tuple[Wanted, frozenset[Node]]] = []
    spans = switched_spans(graph)
    candidates: list[tuple[Wanted, set[Node]]] = [(region, region_nodes(graph, region)) for region in regions]
    candidates += [(item, {node for node in item.nodes if node.op == "call_function"}) for item in cuts]
    for candidate, found in candidates:
        _take_items_along(found)
        torn = _torn(found, spans)
        if torn or not found:
            refused.append((candidate, torn or "nothing in it could be skipped"))
        else:
            wanted.append((candidate, frozenset(found)))
    effects = Effects(graph.module.graph)
    facts = _Facts(
        graph, kept_in_order(graph, effects), {node: span for span in spans for node in span}, _held(graph, regions)
    )
    everything = [node for node in graph.module.graph.nodes if node.op == "call_function"]
    while True:
        children, misfits = _nested(wanted)
        if not misfits:
            try:
                leaves = _leaves(children)
                kept = [item for item, nodes in wanted if isinstance(item, Cut) and nodes in leaves]
                parts = _parts(facts, everything, children)
                hidden = _hidden(parts, effects)
                if hidden is None or not wanted:
                    return Cutting(parts, refused, kept)
                text = f"{hidden.name} shows memory that is written on one side of a border and read on the other"
                misfits = [(item, text) for item, _ in wanted]
            except _Misfit as misfit:
                misfits = [(misfit.wanted, misfit.text)]
        refused += misfits
        gone = {id(item) for item, _ in misfits}
        wanted = [row for row in wanted if id(row[0]) not in gone]


def _hidden(parts: Sequence[Part], effects: Effects) -> Node | None:
    """An input of a compiled part that shows memory which the part writes through another one."""
    leaves = itertools.chain.from_iterable(part.leaves() for part in parts)
    return next((node for leaf in leaves if (node := seen_twice(leaf.nodes, leaf.inputs, effects)) is not None), None)


def _leaves(children: Sequence[_Child]) -> set[frozenset[Node]]:
    """The nodes of each wanted part that holds no other."""
    pending, found = list(children), set()
    while pending:
        child = pending.pop()
        pending += child.children
        if not child.children:
            found.add(child.nodes)
    return found


@dataclass(eq=False)
class _Facts:
    """What is known of the whole graph while it is cut: extra order, spans to keep whole, values the host looks at."""

    graph: NormalGraph
    before: Mapping[Node, Sequence[Node]]
    span: Mapping[Node, Sequence[Node]]
    held: set[Node]

    def reads(self, node: Node) -> Iterable[Node]:
        return (*node.all_input_nodes, *self.before.get(node, ()))


def _take_items_along(nodes: set[Node]) -> None:
    """What goes from one part to the next are tensors: an item stays with the tuple it is taken from."""
    for node in list(nodes):
        if node.target is operator.getitem and node.args[0] not in nodes:
            nodes.discard(node)
        elif isinstance(node.meta.get("val"), list | tuple):
            nodes.update(user for user in node.users if user.target is operator.getitem)


def _torn(nodes: set[Node], spans: Sequence[Sequence[Node]]) -> str | None:
    """Take the switches of spans that lie in ``nodes`` into it; say so when a border runs through a span."""
    for span in spans:
        computed = [node for node in span if not is_switch(node)]
        inside = [node in nodes for node in computed]
        if any(inside) and not all(inside):
            return "it begins or ends inside a no_grad or autocast region"
        if any(inside):
            nodes.update(span)
    return None


class _Misfit(Exception):
    def __init__(self, wanted: Wanted, text: str) -> None:
        super().__init__(text)
        self.wanted = wanted
        self.text = text


def _nested(wanted: Sequence[tuple[Wanted, frozenset[Node]]]) -> tuple[list[_Child], list[tuple[Wanted, str]]]:
    """The wanted parts as a forest: of any two, one lies in the other or they share nothing."""
    regions = [(item, nodes) for item, nodes in wanted if isinstance(item, CachedRegion)]
    for region, nodes in regions:
        for other, inside in regions:
            lost = [node for node in region.entries if node in inside and node not in other.exits]
            if lost and not nodes <= inside:
                return [], [(region, f"its entry {lost[0].name} is computed inside another region")]
    top: list[_Child] = []
    owner: dict[Node, _Child] = {}
    misfits: list[tuple[Wanted, str]] = []
    # Larger ones first; of equal ones the cached region is the outer.
    for item, nodes in sorted(wanted, key=lambda row: (-len(row[1]), isinstance(row[0], Cut))):
        owners = {id(known): known for known in (owner.get(node) for node in nodes)}
        parent = next(iter(owners.values()))
        if len(owners) > 1:
            clash = next(known for known in owners.values() if known is not None)
            if isinstance(item, CachedRegion) and isinstance(clash.wanted, Cut):
                # The region goes first: without the larger cut it may fit.
                return [], [(clash.wanted, "a cached region begins or ends inside it")]
            misfits.append((item, "it overlaps another region in part"))
            continue
        if parent is not None and parent.nodes == nodes:
            if isinstance(item, CachedRegion):
                misfits.append((item, "another region has the same values"))
            continue
        child = _Child(item, nodes)
        (top if parent is None else parent.children).append(child)
        owner.update(dict.fromkeys(nodes, child))
    return top, misfits


def _parts(facts: _Facts, nodes: Sequence[Node], children: Sequence[_Child]) -> list[Part]:
    """``nodes`` as parts in running order, each of ``children`` one of them."""
    home = {node: child for child in children for node in child.nodes}
    ordered = _ordered(facts, nodes, children, home)
    number = {id(child): 2 * index + 1 for index, child in enumerate(ordered)}
    place: dict[Node, int] = {}
    for node in nodes:
        if node in place:
            continue
        child = home.get(node)
        together = facts.span.get(node, (node,)) if child is None else (node,)
        earliest = max((place.get(read, 0) for item in together for read in facts.reads(item)), default=0)
        # After a child's part (odd) comes the plain part behind it.
        where = earliest + earliest % 2 if child is None else number[id(child)]
        place.update(dict.fromkeys(together, where))
    grouped: dict[int, list[Node]] = {}
    for node in nodes:
        grouped.setdefault(place[node], []).append(node)
    parts: list[Part] = []
    for index in sorted(grouped):
        part = Part(grouped[index], rest=index % 2 == 0)
        if index % 2:
            child = ordered[index // 2]
            part.region = child.wanted if isinstance(child.wanted, CachedRegion) else None
            part.parts = _parts(facts, part.nodes, child.children) if child.children else []
            if part.region is None and part.parts:
                # Regions inside it make the borders: the end of one block and the beginning of the next run as one.
                for inner in part.parts:
                    _append(facts, parts, inner)
                continue
        _append(facts, parts, part)
    return parts


def _append(facts: _Facts, parts: list[Part], part: Part) -> None:
    """Add a part with its borders, to the last one where both are rest."""
    if parts and parts[-1].rest and part.rest:
        part = Part([*parts.pop().nodes, *part.nodes], rest=True)
    _borders(facts, part)
    if part.outputs or any(map(mutates, part.nodes)):
        parts.append(part)


def _ordered(
    facts: _Facts, nodes: Sequence[Node], children: Sequence[_Child], home: Mapping[Node, _Child]
) -> list[_Child]:
    """The children in an order in which each finds what it reads; raises _Misfit for one that has no such place."""
    bit = {id(child): 1 << index for index, child in enumerate(children)}
    reached: dict[Node, int] = {}
    needs = dict.fromkeys(bit, 0)
    first: dict[int, int] = {}
    for index, node in enumerate(nodes):
        child = home.get(node)
        together = facts.span.get(node, (node,)) if child is None else (node,)
        bits = 0
        for read in (read for item in together for read in facts.reads(item)):
            if read in reached:
                other = home.get(read)
                bits |= reached[read] | (bit[id(other)] if other is not None and other is not child else 0)
        reached[node] = bits
        if child is not None:
            if bits & bit[id(child)]:
                raise _Misfit(child.wanted, f"{node.name} in it needs a result that is computed after it")
            needs[id(child)] |= bits
            first.setdefault(id(child), index)
    ordered: list[_Child] = []
    waiting = sorted(children, key=lambda child: first[id(child)])
    done = 0
    while waiting:
        ready = next((child for child in waiting if not needs[id(child)] & ~done), None)
        if ready is None:
            raise _Misfit(waiting[-1].wanted, "two regions need each other's results")
        waiting.remove(ready)
        ordered.append(ready)
        done |= bit[id(ready)]
    return ordered


def _held(graph: NormalGraph, regions: Sequence[CachedRegion]) -> set[Node]:
    """Values the host looks at: results of the graph, entries and exits of regions."""
    results = set(graph.output.all_input_nodes)
    return results.union(*[(*region.entries, *region.exits) for region in regions])


def _borders(facts: _Facts, part: Part) -> None:
    """Set a part's inputs, in the order they are first read, and its outputs."""
    own = set(part.nodes)
    reads = dict.fromkeys(read for node in part.nodes for read in node.all_input_nodes if read not in own)
    inputs = [node for node in reads if node.op != "get_attr"]
    # Sizes that nothing reads but shapes mention come first: AOTAutograd needs each of them bound by an input.
    part.inputs = [*_symbol_inputs(facts.graph, [*inputs, *part.nodes], reads), *inputs]
    part.outputs = [node for node in part.nodes if node in facts.held or any(user not in own for user in node.users)]


def _symbol_inputs(graph: NormalGraph, nodes: Iterable[Node], reads: Mapping[Node, None]) -> list[Node]:
    symbols = {symbol for node in nodes for symbol in _symbols(node.meta.get("val"))}
    if not symbols:
        return []
    return [
        node
        for node in graph.placeholders
        if isinstance(value := node.meta.get("val"), torch.SymInt) and node not in reads and _symbols(value) & symbols
    ]


def _symbols(value: object) -> set[object]:
    from torch.fx.experimental.symbolic_shapes import free_symbols

    try:
        return set(free_symbols(value)) if isinstance(value, torch.Tensor | torch.SymInt) else set()
    except AttributeError:
        return set()
