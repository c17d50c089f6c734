"""Where the values of all steps of a loop come together: stacked, concatenated, or written into a buffer one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .describe import expression

aten = torch.ops.aten

_SCATTERS = (aten.select_scatter.default, aten.slice_scatter.default)


@dataclass(frozen=True)
class Join:
    """``node`` holds ``elements`` side by side along ``dim``; ``stacked``: along a new axis (else each has it).

    ``passed`` are the partly filled buffers on the way.
    """

    node: Node
    elements: tuple[Node, ...]
    dim: int
    stacked: bool
    passed: tuple[Node, ...] = ()


def find_joins(graph: Graph) -> dict[Node, Join]:
    """Every join of at least two values. Linear in the graph: no buffer is followed twice."""
    found: dict[Node, Join] = {}
    followed: set[Node] = set()
    for node in graph.nodes:
        if node.target in (aten.stack.default, aten.cat.default):
            elements: Any = node.args[0]
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            if len(elements) > 1 and isinstance(dim, int):
                found[node] = Join(node, tuple(elements), dim, node.target is aten.stack.default)
    for node in reversed(graph.nodes):
        if node.target in _SCATTERS and node not in followed:
            join = _written(node, followed)
            if join is not None:
                found[node] = join
    return found


def buffer_of(node: Node) -> Node | None:
    """The buffer a node writes one more element into: all it says about that element is where it goes."""
    return node.args[0] if node.target in _SCATTERS and isinstance(node.args[0], Node) else None


def _written(last: Node, followed: set[Node]) -> Join | None:
    """The join that ends in ``last``, if every place of the buffer is written, each once."""
    place = _place(last)
    if place is None:
        return None
    dim, _, size = place
    written: dict[int, Node] = {}
    passed: list[Node] = []
    node: Any = last
    while len(written) < size:
        place = _place(node) if isinstance(node, Node) and node not in followed and node.target is last.target else None
        if place is None or place[0] != dim or place[1] in written:
            return None
        followed.add(node)
        passed.append(node)
        written[place[1]] = node.args[1]
        node = node.args[0]
    elements = tuple(written[index] for index in range(size))
    stacked = last.target is aten.select_scatter.default
    return Join(last, elements, dim, stacked, tuple(passed[1:])) if size > 1 else None


def _place(node: Node) -> tuple[int, int, int] | None:
    """The axis, the place on it and its length, where a single element is written in the buffer's own type."""
    buffer, value, *where = node.args
    whole = buffer.meta.get("val") if isinstance(buffer, Node) else None
    part = value.meta.get("val") if isinstance(value, Node) else None
    if not isinstance(whole, Tensor) or not isinstance(part, Tensor) or whole.dtype != part.dtype or node.kwargs:
        return None
    dim: Any = where[0] if where else 0
    dim %= whole.dim()
    size = expression(whole.shape[dim])
    if not isinstance(size, int):
        return None
    if node.target is aten.select_scatter.default:
        index: Any = where[1]
    else:
        index, end, step = (*where[1:], None, None, None)[:3]
        if step not in (None, 1) or not isinstance(end, int) or not isinstance(index, int) or end - index != 1:
            return None
    return (dim, index % size, size) if isinstance(index, int) else None
