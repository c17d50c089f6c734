"""Repeated blocks of the residual stream, found by data flow alone.

Every path from an input to the result passes its post-dominators: in a residual network these are the values of the
stream. Consecutive ones delimit segments; a run of segments whose structures repeat is a stack of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx
import sympy
from torch import Tensor
from torch.fx import Node

from .describe import fingerprint, module_of, outside_inputs, source_of
from .graph import NormalGraph
from .sites import Block, Site, Sites

# Layers that alternate kinds (local and global attention, dense and mixture) repeat with longer periods than two.
_LONGEST_PERIOD = 24


@dataclass(eq=False)
class _Segment:
    """What is computed between two neighbouring values of a stream."""

    entry: Node
    exit: Node
    interior: frozenset[Node]
    structure: str


def find_blocks(graph: NormalGraph, sites: Sites) -> list[Site]:
    """Stacks of at least two equal blocks, on each stream the graph has; blocks of different stacks never overlap.

    A block has one entry and one exit of one shape and holds at least one weighted layer or attention. Values that
    several blocks share (rotary tables, a conditioning vector, masks) are inputs of each. Networks whose streams join
    and part (dual streams) yield the stacks of their single-stream parts. Linear time; no guard on a symbolic size.
    """
    layers = {node: site for site in sites if site.kind in ("attention", "linear", "conv") for node in site.outputs}
    chains = _chains(graph)
    found: list[Site] = []
    claimed: set[Node] = set()
    runs = []
    for chain in chains:
        segments = _segments(graph, chain)
        runs += [segments[start : start + period * times] for start, period, times in repeats(segments)]
    # The longest run first: a chain from a conditioning input sees only the tail of what the activations see whole.
    lengths = {id(run): sum(len(segment.interior) for segment in run) for run in runs}
    for run in sorted(runs, key=lambda run: -lengths[id(run)]):
        period = _period(run)
        blocks = [run[start : start + period] for start in range(0, len(run), period)]
        interiors = [frozenset().union(*(segment.interior for segment in block)) for block in blocks]
        whole = frozenset().union(*interiors)
        if whole & claimed or not all(interior & layers.keys() for interior in interiors):
            continue
        if not all(_same_shape(block[0].entry, block[-1].exit) for block in blocks):
            continue
        claimed |= whole
        stack = len({site.stack for site in found if isinstance(site, Block)})
        for index, (block, interior) in enumerate(zip(blocks, interiors, strict=True)):
            members = tuple(site.id for node, site in layers.items() if node in interior)
            found.append(_block(block, interior, stack, index, members, len(found), sites))
    return found


def _chains(graph: NormalGraph) -> list[list[Node]]:
    """For each input that is no parameter, the values every path from it to the result passes, in order."""
    flow = networkx.DiGraph()
    end = graph.output
    for node in graph.module.graph.nodes:
        for operand in node.all_input_nodes:
            # Sizes connect everything with everything and carry no activation; tuples of tensors do.
            if isinstance(operand.meta.get("val"), Tensor | tuple | list):
                flow.add_edge(node, operand)
    if end not in flow:
        return []
    dominators = networkx.immediate_dominators(flow, end)
    chains = []
    seen: set[Node] = set()
    for node in graph.placeholders:
        if node not in dominators or graph.is_static(node):
            continue
        chain = []
        here = dominators[node]
        while here is not None and here is not end and here not in seen:
            chain.append(here)
            here = dominators[here]
        # Where another input's chain joins one already walked, its last stretch is the same.
        if here is not None and here is not end:
            chain.append(here)
        seen.update(chain)
        chains.append([item for item in chain if isinstance(item.meta.get("val"), Tensor)])
    return chains


def _segments(graph: NormalGraph, chain: Sequence[Node]) -> list[_Segment]:
    """The parts of the graph between neighbouring values of ``chain``."""
    # A node belongs to the first value of the chain it leads to. Values lead to themselves.
    number = {node: index for index, node in enumerate(chain)}
    owner: dict[Node, int] = {}
    for node in reversed(graph.module.graph.nodes):
        if node in number:
            owner[node] = number[node]
        elif node.op == "call_function":
            owner[node] = min((owner[user] for user in node.users if user in owner), default=len(chain))
    below: dict[Node, int] = {}
    inside: list[set[Node]] = [set() for _ in chain]
    for node in graph.module.graph.nodes:
        # The last value of the chain that a node is computed from; what depends on none can be shared by blocks.
        reached = [number[operand] if operand in number else below.get(operand, -1) for operand in node.all_input_nodes]
        below[node] = max(reached, default=-1)
    for node in reversed(graph.module.graph.nodes):
        home = owner.get(node, len(chain))
        if node.op != "call_function" or home >= len(chain):
            continue
        shared = any(user not in inside[home] for user in node.users) and node not in number
        if home > 0 and below[node] < home - 1 and shared:
            continue
        inside[home].add(node)
    segments = []
    for index in range(1, len(chain)):
        interior = frozenset(inside[index])
        inputs = outside_inputs(interior)
        ordered_inputs = (chain[index - 1], *(item for item in inputs if item is not chain[index - 1]))
        structure = fingerprint(interior, ordered_inputs, [chain[index]], layout=False)
        segments.append(_Segment(chain[index - 1], chain[index], interior, structure))
    return segments


def repeats(segments: Sequence[_Segment]) -> list[tuple[int, int, int]]:
    """Runs ``(start, period, times)`` of repeated structures, ``times >= 2``, that do not overlap; longest first.

    For each period the lengths of all runs come from one pass, so the time is linear in the number of segments.
    """
    names = [segment.structure for segment in segments]
    candidates: list[tuple[int, int, int, int]] = []
    for period in range(1, min(_LONGEST_PERIOD, len(names) // 2) + 1):
        start = 0
        matched = 0
        for index in range(period, len(names) + 1):
            if index < len(names) and names[index] == names[index - period]:
                matched += 1
                continue
            times = matched // period + 1
            if times >= 2:
                candidates.append((period * times, -period, start, times))
            start, matched = index - period + 1, 0
    chosen: list[tuple[int, int, int]] = []
    taken: set[int] = set()
    for length, minus_period, start, times in sorted(candidates, reverse=True):
        places = range(start, start + length)
        if not taken.intersection(places):
            taken.update(places)
            chosen.append((start, -minus_period, times))
    return sorted(chosen)


def _period(run: Sequence[_Segment]) -> int:
    names = [segment.structure for segment in run]
    for period in range(1, len(names) // 2 + 1):
        if len(names) % period == 0 and names == names[:period] * (len(names) // period):
            return period
    return len(names)


def _same_shape(left: Node, right: Node) -> bool:
    a, b = left.meta["val"], right.meta["val"]
    if a.dtype != b.dtype or a.dim() != b.dim():
        return False
    # Symbols compare by expression, which adds no guard.
    return all(str(x) == str(y) for x, y in zip(a.shape, b.shape, strict=True))


def _block(
    segments: Sequence[_Segment],
    interior: frozenset[Node],
    stack: int,
    index: int,
    members: tuple[str, ...],
    number: int,
    sites: Sites,
) -> Block:
    entry, exit = segments[0].entry, segments[-1].exit
    held = [site for site in sites if site.id in members]
    dimensions: dict[str, int] = {}
    for site in held:
        dimensions |= site.dimensions
    # Members name their dimensions each for themselves, so only their values can be added up.
    cost = [
        sum(_value(expression, site.dimensions) for site in held for expression in [getattr(site, what)])
        for what in ("flops", "bytes")
    ]
    return Block(
        id=f"block.{number}",
        entries=(entry,),
        exits=(exit,),
        stack=stack,
        index=index,
        members=members,
        inputs=(entry, *(item for item in outside_inputs(interior) if item is not entry)),
        outputs=(exit,),
        interior=interior,
        module=module_of(interior),
        source=source_of(exit),
        form=f"period {len(segments)}" if len(segments) > 1 else "single",
        flops=sympy.Integer(cost[0]),
        bytes=sympy.Integer(cost[1]),
        dimensions=dimensions,
        fingerprint="".join(segment.structure for segment in segments)[:24],
    )


def _value(expression: sympy.Expr, dimensions: dict[str, int]) -> int:
    return int(expression.subs({symbol: dimensions[symbol.name] for symbol in expression.free_symbols}))
