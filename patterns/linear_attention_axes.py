"""What each axis of a value is made of, spread from some values to everything that is computed from them alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch.fx import Node

from .axes import Atom, Contraction, Layout, contraction, downward, resolved
from .describe import ordered, same
from .nodes import argument, dimension, operation, tensor


def spread(layouts: Mapping[Node, Layout], nodes: Iterable[Node], longer: Mapping[Atom, Atom]) -> dict[Node, Layout]:
    """Layouts of ``nodes`` (without those that have none) given those of what they read.

    ``longer`` gives for an axis the one that is longer by one: joined with a constant, and cut from it again.
    """
    known: dict[Node, Layout] = {node: resolved(layout) for node, layout in layouts.items()}
    for node in ordered(nodes):
        made = tensor(node)
        layout = _layout(node, known, longer) if made is not None else None
        if layout is not None and made is not None and len(layout) == made.dim():
            known.setdefault(node, layout)
            if operation(node) == "cat":  # what is joined is a constant of the same axes but one
                before = known[node.all_input_nodes[0]]
                constant = tuple(axis if axis == other else () for axis, other in zip(layout, before, strict=True))
                known.setdefault(node.all_input_nodes[1], constant)
    return known


def _layout(node: Node, known: Mapping[Node, Layout], longer: Mapping[Atom, Atom]) -> Layout | None:
    name, read = operation(node), [item for item in node.all_input_nodes if tensor(item) is not None]
    spec = contraction(node)
    if spec is not None:
        return _of_product(spec, known)
    if name == "einsum":
        return None
    if name == "cat":
        read = read[:1]
    if not read or any(item not in known for item in read):
        return None
    layout = known[read[0]]
    if len(read) == 1 and (moved := downward(node, layout)) is not None:
        return moved
    if name in ("sum", "mean", "amax"):
        dims = argument(node, "dim")
        axes = {
            dimension(axis, len(layout)) for axis in ([dims] if isinstance(dims, int) else dims or range(len(layout)))
        }
        if argument(node, "keepdim") is True:
            return tuple(() if index in axes else axis for index, axis in enumerate(layout))
        return tuple(axis for index, axis in enumerate(layout) if index not in axes)
    if name in ("pad", "constant_pad_nd", "cat", "slice", "narrow"):
        return _resized(node, layout, longer)
    return _broadcast([known[item] for item in read])


def _of_product(spec: Contraction, known: Mapping[Node, Layout]) -> Layout | None:
    if spec.left not in known or spec.right not in known:
        return None
    bound: dict[str, tuple[Atom, ...]] = {}
    for letters, side in ((spec.left_letters, spec.left), (spec.right_letters, spec.right)):
        for letter, axis in zip(letters, known[side], strict=True):
            bound[letter] = bound.get(letter) or axis
    return tuple(bound[letter] for letter in spec.out_letters)


def _resized(node: Node, layout: Layout, longer: Mapping[Atom, Atom]) -> Layout | None:
    """An axis that became longer by one, shorter by one, or one."""
    shorter = {other: atom for atom, other in longer.items()}
    made: list[tuple[Atom, ...]] = []
    for axis, size in zip(layout, node.meta["val"].shape, strict=True):
        options = [axis, ()]
        if len(axis) == 1:
            options += [(table[axis[0]],) for table in (longer, shorter) if axis[0] in table]
        fitting = next((option for option in options if same(_size(option), size)), None)
        if fitting is None:
            return None
        made.append(fitting)
    return tuple(made)


def _size(axis: tuple[Atom, ...]) -> object:
    size = 1
    for atom in axis:
        size = size * atom.size
    return size


def _broadcast(layouts: list[Layout]) -> Layout:
    """Arithmetic on values that broadcast against one another."""
    rank = max(map(len, layouts))
    aligned = [((),) * (rank - len(layout)) + layout for layout in layouts]
    return tuple(next((axis for axis in axes if axis), ()) for axes in zip(*aligned, strict=True))
