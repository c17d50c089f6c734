"""Stacks of layers that need not be equal: neighbours on one stream, each agreeing with a sibling in part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.fx import Node

from .describe import expression, module_of
from .layers import STOPS, Layer, agreeing
from .nodes import operation
from .segments import Segment
from .streams import Place

_BACK = 4
"""How many layers back in the order of the program the one before may be: towers may run in turns."""

Links = dict[Layer, tuple[Layer, dict[Node, Node]]]
"""The layer before, and for each entry the exit of that layer it comes from."""


def layer_stacks(
    layers: Sequence[Layer], order: Sequence[Node], position: Mapping[Node, int], weighted: set[Node]
) -> list[list[Segment]]:
    """Stacks of at least two layers. ``weighted`` are the nodes computed by weighted layers and attentions.

    One stack runs along one stream as long as it goes on from layer to layer without passing a weighted layer outside
    of them. It ends where other lists of layers begin; lists that take turns are one stack. Linear time.
    """
    chosen = _outermost(agreeing(layers))
    before = _links(chosen, order, position, weighted)
    chains: list[list[Layer]] = []
    ends: dict[Layer, list[Layer]] = {}
    for layer in chosen:
        link = before.get(layer)
        chain = ends.pop(link[0], None) if link is not None else None
        if chain is None:
            chain = []
            chains.append(chain)
        chain.append(layer)
        ends[layer] = chain
    stacks = []
    for chain in chains:
        for part in _parted(chain):
            kept = agreeing(part)
            if len(kept) > 1:
                stacks.append(_segments(kept, _links(kept, order, position, weighted), position))
    return stacks


def _inside(inner: Layer, outer: Layer) -> bool:
    return inner is not outer and outer.first <= inner.first and inner.last <= outer.last


def _outermost(layers: Sequence[Layer]) -> list[Layer]:
    """Layers that do not lie in each other: the outer ones, unless two inner ones each do all that the outer does."""
    holders: set[Layer] = set()
    open_: list[Layer] = []
    complete: dict[tuple[Layer, Any], int] = {}
    for layer in layers:
        while open_ and not _inside(layer, open_[-1]):
            open_.pop()
        for outer in open_:
            if outer.parts == layer.parts:
                key = (outer, layer.like)
                complete[key] = complete.get(key, 0) + 1
                if complete[key] > 1:
                    holders.add(outer)
        open_.append(layer)
    kept: list[Layer] = []
    for layer in layers:
        if layer not in holders and not (kept and _inside(layer, kept[-1])):
            kept.append(layer)
    return kept


def _links(layers: Sequence[Layer], order: Sequence[Node], position: Mapping[Node, int], weighted: set[Node]) -> Links:
    found: Links = {}
    taken: set[Layer] = set()
    for index, layer in enumerate(layers):
        for earlier in reversed(layers[max(0, index - _BACK) : index]):
            if earlier in taken:
                continue
            origins = _origins(earlier, layer, order, position, weighted)
            if origins:
                found[layer] = (earlier, origins)
                taken.add(earlier)
                break
    return found


def _origins(
    earlier: Layer, later: Layer, order: Sequence[Node], position: Mapping[Node, int], weighted: set[Node]
) -> dict[Node, Node]:
    """For entries of ``later`` the exits of ``earlier`` that go on to them past all weighted layers."""
    reached: dict[Node, set[Node]] = {exit: {exit} for _, exit in earlier.pairs}
    for node in order[min(position[exit] for exit in reached) + 1 : later.first]:
        if node in reached or node.op != "call_function" or node in weighted or operation(node) in STOPS:
            continue
        for read in node.all_input_nodes:
            if read in reached:
                reached.setdefault(node, set()).update(reached[read])
    origins: dict[Node, Node] = {}
    # What a layer reads besides its paired entries may be a stream that ends in it.
    wanted = [entry for entry, _ in later.pairs]
    inner = set(later.nodes)
    wanted += [read for node in later.nodes for read in node.all_input_nodes if read in reached and read not in inner]
    for entry in dict.fromkeys(wanted):
        for exit in sorted(reached.get(entry, ())):
            if exit not in origins.values() and _volume(exit) == _volume(entry):
                origins[entry] = exit
                break
    return origins if any(entry in origins for entry, _ in later.pairs) else {}


def _volume(node: Node) -> tuple[Any, ...]:
    """The type of a value up to the order and grouping of its axes."""
    value = node.meta["val"]
    return (value.dtype, value.device, expression(value.numel()))


def _parted(chain: Sequence[Layer]) -> list[list[Layer]]:
    """A chain cut where no list of layers goes on."""
    last = {layer.like[0]: index for index, layer in enumerate(chain)}
    parts: list[list[Layer]] = []
    until = -1
    for index, layer in enumerate(chain):
        if index > until:
            parts.append([])
        until = max(until, last[layer.like[0]])
        parts[-1].append(layer)
    return parts


def _segments(layers: Sequence[Layer], links: Links, position: Mapping[Node, int]) -> list[Segment]:
    """Layers as blocks. Streams keep their place in entries and exits; those that go on longest come first."""
    stream: dict[Node, int] = {}
    until: dict[int, int] = {}
    rows: list[list[tuple[int, Node, Node | None]]] = []
    for index, layer in enumerate(layers):
        origins = links[layer][1] if layer in links else {}
        paired = dict(layer.pairs)
        row: list[tuple[int, Node, Node | None]] = []
        for entry in (*paired, *(entry for entry in origins if entry not in paired)):
            number = stream.get(origins[entry], len(until)) if entry in origins else len(until)
            until[number] = index if entry in paired else until.get(number, -1)
            row.append((number, entry, paired.get(entry)))
            if entry in paired:
                stream[paired[entry]] = number
        rows.append(row)
    blocks = []
    for layer, row in zip(layers, rows, strict=True):
        row.sort(key=lambda item: (-until[item[0]], item[0]))
        entries = tuple(entry for _, entry, _ in row)
        exits = tuple(exit for _, _, exit in row if exit is not None)
        blocks.append(_segment(layer, entries, exits, position))
    return blocks


def _segment(
    layer: Layer,
    entries: tuple[Node, ...],
    exits: tuple[Node, ...],
    position: Mapping[Node, int],
) -> Segment:
    own = set(layer.nodes)
    # Constants only this layer reads are part of it.
    constants = {read for node in layer.nodes for read in node.all_input_nodes if read.op == "get_attr"}
    own |= {node for node in constants if all(user in own for user in node.users)}
    nodes = sorted(own)
    reads = dict.fromkeys(read for node in nodes for read in node.all_input_nodes if read not in own)
    inputs = (*entries, *(read for read in reads if read not in entries))
    outputs = tuple(node for node in nodes if node in exits or any(user not in own for user in node.users))
    start = Place(position[nodes[0]] - 1, frozenset(entries))
    end = Place(position[nodes[-1]], frozenset(exits))
    return Segment(start, end, tuple(nodes), inputs, entries, exits, outputs, layer.path)


def settled(
    equal: Sequence[list[Segment]],
    stacks: Sequence[list[Segment]],
    layers: Sequence[Layer],
    doing: Mapping[Node, str],
) -> list[list[Segment]]:
    """Of stacks of ``equal`` blocks and ``stacks`` of layers those that say more where they overlap.

    Equal blocks within one layer (two attentions in a row) are part of it. Else more blocks are better, if they are
    modules where the layers are; as many are better as equal ones if their borders are those of the layers. A layer
    with an equal block in it is cut down to that: what the first layer computes for all of them (a table of biases) is
    no part of the block.
    """
    home = {
        node: (number, index)
        for number, stack in enumerate(stacks)
        for index, block in enumerate(stack)
        for node in block.nodes
    }
    kept = []
    lost: set[int] = set()
    better: dict[tuple[int, int], Segment] = {}
    for stack in equal:
        nodes = [node for block in stack for node in block.nodes]
        touched = {home[node] for node in nodes if node in home}
        if not touched:
            if not _within(stack, layers, doing):
                kept.append(stack)
            continue
        if len(touched) == 1 and all(node in home for node in nodes):
            continue
        numbers = {number for number, _ in touched}
        places = [_place(block, home, stacks) for block in stack]
        layered = sum(len(stacks[number]) for number in numbers)
        if len(numbers) == 1 and len(stack) > layered == sum(place is not None for place in places):
            # The modules say what a layer is: an equal stretch beside them is one only where a module is it, too.
            stack = [
                block for block, place in zip(stack, places, strict=True) if place is not None or _whole(block, layers)
            ]
            places = [_place(block, home, stacks) for block in stack]
        if len(stack) > layered or (len(stack) == layered and len(numbers) == 1 and None not in places):
            kept.append(stack)
            lost |= numbers
        else:
            better.update({place: block for place, block in zip(places, stack, strict=True) if place is not None})
    gone = {node for stack in kept for block in stack for node in block.nodes}
    found = list(kept)
    for number, stack in enumerate(stacks):
        if number not in lost and gone.isdisjoint(node for block in stack for node in block.nodes):
            found.append([_cut_down(block, better.get((number, index))) for index, block in enumerate(stack)])
    return found


def _place(
    block: Segment, home: Mapping[Node, tuple[int, int]], stacks: Sequence[Sequence[Segment]]
) -> tuple[int, int] | None:
    """The layer that ``block`` is, but for a few nodes and what the layer does besides; None when there is none."""
    counts = Counter(home[node] for node in block.nodes if node in home)
    (place, common), *_ = counts.most_common(1) or [((-1, -1), 0)]
    size = len(stacks[place[0]][place[1]].nodes) if common else 0
    return place if 5 * common >= 4 * len(block.nodes) and 2 * common > size else None


def _whole(block: Segment, layers: Sequence[Layer]) -> bool:
    """True when one module computes what ``block`` does and little else."""
    inside = set(block.nodes)
    size = len(inside)
    near = [layer for layer in layers if 4 * size <= 5 * len(layer.nodes) and 4 * len(layer.nodes) <= 5 * size]
    return any(5 * len(inside.intersection(layer.nodes)) >= 4 * size for layer in near)


def _cut_down(layer: Segment, block: Segment | None) -> Segment:
    if block is None or not set(layer.entries) <= set(block.inputs) or not set(layer.exits) <= set(block.outputs):
        return layer
    inputs = (*layer.entries, *(node for node in block.inputs if node not in layer.entries))
    return replace(block, inputs=inputs, entries=layer.entries, exits=layer.exits, module=layer.module)


def _within(stack: Sequence[Segment], layers: Sequence[Layer], doing: Mapping[Node, str]) -> bool:
    """True when the blocks lie in one layer, among what it computes itself, and do less than it does."""
    paths = {module_of(block.nodes) for block in stack}
    parts = {doing[node] for block in stack for node in block.nodes if node in doing}
    first, last = stack[0].nodes[0], stack[-1].nodes[-1]
    return any(
        paths == {layer.path} and parts < layer.parts and layer.nodes[0] <= first and last <= layer.nodes[-1]
        for layer in layers
    )
