"""A value with one more channel full of ones: a sum carried along with a product."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from .axes import Atom, Layout, resolved
from .describe import same
from .masks import filled_with
from .nodes import argument, dimension, operation, scalar, tensor


def without_ones(node: Node, layout: Layout, axis: Atom) -> tuple[Node, Layout, Atom] | None:
    """``(source, layout, channels)`` when ``node`` is ``source`` with ones behind it along ``axis``."""
    place = next((index for index, atoms in enumerate(resolved(layout)) if atoms == (axis,)), None)
    source = _padded(node, place) if operation(node) in ("pad", "constant_pad_nd") else _joined(node, place)
    made = tensor(source)
    if place is None or made is None or not same(made.shape[place] + 1, axis.size):
        return None
    channels = Atom(made.shape[place], rigid=True)
    return source, (*layout[:place], (channels,), *layout[place + 1 :]), channels  # type: ignore[return-value]


def _padded(node: Node, place: int | None) -> Node | None:
    rank = node.meta["val"].dim()
    amounts = list(argument(node, "pad"))
    amounts += [0] * (2 * rank - len(amounts))
    wanted = [0] * (2 * rank)
    if place is not None:
        wanted[2 * (rank - 1 - place) + 1] = 1
    constant = operation(node) != "pad" or argument(node, "mode") == "constant"
    ones = constant and amounts == wanted and scalar(argument(node, "value")) == 1.0
    return node.args[0] if ones else None  # type: ignore[return-value]


def _joined(node: Node, place: int | None) -> Node | None:
    parts: Any = argument(node, "tensors") if operation(node) == "cat" else ()
    if len(parts) != 2 or dimension(argument(node, "dim"), node.meta["val"].dim()) != place:
        return None
    source, ones = parts
    return source if filled_with(ones) == 1.0 else None
