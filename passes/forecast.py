"""Predicting what a region would compute from what it computed before: polynomials through the last computed calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .reuse import Moment, Tracker


def lagrange(times: Sequence[float], time: float) -> list[float]:
    """Weights that give, at ``time``, the polynomial through values at the (distinct) ``times``; they sum to one."""
    weights = []
    for index, own in enumerate(times):
        weight = 1.0
        for other_index, other in enumerate(times):
            if other_index != index:
                weight *= (time - other) / (own - other)
        weights.append(weight)
    return weights


def combine(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """``sum(w * v)``, a new tensor; half precision is summed in fp32."""
    first = values[0]
    wide = first.float() if first.dtype in (torch.float16, torch.bfloat16) else first
    total = wide * weights[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total.add_(value.to(total.dtype), alpha=weight)
    return total.to(first.dtype)


class ForecastTracker(Tracker):
    """Computes when ``due(moment)`` and otherwise continues the polynomial through the last computed calls.

    Finite differences as in TaylorSeer (Liu et al. 2025, https://arxiv.org/abs/2503.06923, equation 5), in Lagrange's
    form so that computed calls need not be equally spaced. Integer exits are kept as they were.

    Args:
        due: whether the call of a moment is to be computed.
        order: of the polynomial: 0 keeps the last value, 1 a line, 2 a parabola; lower while there are too few calls.
        increments: keep what the region adds to its entries, by position, wherever shape and dtype agree.
        timed: the last entry is the time of the call (a number, or one per sample), which takes the step's place.
        repay: the part, 0 to 1, of the error of past predictions that the next one makes good. Once the call behind a
            gap is computed, the polynomial through both its ends shows how far the predictions were off; a sampler
            that adds each output to its sample takes the correction as if it had come in time.
    """

    def __init__(
        self,
        due: Callable[[Moment], bool],
        order: int = 0,
        *,
        increments: bool = False,
        timed: bool = False,
        repay: float = 0.0,
    ) -> None:
        self.due = due
        self.order = order
        self.increments = increments
        self.timed = timed
        self.repay = repay
        # The time of a computed call, its exits, and which of the buffers they are in.
        self.samples: list[tuple[float, tuple[Tensor, ...], int]] = []
        self.predictions: list[tuple[float, Tensor]] = []
        self.debt: Tensor | None = None

    def decide(self, moment: Moment, entries: Sequence[Tensor]) -> bool:
        return not self.due(moment)

    @torch.no_grad()
    def observe(self, moment: Moment, entries: Sequence[Tensor], exits: Sequence[Tensor]) -> None:
        time = self._time(moment, entries)
        # A polynomial through both ends of a gap needs a point more than the prediction had.
        longest = self.order + 1 + bool(self.repay)
        self.samples = [item for item in self.samples if item[0] != time][1 - longest :] if longest > 1 else []
        # The oldest sample's buffers take the new one.
        free = min(set(range(longest)) - {place for _, _, place in self.samples})
        kept = tuple(
            self.keep(f"{free}.{index}", exit if base is None else exit - base)
            for index, (exit, base) in enumerate(zip(exits, self._bases(entries, exits), strict=True))
        )
        self.samples.append((time, kept, free))
        if self.repay:
            self._count_debt()
        self.ready = True

    @torch.no_grad()
    def predict(self, moment: Moment, entries: Sequence[Tensor]) -> tuple[Any, ...]:
        time = self._time(moment, entries)
        latest = self.samples[-1][1]
        values = [self._at(time, index) for index in range(len(latest))]
        if self.repay and latest[0].is_floating_point():
            self.predictions.append((time, self.keep(f"prediction {len(self.predictions)}", values[0])))
            if self.debt is not None:
                values[0].sub_(self.debt)
                self.debt = None
        bases = self._bases(entries, values)
        return tuple(value if base is None else value + base for value, base in zip(values, bases, strict=True))

    def _at(self, time: float, index: int, points: int | None = None) -> Tensor:
        samples = self.samples[-(self.order + 1 if points is None else points) :]
        values = [sample[index] for _, sample, _ in samples]
        if len(values) == 1 or not values[-1].is_floating_point():
            return values[-1].clone()
        return combine(lagrange([moment for moment, *_ in samples], time), values)

    def _count_debt(self) -> None:
        for time, predicted in self.predictions:
            missed = (predicted - self._at(time, 0, len(self.samples))) * self.repay
            self.debt = self.keep("debt", missed if self.debt is None else self.debt + missed)
        self.predictions = []

    def _time(self, moment: Moment, entries: Sequence[Tensor]) -> float:
        return float(entries[-1].flatten()[0]) if self.timed else float(moment.step)

    def _bases(self, entries: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor | None]:
        """For each exit the entry it adds to, or None."""
        bases: list[Tensor | None] = [None] * len(values)
        if self.increments:
            for index, (entry, value) in enumerate(zip(entries, values, strict=False)):
                if entry.shape == value.shape and entry.dtype == value.dtype and value.is_floating_point():
                    bases[index] = entry
        return bases
