"""Which axis of an operand is which axis of a result, and which of them is time: found by changing single elements.

An element of an operand is changed, and the region run again. The first element of the result that changes moves along
one axis when the changed element does; an axis whose index does not move it is summed over. No spelling is looked at,
so a chunked, a parallel and a stepwise form of one recurrence come out alike. Everything runs in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from .trial import Region

MAXIMUM_RANK = 6


@dataclass(frozen=True)
class Influence:
    """``axes[i]`` is the axis of the result that axis ``i`` of the operand is (None: summed over, or of size 1).

    ``spread`` are the axes of the result along which one element reaches further than its own index.
    """

    axes: tuple[int | None, ...]
    summed: tuple[int, ...]
    spread: frozenset[int]

    @property
    def clock(self) -> tuple[int, ...]:
        """The axes of the result that the operand has and along which it reaches further: time."""
        return tuple(sorted(axis for axis in self.spread if axis in self.axes))


class Probe:
    """A region of one output, at one random point."""

    def __init__(self, region: Region, output: Node, values: Mapping[Node, Tensor], *, shrunk: bool) -> None:
        self.region = region
        self.output = output
        self.values = dict(values)
        self.shrunk = shrunk
        self.result = self._run(self.values)

    def _run(self, values: Mapping[Node, Tensor]) -> Tensor:
        result: Tensor = self.region.run(values, shrunk=self.shrunk)[self.output]
        return result

    def influence(self, operand: Node) -> Influence | None:
        """How ``operand`` reaches the result; None when one element reaches nothing at all."""
        value = self.values[operand]
        base = [min(1, max(size - 2, 0)) for size in value.shape]
        changed = self._changed(operand, base)
        first = _first(changed)
        if first is None:
            return None
        axes: list[int | None] = []
        summed = []
        for axis, size in enumerate(value.shape):
            if size == 1:
                axes.append(None)
                continue
            moved = _first(self._changed(operand, [at + (place == axis) for place, at in enumerate(base)]))
            shifts = [place for place in range(changed.dim()) if moved is not None and moved[place] != first[place]]
            if len(shifts) > 1:
                return None
            axes.append(shifts[0] if shifts else None)
            if not shifts:
                summed.append(axis)
        spread = frozenset(
            axis
            for axis in range(changed.dim())
            if int(changed.any(tuple(a for a in range(changed.dim()) if a != axis)).sum()) > 1
        )
        return Influence(tuple(axes), tuple(summed), spread)

    def _changed(self, operand: Node, index: Sequence[int]) -> Tensor:
        value = self.values[operand].clone()
        value[tuple(index)] += 0.37
        difference = (self._run({**self.values, operand: value}) - self.result).abs()
        return difference > 1e-11 * max(1.0, float(self.result.abs().max()))


def _first(changed: Tensor) -> tuple[int, ...] | None:
    places = changed.nonzero()
    return tuple(int(item) for item in places[0]) if len(places) else None


def canonical(
    value: Tensor, influence: Influence, batch: Sequence[int], time: Sequence[int], own: Sequence[int], like: Tensor
) -> Tensor:
    """An operand as ``[batch, time, own]`` with the sizes of the result ``like``; ``own`` are axes of the operand.

    Axes of the result that the operand lacks are expanded.
    """
    place = {axis: index for index, axis in enumerate(influence.axes) if axis is not None}
    named = [*(place.get(axis) for axis in (*batch, *time)), *own]
    kept = [axis for axis in named if axis is not None]
    moved = value.permute(*kept, *(axis for axis in range(value.dim()) if axis not in kept))
    moved = moved.reshape(moved.shape[: len(kept)])
    index = tuple(None if axis is None else slice(None) for axis in named)
    moved = moved[index]
    sizes = [like.shape[axis] for axis in (*batch, *time)]
    moved = moved.expand(*sizes, *moved.shape[len(sizes) :])
    counts = [1, 1, 1]
    for number, axes in enumerate((batch, time)):
        for axis in axes:
            counts[number] *= like.shape[axis]
    for size in moved.shape[len(sizes) :]:
        counts[2] *= size
    return moved.reshape(counts)


def gated(
    decay: Tensor | None, value: Tensor, key: Tensor | None, query: Tensor | None, erase: Tensor | None
) -> Tensor:
    """``y_t = q_t S_t`` with ``S_t = g_t S_{t-1} + k_t (v_t - e_t g_t S_{t-1})``; all operands ``[N, T, .]``.

    ``decay [N, T, 1 or K]``, ``value [N, T, V]``, ``key, query, erase [N, T, K]``; without a key the state is a vector
    and returned as it is, without a decay nothing is forgotten. Source: Yang et al.,
    "Gated Delta Networks" (2024), equation 10.
    """
    number, length, width = value.shape
    rows = 1 if key is None else key.shape[-1]
    state = torch.zeros(number, rows, width, dtype=value.dtype)
    results = []
    for step in range(length):
        if decay is not None:
            state = state * decay[:, step].unsqueeze(-1)
        new = value[:, step].unsqueeze(1)
        if erase is not None:
            new = new - erase[:, step].unsqueeze(1) @ state
        state = state + (new if key is None else key[:, step].unsqueeze(-1) * new)
        results.append(state[:, 0] if query is None else (query[:, step].unsqueeze(1) @ state)[:, 0])
    return torch.stack(results, 1)
