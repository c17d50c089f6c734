"""EasyCache: whole calls are skipped while the output is estimated to have moved little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import PlanContext, positive
from .latent import part, whole_network
from .plan import Plan
from .reuse import CachePolicy, Moment, Tracker


@dataclass(frozen=True)
class EasyCache(CachePolicy):
    """EasyCache: skip whole calls while the accumulated estimate of the output's change stays below a threshold.

    Zhou et al. 2025, "Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching"
    (https://arxiv.org/abs/2507.02860). One graph input, the latent, has the shape of a graph output; a skipped call
    returns latent + (output - latent) of the last computed call, other outputs as they were then. An output with more
    channels than the latent (a learned variance) is treated in that way on the latent's channels only.

    Args:
        threshold: how large the accumulated relative change may grow before the network runs again. 0 never skips.
        warmup: how many steps are computed at the beginning. The last step is always computed too.
        order: what a skipped call returns. None is the paper's latent + offset; 0 the last computed output; 1 the line
            through the last two computed outputs, over the step number (forecasting, as in TaylorSeer, Liu et al. 2025,
            https://arxiv.org/abs/2503.06923, here of the network's output). Decisions are the same.
        latent: the name of the argument that is the latent, where several inputs have the output's shape.

    Raises:
        ValueError, TypeError: a setting outside its range or of the wrong type.
    """

    threshold: float = 0.05
    warmup: int = 7
    order: int | None = None
    latent: str | None = None

    def __post_init__(self) -> None:
        positive("threshold", self.threshold, kind=float)
        positive("warmup", self.warmup)
        if self.order is not None:
            positive("order", self.order)
            if self.order > 1:
                raise ValueError(f"order must be None, 0 or 1, not {self.order}")
        if self.latent is not None and not isinstance(self.latent, str):
            raise TypeError(f"latent must be the name of an argument, not {self.latent!r}")

    @property
    def identity(self) -> bool:
        return self.threshold == 0

    def tracker(self, role: str = "") -> Tracker:
        return EasyCacheTracker(self.threshold, self.warmup, self.order)

    def plan(self, context: PlanContext) -> Plan:
        """One region, the whole graph from the latent to every computed output, or the reason there is none."""
        return whole_network(context.graph, self, self.latent)


class EasyCacheTracker(Tracker):
    """The state of EasyCache. |.| is the mean absolute value, x the latent, y the output's part of the latent's shape.

    ``rate`` (k in the paper) is |y - y_full| / |x - x_full| between the last two computed calls; ``drift`` is the sum
    of rate * |x - x_previous| / |y_full| over the calls since the last computed one. ``full`` is x and y of that call,
    ``step`` its step, and ``trend`` what predictions add: y - x (order None), or the change of y per step (order 1).
    """

    def __init__(self, threshold: float, warmup: int, order: int | None = None) -> None:
        self.threshold = threshold
        self.warmup = warmup
        self.order = order
        self.step = 0
        self.trend: Tensor | None = None
        self.drift = 0.0
        self.rate: Tensor | None = None
        self.previous: Tensor | None = None
        self.full: tuple[Tensor, Tensor] | None = None
        self.exits: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def decide(self, moment: Moment, entries: Sequence[Tensor]) -> bool:
        (x,) = entries
        moved = None if self.previous is None else _mean_abs(x - self.previous)
        self.previous = self.keep("previous", x)
        self.indicator = None
        if moment.step < self.warmup or moment.last:
            self.drift = 0.0
            return False
        if self.rate is None or moved is None or self.full is None:
            return False
        self.drift += float(self.rate * moved / _mean_abs(self.full[1]))
        self.indicator = self.drift
        # A NaN (0 / 0: the latent stood still) compares false, so it computes.
        if self.drift < self.threshold:
            return True
        self.drift = 0.0
        return False

    @torch.no_grad()
    def observe(self, moment: Moment, entries: Sequence[Tensor], exits: Sequence[Tensor]) -> None:
        self.drift = 0.0  # also when the decision to reuse was overruled
        # For the deciding stream decide() has just copied this latent; a following stream has its own.
        x = self.previous if self.previous is not None else entries[0]
        y = part(exits[0], x)
        if self.full is not None:
            change = y - self.full[1]
            self.rate = _mean_abs(change) / _mean_abs(x - self.full[0])
            if self.order == 1:
                self.trend = self.keep("trend", change / (moment.step - self.step))
        if self.order is None:
            self.trend = self.keep("trend", y - x)
        self.exits = tuple(self.keep(f"exit {index}", value) for index, value in enumerate(exits))
        x = self.keep("x", x)
        self.full, self.step = (x, part(self.exits[0], x)), moment.step
        self.ready = True

    @torch.no_grad()
    def predict(self, moment: Moment, entries: Sequence[Tensor]) -> tuple[Any, ...]:
        assert self.full is not None, "predict needs a computed call"
        x, (kept, *others) = entries[0], self.exits
        if self.trend is None:
            moved = self.full[1].clone()
        elif self.order is None:
            moved = x + self.trend
        else:
            moved = self.full[1] + (moment.step - self.step) * self.trend
        moved = moved.to(kept.dtype)
        if kept.shape != x.shape:
            whole = kept.clone()
            part(whole, x).copy_(moved)
            moved = whole
        return (moved, *(value.clone() for value in others))


def _mean_abs(value: Tensor) -> Tensor:
    # Half-precision sums overflow or stall, so the mean is taken in fp32.
    return value.abs().mean(dtype=torch.float32 if value.dtype != torch.float64 else None)
