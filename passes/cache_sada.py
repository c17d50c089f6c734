"""SADA: a step is skipped while the sampler's trajectory bends steadily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import PlanContext, UserError, positive
from .forecast import combine, lagrange
from .latent import part, whole_network
from .plan import Plan
from .reuse import CachePolicy, Moment, Tracker
from .solvers import Solver


@dataclass(frozen=True)
class Sada(CachePolicy):
    """SADA: skip the network's next call where the drift of the sampler is stable, fill in by extrapolation.

    Jiang et al. 2025, "SADA: Stability-guided Adaptive Diffusion Acceleration" (https://arxiv.org/abs/2507.17135); the
    steps of it, not its token part. With f the drift of the last three steps, newest first, the sample is extrapolated
    by 5/8 f0 + 3/4 f1 - 3/8 f2; where it deviates from the sampler's against the second difference of f, on average
    over all elements, the step is stable. For flow matching the sign of the mean second difference decides. From
    ``multistep`` on one step in ``period`` is computed regardless.

    Args:
        solver: the sampler's levels (:func:`laconic.solver_of`); None: the output is a velocity the sampler adds.
        start: the first step that may be skipped, at least 3; None is a fifth of the steps.
        stop: the first step at the end that may not; None leaves the last three.
        max_interval: how many steps in a row may be skipped. 0 is the identity.
        multistep: where the regular phase begins; None is at 48 % of the steps.
        period: one step in ``period`` of the regular phase is computed.
        points: computed clean estimates that a polynomial goes through in the regular phase (with a solver whose
            prediction is not a flow; flows are continued by a line).
        latent: the name of the argument that is the latent, where several inputs have the output's shape.

    Raises:
        ValueError, TypeError: a setting outside its range. When a model runs, UserError if the solver has another
            number of steps than the session.
    """

    solver: Solver | None = None
    start: int | None = None
    stop: int | None = None
    max_interval: int = 4
    multistep: int | None = None
    period: int = 4
    points: int = 4
    latent: str | None = None

    def __post_init__(self) -> None:
        if self.solver is not None and not isinstance(self.solver, Solver):
            raise TypeError(f"solver must come from laconic.solver_of(scheduler), not {self.solver!r}")
        for name in ("start", "stop", "multistep"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        positive("max_interval", self.max_interval)
        positive("period", self.period, zero=False)
        positive("points", self.points, zero=False)
        if self.latent is not None and not isinstance(self.latent, str):
            raise TypeError(f"latent must be the name of an argument, not {self.latent!r}")

    @property
    def identity(self) -> bool:
        return self.max_interval == 0

    @property
    def longest_run(self) -> int | None:
        return None

    def tracker(self, role: str = "") -> Tracker:
        return SadaTracker(self)

    def plan(self, context: PlanContext) -> Plan:
        """One region, the whole graph."""
        return whole_network(context.graph, self, self.latent)


@dataclass(frozen=True)
class Past:
    """One step: the latent, the output's part of its shape, whether it was computed, and in which buffers they are."""

    step: int
    x: Tensor
    y: Tensor
    computed: bool
    place: int


class SadaTracker(Tracker):
    """The last three steps, the clean estimates of computed ones, and the exits of the last computed call."""

    def __init__(self, settings: Sada) -> None:
        self.settings = settings
        self.past: list[Past] = []
        self.clean: list[tuple[int, Tensor]] = []
        self.cleaned = 0
        self.exits: tuple[Tensor, ...] = ()
        self.run = 0

    @property
    def flow(self) -> bool:
        """Whether outputs are velocities, which are continued themselves."""
        return self.settings.solver is None or self.settings.solver.prediction == "flow"

    @torch.no_grad()
    def decide(self, moment: Moment, entries: Sequence[Tensor]) -> bool:
        settings, steps, step = self.settings, moment.steps, moment.step
        if settings.solver is not None and settings.solver.steps != steps:
            raise UserError(f"the solver has {settings.solver.steps} steps and the session {steps}")
        self.indicator = None
        start = max(3, steps // 5 if settings.start is None else settings.start)
        stop = steps - 3 if settings.stop is None else settings.stop
        regular = steps * 12 // 25 if settings.multistep is None else settings.multistep
        if not start <= step < stop or moment.last or len(self.past) < 3:
            return False
        if step >= regular:
            return (step - regular) % settings.period != 0
        self.indicator = self._instability(entries[0])
        # A NaN compares false, so it computes.
        return self.run < settings.max_interval and self.indicator <= 0

    @torch.no_grad()
    def observe(self, moment: Moment, entries: Sequence[Tensor], exits: Sequence[Tensor]) -> None:
        x = entries[0]
        self.exits = tuple(self.keep(f"exit {index}", value) for index, value in enumerate(exits))
        y = part(self.exits[0], x)
        self._remember(moment.step, x, y, True)
        if not self.flow:
            assert self.settings.solver is not None
            points = self.settings.points
            clean = self.keep(f"clean {self.cleaned % points}", self.settings.solver.clean(y, x, moment.step)[0])
            self.cleaned += 1
            self.clean = [*self.clean, (moment.step, clean)][-points:]
        self.run = 0
        # A solver's first-order step needs the two steps before as well.
        self.ready = len(self.past) == 3

    @torch.no_grad()
    def predict(self, moment: Moment, entries: Sequence[Tensor]) -> tuple[Any, ...]:
        x, (kept, *others) = entries[0], self.exits
        result = y = self._continued(moment, x).to(kept.dtype)
        self._remember(moment.step, x, y, False)
        self.run += 1
        if kept.shape != x.shape:
            result = kept.clone()
            part(result, x).copy_(y)
        return (result, *(value.clone() for value in others))

    def _continued(self, moment: Moment, x: Tensor) -> Tensor:
        newest, before = self.past[0], self.past[1]
        if self.flow:
            return 2 * newest.y - before.y
        solver, step = self.settings.solver, moment.step
        assert solver is not None
        regular = moment.steps * 12 // 25 if self.settings.multistep is None else self.settings.multistep
        if step >= regular:
            weights = lagrange([float(at) for at, _ in self.clean], float(step))
            return solver.output(combine(weights, [value for _, value in self.clean]), x, step)
        noise = solver.clean(newest.y, newest.x, newest.step)[1]
        clean = (self._extrapolated() - solver.sigmas[step] * noise) / solver.alphas[step]
        return solver.output(clean, x, step)

    def _instability(self, x: Tensor) -> float:
        """The mean of m: not above zero is stable. ``x`` is what the sampler made of the newest step."""
        f0, f1, f2 = self._drifts()
        bend = (f0 - f1) - (f1 - f2)
        if self.flow:
            return float(-bend.float().mean())
        # Drifts here point along the step, the paper's against it: the second difference has the other sign.
        return float(((x - self._extrapolated()) * -bend).float().mean())

    def _extrapolated(self) -> Tensor:
        f0, f1, f2 = self._drifts()
        return self.past[0].x + 0.625 * f0 + 0.75 * f1 - 0.375 * f2

    def _drifts(self) -> list[Tensor]:
        solver = self.settings.solver
        if self.flow or solver is None:
            return [item.y for item in self.past]
        return [solver.move(item.y, item.x, item.step) for item in self.past]

    def _remember(self, step: int, x: Tensor, y: Tensor, computed: bool) -> None:
        kept = self.past[:2]
        # The oldest step's buffers take the new one.
        place = min({0, 1, 2} - {item.place for item in kept})
        self.past = [Past(step, self.keep(f"x {place}", x), self.keep(f"y {place}", y), computed, place), *kept]
