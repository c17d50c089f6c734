"""The same computation somewhere else: a segment matched against the graph backwards from given values.

The first block of a stack often differs from the others in what surrounds it (its inputs come from embeddings, not
from a block), so its borders are found by laying the second block over it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.fx import Node

from .nodes import readers
from .segments import Segment, described, type_of
from .streams import Place


def alike(
    pattern: Segment, exits: Sequence[Node], order: Sequence[Node], position: Mapping[Node, int]
) -> Segment | None:
    """The segment that computes ``exits`` as ``pattern`` computes its own, one by one; None if none does.

    ``order`` is the graph, ``position`` the place of each node in it.
    """
    mine = set(pattern.nodes)
    image: dict[Node, Node] = {}
    pending = list(zip(pattern.exits, exits, strict=True))
    while pending:
        theirs, ours = pending.pop()
        if theirs in image:
            if image[theirs] is not ours:
                return None
            continue
        image[theirs] = ours
        if theirs not in mine:
            if type_of(theirs) != type_of(ours):
                return None
            continue
        pairs = _operands(theirs, ours)
        if ours in mine or pairs is None:
            return None
        pending.extend(pairs)
    if not all(node in image for node in (*pattern.nodes, *pattern.inputs)):
        return None
    nodes = tuple(sorted(image[node] for node in pattern.nodes))
    inside = set(nodes)
    entries = [image[node] for node in pattern.entries]
    if len(inside) != len(pattern.nodes) or any(image[node] in inside for node in pattern.inputs):
        return None
    outputs = {image[node] for node in pattern.outputs}
    for node in nodes:
        if node not in outputs and any(user not in inside for user in readers(node)):
            return None
    # What is read from outside must not be computed from the inside.
    first = position[nodes[0]]
    later: set[Node] = set()
    for node in order[first : position[nodes[-1]]]:
        if node not in inside and any(read in inside or read in later for read in node.all_input_nodes):
            later.add(node)
    if any(image[node] in later for node in pattern.inputs):
        return None
    start = Place(first - 1, frozenset(entries))
    found = described(nodes, inside, start, Place(max(map(position.__getitem__, exits)), frozenset(exits)))
    if found.structure != pattern.structure or len(found.entries) != len(pattern.entries):
        return None
    return found


def _operands(theirs: Node, ours: Node) -> list[tuple[Node, Node]] | None:
    """Operand pairs of two equal operations; None when they differ."""
    if theirs.op != ours.op or theirs.op not in ("call_function", "get_attr") or theirs.target != ours.target:
        return None
    if type_of(theirs) != type_of(ours):
        return None
    pairs: list[tuple[Node, Node]] = []
    pending: list[tuple[Any, Any]] = [(theirs.args, ours.args), (theirs.kwargs, ours.kwargs)]
    while pending:
        one, other = pending.pop()
        if isinstance(one, Node) and isinstance(other, Node):
            pairs.append((one, other))
        elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
            pending.extend(zip(one, other, strict=True))
        elif isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
            pending.extend((one[key], other[key]) for key in one)
        elif type(one) is not type(other) or one != other:
            return None
    return pairs
