"""Features cut out of a layer: one of two halves (in the middle, every other one, an axis of two), or any run."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch.fx import Node

from .describe import same
from .nodes import RESHAPES, argument, dimension, operation, tensor

_PARTS = ("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk")


@dataclass(frozen=True, eq=False)
class Half:
    """A half of the features of ``whole``: the first or second, or (``interleaved``) the even or odd ones."""

    whole: Node
    half: int
    interleaved: bool = False


@dataclass(frozen=True, eq=False)
class Run:
    """The features ``[start, stop)`` of ``whole``."""

    whole: Node
    start: int
    stop: int


def run_of(node: Node, axis: int) -> Run | None:
    """What ``node`` is a run of features of, and which; None for anything else, and where a size is symbolic."""
    made, name = tensor(node), operation(node)
    if made is None or (name not in ("slice", "narrow") and node.target is not operator.getitem):
        return None
    if not -made.dim() <= axis < made.dim() or not isinstance(made.shape[axis], int):
        return None
    if node.target is operator.getitem:
        source, index = node.args
        parts = source.meta.get("val") if isinstance(source, Node) else None
        if not isinstance(source, Node) or operation(source) not in _PARTS or not isinstance(index, int):
            return None
        if not isinstance(parts, list | tuple):
            return None
        start = sum(part.shape[axis] for part in parts[: index % len(parts)])
        cut = is_axis(source, argument(source, "dim"), axis)
        whole: object = source.args[0]
    else:
        whole, start = node.args[0], argument(node, "start") or 0
        cut = is_axis(node, argument(node, "dim"), axis) and (name == "narrow" or argument(node, "step") == 1)
    before = tensor(whole)
    if not cut or before is None or not isinstance(start, int) or not isinstance(before.shape[axis], int):
        return None
    start = max(0, start + before.shape[axis]) if start < 0 else start
    return Run(whole, start, start + made.shape[axis])  # type: ignore[arg-type]


def half_of(node: Node, axis: int) -> Half | None:
    """What ``node`` is one half of along the feature axis, and which half; None for anything else."""
    if node.target is operator.getitem:
        source, index = node.args
        if not isinstance(source, Node) or not isinstance(index, int):
            return None
        if operation(source) == "unbind":
            return _of_two(source, source.args[0], index, axis)
        return _part(source, index, axis)
    name = operation(node)
    if name == "select":
        return _of_two(node, node.args[0], argument(node, "index"), axis)
    return _cut(node, axis) if name in ("slice", "narrow") else None


def is_axis(node: Node, given: object, axis: int) -> bool:
    """True when the dimension ``given`` to ``node`` is that axis of what it reads."""
    made = tensor(node.args[0]) if isinstance(node.args[0], Node) else tensor(node)
    if made is None or not isinstance(given, int):
        return False
    return dimension(given, made.dim()) == dimension(axis, made.dim())


def _part(source: Node, index: int, axis: int) -> Half | None:
    parts = source.meta.get("val")
    if operation(source) not in _PARTS or not isinstance(parts, list | tuple) or len(parts) != 2:
        return None
    if not is_axis(source, argument(source, "dim"), axis) or not same(parts[0].shape[axis], parts[1].shape[axis]):
        return None
    return Half(source.args[0], index % 2)  # type: ignore[arg-type]


def _of_two(node: Node, viewed: object, index: object, axis: int) -> Half | None:
    """An element of an axis of two that a view made out of the features."""
    made = tensor(viewed)
    if made is None or not isinstance(viewed, Node) or operation(viewed) not in RESHAPES or axis != -1:
        return None
    whole = tensor(viewed.args[0])
    if whole is None or not isinstance(index, int) or made.dim() != whole.dim() + 1:
        return None
    if any(not same(*sizes) for sizes in zip(whole.shape[:-1], made.shape[:-2], strict=True)):
        return None
    place = dimension(argument(node, "dim"), made.dim()) - made.dim()
    if place not in (-1, -2) or not same(made.shape[place], 2):
        return None
    return Half(viewed.args[0], index % 2, interleaved=place == -1)  # type: ignore[arg-type]


def _cut(node: Node, axis: int) -> Half | None:
    source = node.args[0]
    whole, made = tensor(source), tensor(node)
    if whole is None or made is None or not is_axis(node, argument(node, "dim"), axis):
        return None
    if not same(whole.shape[axis], 2 * made.shape[axis]):
        return None
    start = argument(node, "start")
    step = argument(node, "step") if operation(node) == "slice" else 1
    if step == 2 and (start is None or start in (0, 1)):
        return Half(source, start or 0, interleaved=True)  # type: ignore[arg-type]
    if step != 1:
        return None
    for half, first in enumerate((0, made.shape[axis])):
        if same(start or 0, first) or (isinstance(start, int) and start < 0 and half == 1 and same(-start, first)):
            return Half(source, half)  # type: ignore[arg-type]
    return None
