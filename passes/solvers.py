"""What a policy has to know of a sampler: the noise levels of its steps and what the network's output means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .base import UserError, nearest

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")


@dataclass(frozen=True)
class Solver:
    """The steps of a sampler over ``x = alpha x0 + sigma e``: one level for each step, and the level after the last.

    ``prediction`` is what the network gives: the noise e (``"epsilon"``), ``alpha e - sigma x0`` (``"v_prediction"``),
    x0 (``"sample"``) or ``e - x0`` (``"flow"``, with alpha = 1 - sigma). ``clip`` is how large an element of x0 may
    become: the sampler cuts off what is above.

    Raises:
        ValueError: an unknown prediction, or levels of different number.
    """

    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    prediction: str
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"unknown prediction {self.prediction!r}; {nearest(self.prediction, PREDICTIONS)}")
        if len(self.alphas) != len(self.sigmas) or len(self.alphas) < 2:
            raise ValueError("alphas and sigmas need one value for each step and one more")

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return len(self.alphas) - 1

    def clean(self, y: Tensor, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """x0 and e as the sampler reads them from the output ``y`` at ``x``; e is the one before clipping."""
        x0, noise = self._read(y, x, step)
        return (x0 if self.clip is None else x0.clamp(-self.clip, self.clip)), noise

    def _read(self, y: Tensor, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.alphas[step], self.sigmas[step]
        if self.prediction == "flow":
            return x - sigma * y, x + alpha * y
        if self.prediction == "v_prediction":
            return alpha * x - sigma * y, sigma * x + alpha * y
        if self.prediction == "sample":
            return y, (x - alpha * y) / sigma
        return (x - sigma * y) / alpha, y

    def output(self, x0: Tensor, x: Tensor, step: int) -> Tensor:
        """The output that means ``x0`` at ``x``."""
        alpha, sigma = self.alphas[step], self.sigmas[step]
        if self.prediction == "sample":
            return x0
        noise = (x - alpha * x0) / sigma
        if self.prediction == "flow":
            return noise - x0
        return alpha * noise - sigma * x0 if self.prediction == "v_prediction" else noise

    def move(self, y: Tensor, x: Tensor, step: int) -> Tensor:
        """How far a first-order deterministic step takes ``x``: the drift in units of the step."""
        x0, noise = self.clean(y, x, step)
        return self.alphas[step + 1] * x0 + self.sigmas[step + 1] * noise - x


def solver_of(scheduler: Any) -> Solver:
    """The solver of a diffusers scheduler after ``set_timesteps``: DDIM, flow-matching Euler, or DPM-Solver++ (2M).

    Only public attributes are read: ``config``, ``timesteps``, ``sigmas``, ``alphas_cumprod``. Where a DDIM schedule's
    timesteps are not equally far apart, its steps end beside the next one's level; the solver takes them to meet.

    Raises:
        UserError: another kind of scheduler, a stochastic one, one whose clean estimates are thresholded by their
            quantiles, or ``set_timesteps`` was not called.
    """
    config = scheduler.config
    kind = type(scheduler).__name__
    if getattr(scheduler, "num_inference_steps", None) is None and not hasattr(scheduler, "sigmas"):
        raise UserError("call scheduler.set_timesteps(steps) before asking for its solver")
    if config.get("thresholding"):
        raise UserError(f"no solver for {kind} with thresholding: its clean estimates depend on the whole batch")
    if config.get("stochastic_sampling") or str(config.get("algorithm_type", "")).startswith("sde-"):
        raise UserError(f"no solver for {kind} when it draws noise in its steps")
    if kind == "FlowMatchEulerDiscreteScheduler":
        sigmas = [float(value) for value in scheduler.sigmas]
        return Solver(tuple(1 - value for value in sigmas), tuple(sigmas), "flow")
    if kind == "DDIMScheduler":
        stride = config.num_train_timesteps // scheduler.num_inference_steps
        times = [int(value) for value in scheduler.timesteps]
        levels = [float(scheduler.alphas_cumprod[time]) for time in times]
        after = times[-1] - stride
        final = 1.0 if config.set_alpha_to_one else float(scheduler.alphas_cumprod[0])
        levels.append(float(scheduler.alphas_cumprod[after]) if after >= 0 else final)
        return Solver(
            tuple(level**0.5 for level in levels),
            tuple((1 - level) ** 0.5 for level in levels),
            config.prediction_type,
            config.clip_sample_range if config.clip_sample else None,
        )
    if kind == "DPMSolverMultistepScheduler":
        ratios = [float(value) for value in scheduler.sigmas]
        if getattr(config, "use_flow_sigmas", False):
            return Solver(tuple(1 - value for value in ratios), tuple(ratios), "flow")
        alphas = [1 / (value * value + 1) ** 0.5 for value in ratios]
        sigmas = [value * alpha for value, alpha in zip(ratios, alphas, strict=True)]
        return Solver(tuple(alphas), tuple(sigmas), config.prediction_type)
    known = ("DDIMScheduler", "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler")
    raise UserError(f"no solver for {kind}; {nearest(kind, known)}")
