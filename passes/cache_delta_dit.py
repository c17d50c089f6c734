"""Delta-DiT: the rear blocks are reused while the image takes shape, the front ones while its details do."""

from __future__ import annotations

from dataclasses import dataclass

from ..patterns.reasons import Reason
from ..patterns.sites import Block
from .base import PlanContext, positive
from .cache_levels import found_stacks
from .cached_regions import around_blocks
from .forecast import ForecastTracker
from .plan import Plan
from .reuse import CachePolicy, Moment, Tracker, unfit


@dataclass(frozen=True)
class DeltaDiT(CachePolicy):
    """Delta-DiT: between refreshes a group of blocks adds to its input what it added at the last one.

    Chen et al. 2024, "Delta-DiT: A Training-Free Acceleration Method Tailored for Diffusion Transformers"
    (https://arxiv.org/abs/2406.01125). What is kept is the increment G(u) - u of the group, per stream, so that the
    current input is never lost. Before the switch the group is the last ``blocks`` blocks, after it the first ones; a
    refresh every ``interval`` steps, at the switch and at the last step.

    Args:
        interval: one step in ``interval`` computes the whole network. 1 is the identity.
        blocks: how many blocks a group has, over all stacks in order; more than there are means all of them.
        switch: the step from which the front blocks are reused; None is half of the steps.

    Raises:
        ValueError, TypeError: a setting outside its range or of the wrong type.
    """

    interval: int = 2
    blocks: int = 8
    switch: int | None = None

    def __post_init__(self) -> None:
        positive("interval", self.interval, zero=False)
        positive("blocks", self.blocks, zero=False)
        if self.switch is not None:
            positive("switch", self.switch)

    @property
    def identity(self) -> bool:
        return self.interval == 1

    @property
    def longest_run(self) -> int | None:
        return None

    @property
    def dynamic(self) -> bool:
        return False

    def due(self, moment: Moment, part: str) -> bool:
        """Whether the blocks of a part (``"front"``, ``"rear"``, or ``"both"``: in both groups) compute in a step."""
        switch = moment.steps // 2 if self.switch is None else self.switch
        begin, active = (0, "rear") if moment.step < switch else (switch, "front")
        refresh = (moment.step - begin) % self.interval == 0 or moment.last
        return refresh or part not in (active, "both")

    def tracker(self, role: str = "") -> Tracker:
        part = role.split()[0]
        return ForecastTracker(lambda moment: self.due(moment, part), increments=True)

    def plan(self, context: PlanContext) -> Plan:
        """Regions for the blocks in the front group, in both and in the rear one, cut where a stack ends."""
        found = unfit(context.graph) or found_stacks(context)
        if isinstance(found, Reason):
            return Plan(refusals=[(None, found)])
        total = sum(map(len, found))
        size = min(self.blocks, total)
        plan = Plan()
        index = 0
        for number, stack in enumerate(found):
            groups: dict[str, list[Block]] = {"front": [], "both": [], "rear": []}
            for block in stack:
                front, rear = index < size, index >= total - size
                if front or rear:
                    groups["both" if front and rear else "front" if front else "rear"].append(block)
                index += 1
            for part, blocks in groups.items():
                if not blocks:
                    continue
                region = around_blocks(context.graph, self, blocks, f"{part} of stack {number}")
                if isinstance(region, Reason):
                    plan.refusals.append((blocks[0], region))
                else:
                    plan.regions.append(region)
        return plan
