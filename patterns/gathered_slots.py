"""What scores that were put together from pieces of products are: which query and which key each of them comes from.

The pieces are never read. Queries and keys get numbers for values, and each score then names its own pair; that this
is all there is to it, is left to the proof of the site.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# What is put in place of a score that nobody may see: nothing a score is added to brings it back.
_HIDDEN = -1e30

Run = Callable[[Tensor, Tensor], Tensor]
"""Scores from the two operands of the product, in float64."""


@dataclass(frozen=True, eq=False)
class Slots:
    """Scores ``[*batch, S, W]`` permuted by ``order``, of ``query`` and ``key`` (permuted to ``[*batch, tokens, D]``).

    ``keys [S, W]`` is the key that each of the W scores of a query belongs to; -1 where there is none. ``swapped``:
    the query is the right one of the operands.
    """

    query: tuple[int, ...]
    key: tuple[int, ...]
    order: tuple[int, ...]
    keys: Tensor
    scale: float
    swapped: bool

    @property
    def whole(self) -> bool:
        """True when every query has the same keys: nothing is gathered for it."""
        return bool((self.keys == self.keys[:1]).all())


def slots(run: Run, left: Sequence[int], right: Sequence[int], axis: int) -> Slots | None:
    """The slots of a softmax over ``axis`` of what ``run`` makes of operands of these shapes (features last)."""
    width = left[-1]
    if right[-1] != width:
        return None
    blank, plain = run(torch.zeros(*left), torch.zeros(*right)), run(torch.ones(*left), torch.ones(*right))
    live = blank == 0
    scale = float(plain[live][0]) / width if live.any() else 0.0
    hidden = (blank <= _HIDDEN) & (plain <= _HIDDEN)
    if scale == 0.0 or not bool((live | hidden).all()) or not bool((plain[live] == plain[live][0]).all()):
        return None
    one = _numbered(run(_numbers(left), _units(right)), live, scale, axis)
    other = _numbered(run(_units(left), _numbers(right)), live, scale, axis)
    if one is None or other is None:
        return None
    live = live.movedim(axis, -1)
    if not bool(live.any(-1).all()):
        return None
    for swapped in (False, True):
        query, key = (other, one) if swapped else (one, other)
        shapes = (right[:-1], left[:-1]) if swapped else (left[:-1], right[:-1])
        found = _read(query, key, *shapes, live, axis)
        if found is not None:
            return Slots(*found, scale, swapped)
    return None


def _numbers(shape: Sequence[int]) -> Tensor:
    """1, 2, 3, ... in the first feature of each row, nothing in the others."""
    rows = _units(shape)
    rows[..., 0] = torch.arange(1.0, rows[..., 0].numel() + 1, dtype=rows.dtype).view(rows.shape[:-1])
    return rows


def _units(shape: Sequence[int]) -> Tensor:
    rows = torch.zeros(*shape, dtype=torch.float64)
    rows[..., 0] = 1.0
    return rows


def _numbered(made: Tensor, live: Tensor, scale: float, axis: int) -> Tensor | None:
    """The row, counted from 0, that each live score was made from, slots last; 0 for others."""
    counted = torch.where(live, made / scale, 1.0)
    whole = counted.round()
    return None if bool(((counted - whole).abs() > 1e-6).any()) else (whole.long() - 1).movedim(axis, -1)


def _read(
    query: Tensor, key: Tensor, query_shape: Sequence[int], key_shape: Sequence[int], live: Tensor, axis: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], Tensor] | None:
    """The permutations of :class:`Slots` and its keys, given the row of query and key for each score."""
    first = live.int().argmax(-1, keepdim=True)
    rows = query.gather(-1, first)
    if not bool((query == rows)[live].all()) or rows.squeeze(-1).dim() != len(query_shape):
        return None
    every = torch.arange(rows.numel()).view(*query_shape) if rows.numel() == _count(query_shape) else None
    placed = next(
        (p for p in permutations(query_shape, rows.shape[:-1]) if every is not None and _is(every, p, rows)), ()
    )
    pairs = _pairs(query, key, query_shape, key_shape, live)
    if not placed or pairs is None:
        return None
    batch, row, column = pairs
    rank = len(query_shape)
    # Axes of the scores are those of the query in the order ``placed``, then the slots; canonical: batch, row, slots.
    canonical = [placed.index(axis) for axis in (*(one for one, _ in batch), row)]
    at = _indices(key, key_shape)[column].masked_fill(~live, -1).permute(*canonical, rank).flatten(0, -3)
    if not bool((at == at[:1]).all()):
        return None
    order = [canonical.index(place) for place in range(rank)]
    order.insert(axis, rank)
    return (
        (*(one for one, _ in batch), row, rank),
        (*(other for _, other in batch), column, rank),
        tuple(order),
        at[0].clone(),
    )


def _is(every: Tensor, order: Sequence[int], rows: Tensor) -> bool:
    return torch.equal(every.permute(*order), rows.squeeze(-1))


def permutations(shape: Sequence[int], wanted: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The orders of axes in which ``shape`` becomes ``wanted``."""
    for order in itertools.permutations(range(len(shape))):
        if [shape[axis] for axis in order] == list(wanted):
            yield order


def _pairs(
    query: Tensor, key: Tensor, query_shape: Sequence[int], key_shape: Sequence[int], live: Tensor
) -> tuple[list[tuple[int, int]], int, int] | None:
    """Which axes of query and key are the same batch axis, and the one of each that is left: queries and keys."""
    if len(query_shape) != len(key_shape):
        return None
    mine, theirs = _indices(query, query_shape), _indices(key, key_shape)
    # Axes of one element say nothing: they are paired with each other last.
    places = sorted(range(len(key_shape)), key=lambda place: key_shape[place] == 1)
    batch: dict[int, int] = {}
    left = []
    for place in places:
        one = next(
            (
                axis
                for axis, size in enumerate(query_shape)
                if axis not in batch and size == key_shape[place] and bool((mine[axis] == theirs[place])[live].all())
            ),
            None,
        )
        if one is None:
            left.append(place)
        else:
            batch[one] = place
    rows = [axis for axis in range(len(query_shape)) if axis not in batch]
    if len(left) != 1 or len(rows) != 1:
        return None
    return sorted(batch.items()), rows[0], left[0]


def _indices(rows: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    return torch.unravel_index(rows, tuple(shape))


def _count(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
