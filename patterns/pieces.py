"""One step's part of a tensor: an element along one axis, or a chunk of equal chunks, however it is cut out."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.fx import Node

from .describe import expression

aten = torch.ops.aten


@dataclass(frozen=True)
class Piece:
    """``source`` from ``index * width`` on along ``dim``, with that axis kept or (``width`` 1 only) without it."""

    source: Node
    dim: int
    index: int
    keep: bool
    width: int = 1


def piece_of(node: Node) -> Piece | None:
    """``node`` as one element of another tensor along one axis, if it is spelled so."""
    piece = part_of(node)
    return piece if piece is not None and piece.width == 1 else None


def part_of(node: Node) -> Piece | None:
    """``node`` as one element, or one of equal chunks, of another tensor along one axis."""
    if node.op != "call_function":
        return None
    if node.target is aten.select.int:
        return _checked(node.args[0], node.args[1], node.args[2], keep=False)
    if node.target is aten.slice.Tensor:
        source, axis, start, end, step = (*node.args, *(None,) * (5 - len(node.args)))[:5]
        start, end = expression(start), expression(end)
        if step in (None, 1) and isinstance(start, int) and isinstance(end, int):
            return _checked(source, axis or 0, start, keep=True, width=end - start, first=start)
        return None
    if node.target is operator.getitem and isinstance(node.args[0], Node) and isinstance(node.args[1], int):
        parts, index = node.args[0], node.args[1]
        if parts.target is aten.unbind.int:
            return _checked(parts.args[0], parts.args[1] if len(parts.args) > 1 else 0, index, keep=False)
        if parts.target in (aten.split.Tensor, aten.chunk.default, aten.split_with_sizes.default):
            dim: Any = parts.args[2] if len(parts.args) > 2 else parts.kwargs.get("dim", 0)
            width, count = _equal_parts(parts, int(dim))
            if index < count:
                return _checked(parts.args[0], dim, index, keep=True, width=width)
    return None


_EQUAL: WeakKeyDictionary[Node, tuple[int, int]] = WeakKeyDictionary()


def _equal_parts(parts: Node, dim: int) -> tuple[int, int]:
    """How long the parts of a split are, and how many of the first ones are that long."""
    if parts not in _EQUAL:
        sizes = [expression(part.shape[dim]) for part in parts.meta["val"]]
        equal = [isinstance(size, int) and size == sizes[0] for size in sizes]
        _EQUAL[parts] = (sizes[0] if equal[0] else 0, equal.index(False) if False in equal else len(equal))
    return _EQUAL[parts]


def _checked(
    source: Any, dim: Any, index: Any, *, keep: bool, width: int = 1, first: int | None = None
) -> Piece | None:
    """``first``: where the piece begins, if ``index`` does not say it."""
    if not isinstance(source, Node) or not isinstance(dim, int) or not isinstance(index, int) or width < 1:
        return None
    value = source.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    dim %= value.dim()
    size = expression(value.shape[dim])
    if not isinstance(size, int):
        return None
    begins = index * width if first is None else first
    begins = begins + size if begins < 0 else begins
    if begins % width or not 0 <= begins <= size - width or width == size > 1:
        return None
    return Piece(source, dim, begins // width, keep, width)
