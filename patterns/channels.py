"""Functions applied to some of the hidden channels, the others passed on: told apart by running them per channel.

``where(mask, act(h), h)``, ``cat([act(h[..., :d]), h[..., d:]])`` and a write into a slice of ``h`` are one thing
(RePaViT, Xu et al. 2025, "channel idle"). Whatever the spelling, it is a function of each channel alone, so it is run
with every channel holding the same sample points, and each channel is compared with the known functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from .activations import elementwise, nearest, sample_points
from .describe import ordered, shape_of
from .effects import Effects
from .evaluate import concretely, run
from .nodes import CASTS, COPIES, mutates, operation, tensor

_CUTS = frozenset({"cat", "slice", "narrow", "split", "split_with_sizes", "chunk", "unsafe_chunk", "slice_scatter"})
_CHOICES = frozenset({"where", "masked_fill", "index_fill", "fill", "copy", "zero", "lift_fresh_copy", "detach"})
_MASKS = frozenset(
    {"zeros_like", "ones_like", "full_like", "zeros", "ones", "full", "arange", "new_zeros", "new_ones", "new_full"}
    | {"lt", "le", "gt", "ge", "eq", "ne", "logical_not", "logical_and", "logical_or", "bitwise_not", "bitwise_and"}
    | {"remainder", "floor_divide", "unsqueeze", "view", "expand", "to"}
)

# A slice assignment of a mask made on the spot, with the function written out by hand, has about twenty operations.
_LONGEST = 40
# Channels times sample points, in elements; above it a region is not run.
_LARGEST = 1 << 22


def region_of(
    start: Node, reader: Node, effects: Effects, is_leaf: Callable[[Node], bool]
) -> tuple[list[Node], list[Node]] | None:
    """The nodes ``start`` is computed from down to leaves, writes to their memory included; and those leaves.

    Writes after ``reader``, for whom the value is wanted, do not count. None when anything else is met.
    """
    region: set[Node] = set()
    leaves: list[Node] = []
    pending, last = [start], effects.position[reader]
    while pending:
        node = pending.pop()
        if node in region or node in leaves:
            continue
        found = is_leaf(node)
        if found:
            leaves.append(node)
        elif not _allowed(node):
            return None
        else:
            region.add(node)
            pending += node.all_input_nodes
        pending += [writer for writer in effects.writers([node]) if effects.position[writer] <= last]
        if len(region) > _LONGEST:
            return None
    return ordered(region), leaves


def _allowed(node: Node) -> bool:
    if node.op == "get_attr":
        return True
    if node.op != "call_function":
        return False
    name = operation(node)
    name = name.removesuffix("_") if mutates(node) else name
    known = elementwise(node) or name in _CUTS | _CHOICES | _MASKS | CASTS | COPIES
    return known or getattr(node.target, "__name__", "") == "getitem"


def partly(region: Sequence[Node], leaf: Node, result: Node, axis: int) -> tuple[str, tuple[int, int]] | None:
    """The function that ``region`` applies to the channels ``[start, stop)`` of ``leaf``, passing on all others.

    ``axis`` is that of the channels; ``result`` is in ``region``, or ``leaf`` itself where its memory is written. None:
    no known function, more than one, or channels that do not lie side by side.
    """
    shape = list(shape_of(leaf))
    width = shape[axis]
    points = sample_points(region)
    if not isinstance(width, int) or width * len(points) > _LARGEST or any(tensor(node) is None for node in [leaf]):
        return None
    place = 0 if axis % len(shape) != 0 else -1
    sizes = [1] * len(shape)
    sizes[axis], sizes[place] = width, len(points)
    spread = [1] * len(shape)
    spread[place] = len(points)
    sample = points.view(spread).expand(sizes)
    with concretely():
        try:
            made = run(region, {leaf: sample.clone()}, double=True)[result]
        except Exception:
            return None  # something in it needs the sizes of this graph: simply not recognised
        if not isinstance(made, Tensor) or made.shape != sample.shape:
            return None
        return _by_channel(made.movedim(axis, 0).reshape(width, len(points)), points)


def _by_channel(made: Tensor, points: Tensor) -> tuple[str, tuple[int, int]] | None:
    """``made[channel, point]`` as one function on a run of channels and the identity on the rest."""
    changed = ((made - points).abs() > 1e-6).any(dim=1)
    where = torch.nonzero(changed).flatten().tolist()
    if not where or where[-1] - where[0] + 1 != len(where):
        return None
    first = made[where[0]]
    name = nearest(first, points)
    if name is None or not torch.equal(made[where], first.expand(len(where), -1)):
        return None
    return name, (where[0], where[-1] + 1)
