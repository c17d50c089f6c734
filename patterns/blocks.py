"""Repeated blocks of the residual stream: no name of a module, class or parameter is read.

Narrow places (:mod:`.streams`) delimit segments (:mod:`.segments`); runs of equal segments are stacks of blocks
(:mod:`.stacks`). Layers that are not equal but agree in part are stacks too (:mod:`.layer_stacks`). This page chooses
among them and makes sites of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import sympy
from torch.fx import Node

from .describe import evaluated, fingerprint, module_of, module_path, source_of
from .effects import Effects, effects_of
from .graph import NormalGraph
from .layer_stacks import layer_stacks, settled
from .layers import find_layers, parts_of
from .nodes import operation
from .segments import Segment
from .sites import Attention, Block, Convolution, Linear, Site, Sites, Skip
from .stacks import Finder
from .streams import streams

_KINDS = frozenset({"attention", "feedforward", "moe", "scan"})


def find_blocks(graph: NormalGraph, sites: Sites) -> list[Site]:
    """Stacks of at least two blocks; blocks never overlap.

    A block hands on what it reads from the stream, with something added that a layer in it computed. Blocks of one
    ``variant`` are equal up to weights and other inputs, strides aside: their inputs, interior (in graph order) and
    outputs correspond by position. Values that several blocks share (rotary tables, a conditioning vector, masks) are
    inputs of each, after the entries. What a block writes to in place (a cache of keys) is named; a stack is refused
    when something else writes to what its blocks read while they run. Linear time; no guard on a symbolic size.
    """
    order = list(graph.module.graph.nodes)
    position = {node: index for index, node in enumerate(order)}
    layers = {node for site in sites.of(Attention, Linear, Convolution) for node in site.outputs}
    # Our own operators stand where a pass has replaced layers.
    layers.update(node for node in order if getattr(node.target, "namespace", None) == "laconic")
    stacks: list[list[Segment]] = []
    kept = {site.producer: _reader(site) for site in sites.of(Skip)}
    for stream in streams(graph, position, kept):
        stacks += Finder(order, position, layers, stream, kept).stacks()
    # The most comprehensive first: a conditioning input sees the tail of what the activations see whole.
    stacks.sort(key=lambda stack: -sum(len(block.nodes) for block in stack))
    claimed: set[object] = set()
    chosen: list[list[Segment]] = []
    for stack in stacks:
        nodes = [node for block in stack for node in block.nodes]
        if len(set(nodes)) == len(nodes) and claimed.isdisjoint(nodes):
            claimed.update(nodes)
            chosen.append(stack)
    doing = parts_of(sites)
    known = find_layers(graph, order, layers, doing, kept)
    chosen = settled(chosen, layer_stacks(known, order, position, layers), known, doing)
    chosen.sort(key=lambda stack: position[stack[0].nodes[0]])
    effects = effects_of(graph)
    found: list[Site] = []
    chosen = [[_with_writes(block, effects) for block in stack] for stack in chosen]
    for number, stack in enumerate(_unwritten(chosen, effects, sites)):
        found += _sites(stack, number, len(found), sites, position, effects)
    return found


def _reader(skip: Skip) -> Node:
    """The consumer of a skip, or the first view on the way to it."""
    reader, node = skip.consumer, skip.consumer.all_input_nodes[skip.operand]
    while node is not skip.producer:
        reader, node = node, node.all_input_nodes[0]
    return reader


def _with_writes(block: Segment, effects: Effects) -> Segment:
    """``block`` with the writes among its nodes that no value of it shows: it counts what it has read, say."""
    inside = set(block.nodes)
    first, last = effects.position[block.nodes[0]], effects.position[block.nodes[-1]]
    touched = {effects.root(node) for node in (*block.inputs, *block.nodes)}
    added = [
        node
        for node, roots in effects.written_between(first, last)
        if node not in inside
        and roots <= touched
        and all(user in inside for user in node.users)
        # What it reads is at hand when the block begins, or made in it.
        and all(read in inside or effects.position[read] < first for read in node.all_input_nodes)
    ]
    if not added:
        return block
    inside.update(added)
    nodes = tuple(sorted(inside))
    reads = dict.fromkeys(read for node in nodes for read in node.all_input_nodes if read not in inside)
    return replace(block, nodes=nodes, inputs=tuple(dict.fromkeys((*block.inputs, *reads))))


def _unwritten(stacks: list[list[Segment]], effects: Effects, sites: Sites) -> list[list[Segment]]:
    kept = []
    for stack in stacks:
        reasons = [effects.mutation(block.inputs, frozenset(block.nodes), inside=True) for block in stack]
        refused = next((reason for reason in reasons if reason is not None), None)
        if refused is None:
            kept.append(stack)
        else:
            sites.refusals.append(refused)
    return kept


def _parts(members: list[Site], position: Mapping[Node, int]) -> tuple[str, ...]:
    """The kinds of what a block computes, in order."""
    inside = [site for site in members if site.kind in _KINDS]
    return tuple(site.kind for site in sorted(inside, key=lambda site: position[site.outputs[0]]))


def _period(nodes: Sequence[Node], members: list[Site]) -> int:
    """How many layers one block repeats.

    A layer is a module that ends in a feed-forward (or a mixture of experts). Where a block is what one module
    computes, sums and all, it is one layer; where it is several modules side by side, those with a feed-forward count.
    """
    path = module_of(nodes)
    depth = len(path.split(".")) if path else 0
    # Casts and tables that only this block needs may be executed outside of its modules.
    if any(module_path(node) == path for node in nodes if operation(node) in ("add", "add_")):
        return 1
    ends = [site for site in members if site.kind in ("feedforward", "moe")]
    children = {tuple(module_path(site.outputs[0]).split(".")[: depth + 1]) for site in ends}
    return max(1, len(children))


def _sites(
    stack: list[Segment], number: int, first: int, sites: Sites, position: Mapping[Node, int], effects: Effects
) -> list[Site]:
    """The blocks of one stack."""
    home = {node: index for index, block in enumerate(stack) for node in block.nodes}
    insides = [frozenset(block.nodes) for block in stack]
    members: list[list[Site]] = [[] for _ in stack]
    for site in sites:
        index = home.get(site.outputs[0])
        if index is not None and site.interior <= insides[index]:
            members[index].append(site)
    found: list[Site] = []
    variants: dict[str, int] = {}
    for index, block in enumerate(stack):
        inputs = (*block.entries, *(node for node in block.inputs if node not in block.entries))
        # Members name their dimensions each for themselves, so only their values can be added up.
        counted = [site for site in members[index] if isinstance(site, Attention | Linear | Convolution)]
        cost = {
            what: sum(evaluated(getattr(site, what), site.dimensions) for site in counted)
            for what in ("flops", "bytes")
        }
        structure = fingerprint(block.nodes, inputs, block.outputs, layout=False)
        found.append(
            Block(
                id=f"block.{first + index}",
                entries=block.entries,
                exits=block.exits,
                stack=number,
                index=index,
                members=tuple(site.id for site in members[index]),
                parts=_parts(members[index], position),
                period=1 if block.module else _period(block.nodes, members[index]),
                inputs=inputs,
                outputs=block.outputs,
                interior=insides[index],
                module=block.module or module_of(block.nodes),
                source=source_of(block.exits[-1]),
                form="dual" if len(block.entries) > 1 else "single",
                flops=sympy.Integer(cost["flops"]),
                bytes=sympy.Integer(cost["bytes"]),
                variant=variants.setdefault(structure, len(variants)),
                fingerprint=structure,
                writes=effects.written_by(insides[index], inputs),
            )
        )
    return found
