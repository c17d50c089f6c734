"""What a rotary position embedding means, and the sizes it is proven at."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .reference import Read, meaning
from .sites import Rope

TURNS = ("half", "neighbour", "regrouped")

FEATURES = ("D", "H", "W")
"""Names that are no rows: all features, pairs of them, and the numbers of a table where only some are turned."""

# Sizes up to this are left as they are: written in an argument they may be an axis or an index.
_SMALL = 8


def turned(x: Tensor, turn: str) -> Tensor:
    """``x [..., D]`` turned by a right angle in each pair of features: ``(a, b)`` becomes ``(-b, a)``.

    ``half`` pairs the features ``i`` and ``i + D/2``, ``neighbour`` the features ``2i`` and ``2i + 1``.
    """
    if turn == "half":
        first, second = x.chunk(2, -1)
        return torch.cat([-second, first], -1)
    return torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)


def _for_each_feature(table: Tensor, width: int, turn: str) -> Tensor:
    """A table with a number for each pair, as one with a number for each of ``width`` features."""
    if 2 * table.shape[-1] != width:
        return table
    return torch.cat([table, table], -1) if turn == "half" else table.repeat_interleave(2, -1)


def _small(site: Rope) -> dict[str, int]:
    resize = _resize(site, {})
    return {name: size if name in FEATURES else resize(size) for name, size in site.dimensions.items()}


def _resize(site: Rope, sizes: Mapping[str, int]) -> Callable[[int], int]:
    """Rows get few, by the size that is written; features, and rows that could be taken for them, stay."""
    wide = site.dimensions["D"]
    parts = {size for name, size in site.dimensions.items() if name in FEATURES}
    kept = {size for part in parts for size in (part, 2 * part, part // 2, wide - part, wide - 2 * part)}
    rows = [size for name, size in site.dimensions.items() if name not in FEATURES]
    few = iter((2, 3, 4, 5, 6))
    changed: dict[int, int] = {}
    for size in rows:
        if size > _SMALL and size not in kept and size not in changed:
            changed[size] = next(few, 2)
    for first in range(len(rows)):
        for last in range(first + 2, len(rows) + 1):
            size = math.prod(rows[first:last])
            if size > _SMALL and size not in kept:
                changed.setdefault(size, math.prod(changed.get(row, row) for row in rows[first:last]))
    return lambda size: changed.get(size, size)


@meaning(Rope, small=_small, resize=_resize)
def rope(site: Rope, read: Read) -> Tensor:
    """``x cos + turned(x) sin`` (Su et al. 2021, "RoFormer", equation 34) on ``features``; the others as they are."""
    x, cos = read(site.input), read(site.cos)
    start, stop = site.features
    cos, sin = (cos.real, cos.imag) if site.sin is None else (cos, read(site.sin))
    part, turn = x[..., start:stop], site.turn
    if turn == "regrouped":
        part, turn = torch.cat([part[..., 0::2], part[..., 1::2]], -1), "half"
    cos, sin = (_for_each_feature(table, stop - start, turn) for table in (cos, sin))
    made = part * cos + turned(part, turn) * sin
    return torch.cat([x[..., :start], made, x[..., stop:]], -1)
