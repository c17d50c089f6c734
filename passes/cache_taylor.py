"""TaylorSeer: most calls are forecast by a polynomial through the last computed ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from ..patterns.reasons import Reason
from .base import PlanContext, positive
from .cache_levels import check_level, regions_at
from .forecast import ForecastTracker
from .latent import argument_name, moving_inputs
from .plan import Plan
from .reuse import CachePolicy, Moment, Tracker


@dataclass(frozen=True)
class Taylor(CachePolicy):
    """TaylorSeer: compute every ``interval``-th step, forecast the others by finite differences.

    Liu et al. 2025, "From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers"
    (https://arxiv.org/abs/2503.06923). The last step is always computed.

    Args:
        interval: one step in ``interval`` is computed after the warm-up. 1 computes every step: the identity.
        order: of the forecast: 0 keeps the last value, 1 continues a line, 2 a parabola.
        warmup: how many steps are computed at the beginning, at least 1; intervals are counted from the last of them.
        level: what is forecast: the output of the whole ``"network"``, the increment of each stack of ``"blocks"``
            (everything around them is computed), or each attention's and feed-forward's output before its gate
            (``"layers"``, as in the paper).
        repay: the part, 0 to 1, of the error of past forecasts that later ones make good; for samplers that add each
            output to the sample in steps of about equal size. At level "network" only.
        time: the name of the argument that holds the time of a call; forecasts then run over it, not the step number.
            Reading it costs a synchronisation on a GPU.
        latent: the name of the argument that is the latent, where several inputs have the output's shape.

    Raises:
        ValueError, TypeError: a setting outside its range or of the wrong type.
    """

    interval: int = 2
    order: int = 1
    warmup: int = 1
    level: str = "network"
    repay: float = 0.0
    time: str | None = None
    latent: str | None = None

    def __post_init__(self) -> None:
        positive("interval", self.interval, zero=False)
        positive("order", self.order)
        positive("warmup", self.warmup, zero=False)
        positive("repay", self.repay, kind=float)
        check_level(self.level)
        if self.order > 2:
            raise ValueError(f"order must be 0, 1 or 2, not {self.order}")
        if self.repay > 1:
            raise ValueError(f"repay must be at most 1, not {self.repay}")
        if self.repay and self.level != "network":
            raise ValueError(f'repay needs level="network", not {self.level!r}')
        for name in ("time", "latent"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name} must be the name of an argument, not {value!r}")

    @property
    def identity(self) -> bool:
        return self.interval == 1

    @property
    def longest_run(self) -> int | None:
        return None

    @property
    def dynamic(self) -> bool:
        return False

    def due(self, moment: Moment) -> bool:
        """Whether the step is computed."""
        return moment.step < self.warmup or moment.last or (moment.step - self.warmup + 1) % self.interval == 0

    def tracker(self, role: str = "") -> Tracker:
        return ForecastTracker(
            self.due,
            self.order,
            increments=self.level == "blocks",
            timed=self.time is not None,
            repay=self.repay,
        )

    def plan(self, context: PlanContext) -> Plan:
        """The regions of the level, or why there are none."""
        watch: tuple[Node, ...] = ()
        if self.time is not None:
            inputs = [node for node in moving_inputs(context.graph) if isinstance(node.meta.get("val"), Tensor)]
            named = [node for node in inputs if argument_name(node) == self.time]
            if not named:
                names = ", ".join(argument_name(node) for node in inputs)
                text = f"no tensor argument is named {self.time!r}; there are {names or 'none'}"
                return Plan(refusals=[(None, Reason("no-latent", text))])
            watch = (named[0],)
        return regions_at(self.level, context, self, self.latent, watch)
