"""Guidance at half price: steps whose unconditional half is left out, or is a sum of what was computed before."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .base import PlanContext, UserError, positive
from .guidance_half import ConditionalHalf, guided_regions
from .plan import Plan
from .reuse import CachePolicy, Moment, Tracker

Row = tuple[tuple[float, ...], tuple[float, ...]]
Settings = TypeVar("Settings", bound="_Guided")


@dataclass(frozen=True)
class _Guided(CachePolicy):
    """What both policies share: each region's policy knows the half it runs. That is no setting and not compared."""

    @property
    def longest_run(self) -> int | None:
        return None

    def _bound(self: Settings, half: ConditionalHalf) -> Settings:
        policy = copy.copy(self)
        object.__setattr__(policy, "half", half)
        return policy

    def plan(self, context: PlanContext) -> Plan:
        """A region for each guidance site."""
        return guided_regions(context, self, self._bound)


@dataclass(frozen=True)
class AdaptiveGuidance(_Guided):
    """Adaptive Guidance: once the conditional and unconditional outputs agree, only the conditional one is computed.

    Castillo et al. 2023, "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models"
    (https://arxiv.org/abs/2312.12487). From the first step at which the cosine between c and u (the smallest over the
    batch) reaches ``threshold``, the network runs on the conditional half of the batch and c takes the place of
    u + s (c - u).

    Args:
        threshold: the cosine, up to 1; the paper explores 0.991 to 0.996. Above 1 is the identity.

    Raises:
        ValueError, TypeError: a threshold below 0 or no number.
    """

    threshold: float = 0.991

    def __post_init__(self) -> None:
        positive("threshold", self.threshold, kind=float)

    @property
    def identity(self) -> bool:
        return self.threshold > 1

    def tracker(self, role: str = "") -> Tracker:
        return AdaptiveTracker(self.threshold, getattr(self, "half", None))


class AdaptiveTracker(Tracker):
    """Exits are (guided output, c, u)."""

    def __init__(self, threshold: float, half: ConditionalHalf | None) -> None:
        self.threshold = threshold
        self.half = half
        self.cosine = -1.0

    def decide(self, moment: Moment, entries: Sequence[Tensor]) -> bool:
        self.indicator = self.cosine
        return self.cosine >= self.threshold

    @torch.no_grad()
    def observe(self, moment: Moment, entries: Sequence[Tensor], exits: Sequence[Tensor]) -> None:
        _, c, u = exits
        # Once off, stays off: the cosine is not looked at again unless the call was computed after all.
        self.cosine = float(torch.cosine_similarity(c.flatten(1).float(), u.flatten(1).float(), dim=1).min())
        self.ready = True

    def predict(self, moment: Moment, entries: Sequence[Tensor]) -> tuple[Any, ...]:
        assert self.half is not None
        c = self.half.run(entries)
        return c, c, c


@dataclass(frozen=True)
class LinearGuidance(_Guided):
    """LinearAG: at some steps the unconditional output is a fixed linear combination of earlier outputs.

    Castillo et al. 2023 (https://arxiv.org/abs/2312.12487), section 5: u_t = sum a_i c_(t-i) + sum b_i u_(t-i), with
    coefficients fitted to recorded trajectories (:func:`laconic.fit_guidance`) of one solver, number of steps, strength
    and null prompt.

    Args:
        coefficients: a row for each step: None to compute both halves, or ``(a, b)`` where ``a[0]`` multiplies the
            current c, ``a[i]`` and ``b[i - 1]`` the c and u of i steps before. ``((1.0,), ())`` leaves guidance out.
            Only None is the identity.

    Raises:
        ValueError, TypeError: not such rows. When a model runs, UserError if the session has another number of steps.
    """

    coefficients: Any

    def __post_init__(self) -> None:
        if not isinstance(self.coefficients, list | tuple) or not self.coefficients:
            raise TypeError(f"coefficients must be a sequence with a row for each step, not {self.coefficients!r}")
        object.__setattr__(self, "coefficients", tuple(map(_row, self.coefficients)))
        for step, row in enumerate(self.coefficients):
            if row is not None and max(len(row[0]) - 1, len(row[1])) > step:
                raise ValueError(f"the coefficients of step {step} reach back before the first step")

    @property
    def identity(self) -> bool:
        return all(row is None for row in self.coefficients)

    @property
    def dynamic(self) -> bool:
        return False

    def tracker(self, role: str = "") -> Tracker:
        return LinearTracker(self.coefficients, getattr(self, "half", None))


class LinearTracker(Tracker):
    """Exits are (guided output, c, u); ``past`` holds (c, u) of the latest steps, newest first, u as it was used."""

    def __init__(self, coefficients: Sequence[Row | None], half: ConditionalHalf | None) -> None:
        self.coefficients = coefficients
        self.half = half
        self.reach = max((max(len(row[0]) - 1, len(row[1])) for row in coefficients if row is not None), default=0)
        self.past: list[tuple[Tensor, Tensor]] = []
        self.remembered = 0
        self.ready = True

    def decide(self, moment: Moment, entries: Sequence[Tensor]) -> bool:
        if moment.steps != len(self.coefficients):
            raise UserError(f"there are {len(self.coefficients)} rows of coefficients and {moment.steps} steps")
        row = self.coefficients[moment.step] if not moment.beyond else None
        return row is not None and max(len(row[0]) - 1, len(row[1])) <= len(self.past)

    @torch.no_grad()
    def observe(self, moment: Moment, entries: Sequence[Tensor], exits: Sequence[Tensor]) -> None:
        self._remember(exits[1], exits[2])

    @torch.no_grad()
    def predict(self, moment: Moment, entries: Sequence[Tensor]) -> tuple[Any, ...]:
        assert self.half is not None
        row = self.coefficients[moment.step]
        assert row is not None
        c = self.half.run(entries)
        u = row[0][0] * c
        for weight, (before, _) in zip(row[0][1:], self.past, strict=False):
            u = u + weight * before
        for weight, (_, before) in zip(row[1], self.past, strict=False):
            u = u + weight * before
        self._remember(c, u)
        return u + self.half.strength(entries) * (c - u), c, u

    def _remember(self, c: Tensor, u: Tensor) -> None:
        if self.reach:
            place = self.remembered % self.reach
            self.remembered += 1
            self.past = [(self.keep(f"c {place}", c), self.keep(f"u {place}", u)), *self.past][: self.reach]


def fit_guidance(conditional: Tensor, unconditional: Tensor, *, history: int = 2) -> tuple[Row | None, ...]:
    """Coefficients for ``cache("linear-ag")`` by least squares: every other step of the first half, then no guidance.

    Args:
        conditional, unconditional: ``[steps, ...]``, outputs recorded along guided trajectories.
        history: how many earlier steps a prediction looks at.

    Raises:
        ValueError: the shapes differ. TypeError: ``history`` is no integer.
    """
    positive("history", history)
    if conditional.shape != unconditional.shape:
        raise ValueError(f"shapes differ: {tuple(conditional.shape)} and {tuple(unconditional.shape)}")
    steps = len(conditional)
    c, u = conditional.flatten(1).double(), unconditional.flatten(1).double()
    rows: list[Row | None] = []
    for step in range(steps):
        if step >= (steps + 1) // 2:
            rows.append(((1.0,), ()))
        elif step % 2 == 0:
            rows.append(None)
        else:
            back = min(history, step)
            known = torch.stack([*(c[step - i] for i in range(back + 1)), *(u[step - i] for i in range(1, back + 1))])
            # A little ridge: neighbouring steps are nearly the same vector.
            gram = known @ known.T
            gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
            weights = torch.linalg.solve(gram, known @ u[step]).tolist()
            rows.append((tuple(weights[: back + 1]), tuple(weights[back + 1 :])))
    return tuple(rows)


def _row(value: Any) -> Row | None:
    if value is None:
        return None
    try:
        a, b = value
        row = tuple(float(item) for item in a), tuple(float(item) for item in b)
    except (TypeError, ValueError):
        raise TypeError(f"a row of coefficients is None or (a, b) with numbers in each, not {value!r}") from None
    if not row[0]:
        raise ValueError("a row of coefficients needs at least a[0], the weight of the current conditional output")
    return row
