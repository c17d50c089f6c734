"""First-block cache: the first block always runs, and what it adds says whether the others need to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..patterns.reasons import Reason
from .base import PlanContext, positive
from .cache_levels import found_stacks
from .cached_regions import around_blocks
from .forecast import ForecastTracker
from .plan import Plan
from .reuse import CachePolicy, Moment, Tracker, unfit


@dataclass(frozen=True)
class FirstBlock(CachePolicy):
    """First-block cache: while the first block adds nearly what it did, the others add what they did.

    ParaAttention's rule (https://github.com/chengzeyi/ParaAttention; diffusers calls it FirstBlockCache): the first
    block's residual r = F(x) - x is compared with that of the last computed step, |r - r'| / |r'| in mean absolute
    values; below ``threshold`` all later blocks are replaced by their input plus their increment of that step. Where a
    model has several stacks of blocks, each keeps its own increment and all follow the first block of the first.

    Args:
        threshold: the largest relative change of the residual at which the rest is reused. 0 never reuses.
        warmup: how many steps are computed at the beginning. The last step is always computed too.
        max_consecutive: how many steps in a row may be reused; None: no limit.
        order: of the increments' forecast: 0 keeps the last one, 1 or 2 a polynomial through the last computed ones.

    Raises:
        ValueError, TypeError: a setting outside its range or of the wrong type.
    """

    threshold: float = 0.1
    warmup: int = 3
    max_consecutive: int | None = None
    order: int = 0

    def __post_init__(self) -> None:
        positive("threshold", self.threshold, kind=float)
        positive("warmup", self.warmup)
        positive("order", self.order)
        if self.order > 2:
            raise ValueError(f"order must be 0, 1 or 2, not {self.order}")
        if self.max_consecutive is not None:
            positive("max_consecutive", self.max_consecutive)

    @property
    def identity(self) -> bool:
        return self.threshold == 0 or self.max_consecutive == 0

    @property
    def longest_run(self) -> int | None:
        return self.max_consecutive

    def tracker(self, role: str = "") -> Tracker:
        return FirstBlockTracker(self.threshold, self.warmup, self.order)

    def plan(self, context: PlanContext) -> Plan:
        """A region for the blocks of each stack, without the first block of the first one."""
        found = unfit(context.graph) or found_stacks(context)
        if isinstance(found, Reason):
            return Plan(refusals=[(None, found)])
        first = found[0][0]
        watch = (first.entries[0], first.exits[0])
        plan = Plan()
        for number, blocks in enumerate(found):
            rest = blocks[1:] if number == 0 else blocks
            region = around_blocks(context.graph, self, rest, f"rest of stack {number}")
            if isinstance(region, Reason):
                plan.refusals.append((rest[0], region))
            else:
                # A value may be watched and entered both, so that the last two are always the first block's.
                plan.regions.append(dataclasses.replace(region, entries=(*region.entries, *watch)))
        return plan


class FirstBlockTracker(ForecastTracker):
    """Entries are the stream's, then what went into the first block and what came out of it."""

    def __init__(self, threshold: float, warmup: int, order: int = 0) -> None:
        super().__init__(lambda moment: False, order, increments=True)
        self.threshold = threshold
        self.warmup = warmup
        self.residual: Tensor | None = None

    @torch.no_grad()
    def decide(self, moment: Moment, entries: Sequence[Tensor]) -> bool:
        self.indicator = None
        if moment.step < self.warmup or moment.last or self.residual is None:
            return False
        change = _mean_abs(entries[-1] - entries[-2] - self.residual) / _mean_abs(self.residual)
        self.indicator = float(change)
        # A NaN compares false, so it computes.
        return self.indicator < self.threshold

    @torch.no_grad()
    def observe(self, moment: Moment, entries: Sequence[Tensor], exits: Sequence[Tensor]) -> None:
        self.residual = self.keep("residual", entries[-1] - entries[-2])
        super().observe(moment, entries[:-2], exits)

    def predict(self, moment: Moment, entries: Sequence[Tensor]) -> tuple[Any, ...]:
        return super().predict(moment, entries[:-2])


def _mean_abs(value: Tensor) -> Tensor:
    return value.abs().mean(dtype=torch.float32 if value.dtype != torch.float64 else None)
