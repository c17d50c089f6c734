"""Cached regions around what detection found: a group of blocks, one block, an attention or feed-forward in a block.

Policies say what they want kept in terms of sites; this page says which values that means.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.fx import Node

from ..patterns.graph import NormalGraph
from ..patterns.nodes import CASTS, DROPOUTS, MOVEMENTS, argument, operation, readers, tensor
from ..patterns.reasons import Reason
from ..patterns.sites import Block, Site, Sites
from .base import Policy
from .plan import CachedRegion

_SUMS = frozenset({"add", "add_"})
_PRODUCTS = frozenset({"mul", "mul_"})
_MATRIX_PRODUCTS = frozenset({"linear", "matmul", "mm", "bmm", "addmm", "scaled_dot_product_attention", "convolution"})
_SUMMED = 16
"""Values looked at on the way back from a sum to the stream, at most."""


def stacks(sites: Sites | Iterable[Any]) -> list[list[Block]]:
    """The blocks found, grouped by stack, in order; stacks in the order of the graph."""
    found: dict[int, list[Block]] = {}
    for site in sites:
        if isinstance(site, Block):
            found.setdefault(site.stack, []).append(site)
    return [sorted(found[number], key=lambda block: block.index) for number in sorted(found)]


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
    # What goes from one part to the next are tensors: an item stays with the tuple it is taken from.
    return {node for node in inside if node.target is not operator.getitem or node.args[0] in inside}


def between(blocks: Sequence[Block], order: Sequence[Node], position: Mapping[Node, int]) -> frozenset[Node]:
    """The nodes of neighbouring blocks and what is computed on the way from one to the next."""
    inside = {node for block in blocks for node in block.interior}
    places = [position[node] for node in inside]
    window = order[min(places) : max(places) + 1]
    after: set[Node] = set()
    for node in window:
        if node in inside or not after.isdisjoint(node.all_input_nodes):
            after.add(node)
    before: set[Node] = set()
    for node in reversed(window):
        if node in inside or not before.isdisjoint(node.users):
            before.add(node)
    return frozenset(after & before)


def around_blocks(
    graph: NormalGraph, policy: Policy, blocks: Sequence[Block], role: str = "", *, watch: Sequence[Node] = ()
) -> CachedRegion | Reason:
    """One region from the entries of the first of ``blocks`` to the exits of the last (one of each per stream).

    ``blocks`` are neighbours in one stack, or one block alone; ``site`` of the region is the first. Values that blocks
    in between hand to others than each other (skip connections, collected states) become exits after those of the
    stream. ``watch`` adds values the policy wants to see, after the entries of the stream.

    Returns a Reason instead when nothing could be skipped: all that the blocks compute is needed outside, or they write
    to values that are kept.
    """
    writes = [node.name for block in blocks for node in block.writes]
    if writes:
        return Reason("mutation", "a skipped block would not write to what it reads", tuple(writes))
    first, last = blocks[0], blocks[-1]
    entries = tuple(dict.fromkeys((*first.entries, *watch)))
    exits = tuple(last.exits)
    region = CachedRegion(entries=entries, exits=exits, policy=policy, site=first, role=role)
    inside = region_nodes(graph, region)
    order = list(graph.module.graph.nodes)
    whole = between(blocks, order, {node: index for index, node in enumerate(order)})
    # What lies between the blocks may be read elsewhere as well as what is in them.
    escaping = [
        node
        for node in sorted(whole - inside)
        if tensor(node) is not None and any(user not in whole for user in readers(node))
    ]
    if escaping:
        exits = tuple(dict.fromkeys((*exits, *escaping)))
        region = CachedRegion(entries=entries, exits=exits, policy=policy, site=first, role=role)
        inside = region_nodes(graph, region)
    if len(inside) <= len(exits):
        return Reason("weights-escape", "everything inside is also read outside", tuple(n.name for n in exits))
    return region


def around_branch(
    graph: NormalGraph,
    policy: Policy,
    site: Site,
    role: str = "",
    *,
    stops: Sequence[Node] = (),
) -> CachedRegion | Reason:
    """The residual branch ``site`` lies on, from the stream it reads to its output before any gate or scale.

    ``x + gate * project(attention(norm(x)))`` gives entry ``x`` and exit ``project(...)``: whatever multiplies the
    branch by a value from elsewhere (a gate, a layer scale), dropout and casts stay outside. A site that feeds several
    streams (joint attention) has an entry and an exit for each. The first thing the branch's value is added to decides;
    adding a weight (a bias) does not count. ``stops`` are values the region ends at although nothing else reads them
    (streams that end in the site: the text in a last layer); they are entries after those of the stream.

    Returns a Reason instead when the site's output never meets the stream, or something else reads it on the way.
    """
    order = {node: index for index, node in enumerate(graph.module.graph.nodes)}
    sources = _ancestors(graph, site.inputs)
    downstream: set[Node] = set(site.outputs)
    entries: dict[Node, None] = {}
    exits: dict[Node, None] = {}
    for node in list(order)[min(order[node] for node in site.outputs) :]:
        if node in downstream or node.op != "call_function" or downstream.isdisjoint(node.all_input_nodes):
            continue
        meeting = _meets(node, downstream, sources)
        if meeting is None:
            downstream.add(node)
            continue
        stream, branch = meeting
        entries[stream] = None
        exits[_before_gate(branch, downstream)] = None
    if not exits:
        return Reason("no-site", f"the output of {site.id} is not added to a stream", (site.outputs[0].name,))
    region = CachedRegion(
        entries=tuple(sorted(entries, key=order.__getitem__)),
        exits=tuple(sorted(exits, key=order.__getitem__)),
        policy=policy,
        site=site,
        role=role,
    )
    inside = region_nodes(graph, region)
    ending = tuple(node for node in stops if node in inside)
    if ending:
        region = dataclasses.replace(region, entries=(*region.entries, *ending))
        inside = region_nodes(graph, region)
    if not set(site.outputs) <= inside:
        return Reason("weights-escape", f"{site.id} is read outside its branch", (site.outputs[0].name,))
    return region


def other_branches(graph: NormalGraph, policy: Policy, block: Block, taken: Iterable[Node]) -> list[CachedRegion]:
    """Residual branches of a block whose exits are none of ``taken``, found by the sums its stream runs through.

    They are what an earlier pass made of layers that had sites: the products in 8 bits, the attention in blocks. Only
    blocks of one stream are looked at; branches that multiply nothing are left out.
    """
    if len(block.exits) != 1:
        return []
    known, found = set(taken), []
    node = block.exits[0]
    for _ in range(_SUMMED):
        summed = _stream_and_branch(node, set(block.entries))
        if summed is None:
            break
        node, value = summed
        exit = _before_gate(value, set(block.interior))
        region = CachedRegion(entries=(node,), exits=(exit,), policy=policy, site=block)
        inside = region_nodes(graph, region)
        if known.isdisjoint(inside) and any(map(_multiplies, inside)):
            found.append(region)
    return found


def _multiplies(node: Node) -> bool:
    return getattr(node.target, "namespace", None) == "laconic" or operation(node) in _MATRIX_PRODUCTS


def _stream_and_branch(node: Node, entries: set[Node]) -> tuple[Node, Node] | None:
    """What a sum on the stream adds: the stream before it, and the branch."""
    name = operation(node)
    if name in _SUMS and len(node.args) >= 2:
        pairs = [(node.args[0], node.args[1]), (node.args[1], node.args[0])]
    elif name == "addcmul":
        pairs = [(node.args[0], node.args[1])]
    else:
        return None
    for stream, value in pairs:
        if isinstance(stream, Node) and isinstance(value, Node) and _continues(stream, entries):
            return stream, value
    return None


def _ancestors(graph: NormalGraph, nodes: Iterable[Node]) -> set[Node]:
    """Activations that ``nodes`` are computed from, and they themselves; parameters and constants are none."""
    found: set[Node] = set()
    queue = list(nodes)
    while queue:
        node = queue.pop()
        if node not in found and node.op != "get_attr" and not graph.is_static(node):
            found.add(node)
            queue.extend(node.all_input_nodes)
    return found


def _meets(node: Node, branch: set[Node], sources: set[Node]) -> tuple[Node, Node] | None:
    """``(stream, branch)`` when ``node`` adds the branch's value to what the site itself was computed from."""
    name = operation(node)
    if name in _SUMS and len(node.args) >= 2:
        pairs = [(node.args[0], node.args[1]), (node.args[1], node.args[0])]
    elif name == "addcmul":
        # x + value * gate
        value = node.args[1] if node.args[1] in branch else node.args[2]
        pairs = [(node.args[0], value)]
    else:
        return None
    made = tensor(node)
    for stream, value in pairs:
        here = tensor(stream)
        if not isinstance(stream, Node) or not isinstance(value, Node) or value not in branch or stream in branch:
            continue
        if _continues(stream, sources) and made is not None and here is not None and here.dim() == made.dim():
            return stream, value
    return None


def _continues(stream: Node, sources: set[Node]) -> bool:
    """True for a value of ``sources``, or one that other branches of the same layer were added to since."""
    pending = [stream]
    for _ in range(_SUMMED):
        if not pending or pending[-1] in sources:
            break
        node = pending.pop()
        if operation(node) in _SUMS or operation(node) == "addcmul":
            pending += [read for read in reversed(node.args[:2]) if isinstance(read, Node)]
    return bool(pending) and pending[-1] in sources


def _before_gate(value: Node, branch: set[Node]) -> Node:
    """The branch's value before gates, scales, dropout and casts."""
    node = value
    while True:
        name = operation(node)
        if name in _PRODUCTS:
            inner = [read for read in node.args[:2] if isinstance(read, Node) and read in branch]
            if len(inner) != 1:
                return node
            step: Any = inner[0]
        elif name in CASTS | DROPOUTS | MOVEMENTS:
            step = argument(node, "input") if name in DROPOUTS else node.args[0]
        else:
            return node
        # What others read besides this chain must stay an exit of its own kind.
        if not isinstance(step, Node) or step not in branch or len(step.users) > 1:
            return node
        node = step
