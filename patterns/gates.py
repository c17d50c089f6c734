"""How a step depends on the state it is handed, found by running it: ``none``, ``scalar``, ``diagonal``, ``delta``,
``dense`` or ``nonlinear``.

A step is affine in the state when ``f(u + v) - f(u) - f(v) + f(0)`` vanishes at random points of several sizes. Its
linear part ``L`` is then looked at by what it does to random states. Everything runs in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from .evaluate import concretely
from .reasons import Reason
from .trial import CANNOT_BE_RUN, Region, sample

KINDS = ("none", "scalar", "diagonal", "delta", "dense", "nonlinear")
"""From the simplest to the most general."""
_TOLERANCE = 1e-8
_SIZES = (1e-3, 1.0, 30.0, 1e6)
"""Magnitudes of the states tried: a clamp or a saturation shows at one of them."""


@dataclass(frozen=True)
class Gate:
    """``kind`` is one of :data:`KINDS`; ``stabilised``: the others are carried relative to a running maximum."""

    kind: str
    stabilised: bool = False


def gate_of(
    order: Mapping[Node, int], before: Sequence[Node], reads: Sequence[Node], after: Sequence[Node]
) -> Gate | Reason:
    """The gate of the step that computes ``after`` from the states ``before`` and from ``reads``."""
    with concretely():
        region = Region(order, (*before, *reads), after, (), {})
        failure: Exception | None = None
        for shrunk in (True, False):
            try:
                return _Step(region, before, after, shrunk).gate()
            except CANNOT_BE_RUN as error:
                failure = error
    return Reason("not-proven", f"the step could not be run: {type(failure).__name__}: {failure}", (after[0].name,))


class _Step:
    def __init__(self, region: Region, before: Sequence[Node], after: Sequence[Node], shrunk: bool) -> None:
        self.region = region
        self.shrunk = shrunk
        self.after = after
        self.generator = torch.Generator().manual_seed(1)
        self.values = region.samples(self.generator, shrunk=shrunk)
        # Counters and masks that are handed on stay as they are: they say which step it is.
        real = [index for index, node in enumerate(before) if self.values[node].is_floating_point()]
        self.before = [before[index] for index in real]
        self.real = real
        if not real:
            raise ValueError("no real number is carried")

    def draw(self, size: float = 1.0) -> list[Tensor]:
        return [sample(self.values[node].shape, self.generator) * size for node in self.before]

    def zeros(self) -> list[Tensor]:
        return [torch.zeros_like(self.values[node]) for node in self.before]

    def run(self, states: Sequence[Tensor]) -> list[Tensor]:
        env = self.region.run({**self.values, **dict(zip(self.before, states, strict=True))}, shrunk=self.shrunk)
        results = [env[self.after[index]] for index in self.real]
        if any(a.shape != b.shape for a, b in zip(results, states, strict=True)):
            raise ValueError("the state changes its shape")
        return results

    def gate(self) -> Gate:
        if _is_affine(self.run, self.draw, self.zeros()):
            return Gate(self._kind(self.run))
        for index, maximum in enumerate(self.before):
            if len(self.before) > 1 and _broadcasts(self.values[maximum], [self.values[n] for n in self.before]):
                stabilised = self._relative_to(index)
                if stabilised is not None:
                    return Gate(stabilised, stabilised=True)
        return Gate("nonlinear")

    def _relative_to(self, index: int) -> str | None:
        """The gate of ``state * exp(m)`` when ``m`` (state ``index``) only keeps the numbers in range; else None."""
        others = [place for place in range(len(self.before)) if place != index]
        level = self.zeros()[index]

        def moved(states: Sequence[Tensor], shift: Tensor) -> list[Tensor]:
            inside = {
                place: value * _fit(torch.exp(-shift), value) for place, value in zip(others, states, strict=True)
            }
            results = self.run([inside.get(place, shift) for place in range(len(self.before))])
            return [results[place] * _fit(torch.exp(results[index]), results[place]) for place in others]

        def plain(states: Sequence[Tensor]) -> list[Tensor]:
            return moved(states, level)

        def draw(size: float = 1.0) -> list[Tensor]:
            return [value for place, value in enumerate(self.draw(size)) if place in others]

        zeros = [torch.zeros_like(self.values[self.before[place]]) for place in others]
        point = draw()
        shift = self.draw()[index]
        if not _all_close(moved(point, shift), plain(point)) or not _is_affine(plain, draw, zeros):
            return None
        return _kind(plain, draw, zeros)

    def _kind(self, run: Any) -> str:
        return _kind(run, self.draw, self.zeros())


def _is_affine(run: Any, draw: Any, zeros: list[Tensor]) -> bool:
    at_zero = run(zeros)
    for size in _SIZES:
        u, v = draw(size), draw(size)
        at_u, at_v, at_sum, at_three = run(u), run(v), run(_added(u, v)), run([3 * value for value in u])
        for zero, first, second, both, three in zip(at_zero, at_u, at_v, at_sum, at_three, strict=True):
            scale = max(1.0, *(float(value.abs().max()) for value in (zero, first, second))) if zero.numel() else 1.0
            if not torch.isfinite(both).all() or not torch.isfinite(three).all():
                return False
            if ((both - first - second + zero).abs() > _TOLERANCE * scale).any():
                return False
            if ((three - 3 * first + 2 * zero).abs() > _TOLERANCE * scale).any():
                return False
    return True


def _added(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _kind(run: Any, draw: Any, zeros: list[Tensor]) -> str:
    """The most general gate among the states that feed others (or all), all of them if they feed each other."""
    at_zero = run(zeros)
    number = len(zeros)

    def linear(place: int, value: Tensor) -> list[Tensor]:
        states = [value if place == index else zero for index, zero in enumerate(zeros)]
        return [result - zero for result, zero in zip(run(states), at_zero, strict=True)]

    points = draw()
    effects = [linear(place, points[place]) for place in range(number)]
    feeds = [[_moves(effects[place][index]) for index in range(number)] for place in range(number)]
    if _circular(feeds):
        return "dense"
    core = [place for place in range(number) if any(feeds[place][other] for other in range(number) if other != place)]
    kinds = [
        _alone(lambda value, place=place: linear(place, value)[place], points[place], effects[place][place])
        for place in (core or range(number))
    ]
    return max(kinds, key=KINDS.index)


def _moves(effect: Tensor) -> bool:
    return bool(effect.numel()) and float(effect.abs().max()) > 1e-12


def _circular(feeds: Sequence[Sequence[bool]]) -> bool:
    """Whether two different states feed each other, directly or through others."""
    number = len(feeds)
    reach = [[feeds[a][b] and a != b for b in range(number)] for a in range(number)]
    for middle in range(number):
        for a in range(number):
            for b in range(number):
                reach[a][b] = reach[a][b] or (reach[a][middle] and reach[middle][b])
    return any(reach[place][place] for place in range(number))


def _alone(linear: Any, point: Tensor, effect: Tensor) -> str:
    """The kind of one linear map of a state to itself."""
    factor = linear(torch.ones_like(point))
    if _close(factor * point, effect):
        return diagonal_kind(factor)
    if _is_delta(linear, point, effect) or (
        point.dim() >= 2 and _is_delta(lambda value: linear(value.mT).mT, point.mT.contiguous(), effect.mT)
    ):
        return "delta"
    return "dense"


def diagonal_kind(factor: Tensor) -> str:
    """``none``, ``scalar`` or ``diagonal`` from the numbers a state is multiplied by.

    A state with more than two axes is a batch of matrices: one number for each of them is scalar too.
    """
    if _close(factor, torch.ones_like(factor)):
        return "none"
    axes = tuple(range(-min(2, max(factor.dim() - 1, 1)), 0)) if factor.dim() else ()
    for axis in axes:
        if not _close(factor, factor.narrow(axis, 0, 1).expand_as(factor)):
            return "diagonal"
    return "scalar"


def _is_delta(linear: Any, point: Tensor, effect: Tensor) -> bool:
    """Whether the map acts on the second-last axis as a diagonal plus a matrix of rank one."""
    if point.dim() < 2 or point.shape[-2] < 4:
        return False
    size = point.shape[-2]
    columns = []
    for place in range(size):
        basis = torch.zeros_like(point)
        basis[..., place, :] = 1.0
        columns.append(linear(basis))
    # matrix[..., i, j, v]: what row j of the state gives to row i of the next one
    matrix = torch.stack(columns, -2)
    if not _close(matrix, matrix[..., :1].expand_as(matrix)):
        return False
    matrix = matrix[..., 0]
    if not _close(matrix @ point, effect):
        return False
    # Entries off the diagonal come from the rank-one part alone: every 2 x 2 minor of them vanishes.
    for i, j, k, m in ((0, 1, 2, 3), (0, 2, 1, 3), (1, 0, 3, 2), (size - 1, 0, size - 2, 1)):
        if len({i, j, k, m}) < 4:
            continue
        minor = matrix[..., i, j] * matrix[..., k, m] - matrix[..., i, m] * matrix[..., k, j]
        if (minor.abs() > _TOLERANCE * max(1.0, float(matrix.abs().max()) ** 2)).any():
            return False
    return True


def _fit(value: Tensor, like: Tensor) -> Tensor:
    """``value`` with axes of size 1 behind its own so that it broadcasts against ``like``."""
    return value.reshape(*value.shape, *(1 for _ in range(like.dim() - value.dim())))


def _broadcasts(value: Tensor, others: Sequence[Tensor]) -> bool:
    for other in others:
        if value.dim() > other.dim():
            return False
        padded = (*value.shape, *(1 for _ in range(other.dim() - value.dim())))
        if any(a not in (1, b) for a, b in zip(padded, other.shape, strict=True)):
            return False
    return True


def _close(a: Tensor, b: Tensor) -> bool:
    if not b.numel():
        return True
    scale = max(1.0, float(b.abs().max()))
    return bool(((a - b).abs() <= _TOLERANCE * scale).all())


def _all_close(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(_close(x, y) for x, y in zip(a, b, strict=True))
