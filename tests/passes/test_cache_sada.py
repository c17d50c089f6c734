"""SADA: stable where the drift is linear in time, computed where it turns; solvers agree with their schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import laconic
from laconic.passes.cache_sada import Sada, SadaTracker
from laconic.passes.reuse import Moment
from laconic.passes.solvers import Solver, solver_of


def schedulers(steps: int) -> dict[str, Any]:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    made = {
        "ddim": DDIMScheduler(clip_sample=False),
        "ddim-v": DDIMScheduler(clip_sample=False, prediction_type="v_prediction", set_alpha_to_one=False),
        "dpm++": DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2),
        "flow": FlowMatchEulerDiscreteScheduler(),
    }
    for scheduler in made.values():
        scheduler.set_timesteps(steps)
    return made


@pytest.mark.parametrize("name", ["ddim", "ddim-v", "dpm++", "flow"])
def test_a_first_order_step_is_the_schedulers(name: str) -> None:
    scheduler = schedulers(12)[name]
    solver = solver_of(scheduler)
    assert solver.steps == 12
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    # DPM++ 2M is of first order in its first step only.
    for step in [0] if name == "dpm++" else range(12):
        after = scheduler.step(y, scheduler.timesteps[step], x).prev_sample
        torch.testing.assert_close(x + solver.move(y, x, step), after.double(), rtol=1e-4, atol=1e-4)
    x0, noise = solver.clean(y, x, 5)
    torch.testing.assert_close(solver.output(x0, x, 5), y)
    torch.testing.assert_close(solver.alphas[5] * x0 + solver.sigmas[5] * noise, x)


EVERY = {
    "ddim": {},
    "ddim, clipped": {"clip_sample": True},
    "ddim, v": {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    "ddim, sample": {"prediction_type": "sample", "timestep_spacing": "linspace"},
    "dpm++": {},
    "dpm++, v": {"prediction_type": "v_prediction", "use_karras_sigmas": True},
    "dpm++, flow": {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    "flow": {},
    "flow, shifted": {"shift": 3.0},
}


@pytest.mark.parametrize("name", list(EVERY))
def test_clean_estimates_are_the_schedulers_in_every_step(name: str) -> None:
    """x0 of the adapter against what the scheduler itself makes of the same outputs, along its own trajectory."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    settings: dict[str, Any] = dict(EVERY[name])
    kind = name.split(",")[0]
    if kind == "ddim":
        scheduler = DDIMScheduler(**{"clip_sample": False, **settings})
    elif kind == "dpm++":
        scheduler = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **settings)
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    scheduler.set_timesteps(10)
    solver = solver_of(scheduler)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    for step, time in enumerate(scheduler.timesteps):
        y = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        clean, noise = solver.clean(y, x, step)
        made = scheduler.step(y, time, x)
        if kind == "ddim":
            torch.testing.assert_close(clean, made.pred_original_sample, rtol=1e-5, atol=1e-5)
        elif kind == "dpm++":
            torch.testing.assert_close(clean, scheduler.model_outputs[-1].double(), rtol=1e-4, atol=1e-4)
        else:  # it never says, but it noises samples in the same terms
            mixed = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
            mixed.set_timesteps(10)
            torch.testing.assert_close(mixed.scale_noise(clean, time[None], noise), x, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(y, noise - clean)
        x = made.prev_sample.double()
    assert solver.clip == (1.0 if name == "ddim, clipped" else None)


def play(tracker: SadaTracker, network: Callable[[Tensor, int], Tensor], steps: int) -> tuple[list[bool], Tensor]:
    x, reused = torch.ones(4, dtype=torch.float64), []
    for step in range(steps):
        moment = Moment(step, steps)
        reused.append(tracker.decide(moment, [x]) and tracker.ready)
        if reused[-1]:
            (y,) = tracker.predict(moment, [x])
        else:
            y = network(x, step)
            tracker.observe(moment, [x], [y])
        x = x + y / steps
    return reused, x


def test_a_drift_linear_in_time_is_skipped_exactly() -> None:
    settings = Sada(start=5, max_interval=2, multistep=100)
    reused, end = play(SadaTracker(settings), lambda x, step: torch.full((4,), 2.0 * step, dtype=torch.float64), 20)
    assert reused == [False] * 5 + [True, True, False] * 4 + [False] * 3
    torch.testing.assert_close(end, 1 + torch.full((4,), 2.0 * sum(range(20)) / 20, dtype=torch.float64))


@pytest.mark.parametrize(("sign", "skips"), [(1.0, True), (-1.0, False)])
def test_the_sign_of_the_bend_decides(sign: float, skips: bool) -> None:
    """For flow matching m is minus the second difference: 2 * sign here."""
    settings = Sada(start=3, multistep=100)
    reused, _ = play(SadaTracker(settings), lambda x, step: torch.full((4,), sign * step**2).double(), 20)
    assert any(reused) is skips


def test_a_solvers_deviation_decides() -> None:
    """With a solver, m is the sampler's deviation from the extrapolation times the drift's second difference."""
    solver = Solver(tuple(0.9 for _ in range(9)), tuple(1 - 0.1 * step for step in range(9)), "epsilon")
    tracker = SadaTracker(Sada(solver=solver, start=3, stop=8, multistep=8))
    for step, value in enumerate((1.0, 2.0, 4.0)):
        tracker.observe(Moment(step, 8), [torch.ones(2)], [torch.full((2,), value)])
    drifts = [-0.1 * value for value in (4.0, 2.0, 1.0)]
    extrapolated = 1 + 0.625 * drifts[0] + 0.75 * drifts[1] - 0.375 * drifts[2]
    assert drifts[0] - 2 * drifts[1] + drifts[2] < 0
    # m = deviation * (0.1): a sample below the extrapolation is stable, one above is not.
    assert tracker.decide(Moment(3, 8), [torch.full((2,), extrapolated - 0.5)])
    assert not tracker.decide(Moment(3, 8), [torch.full((2,), extrapolated + 0.5)])
    assert tracker.indicator == pytest.approx(0.5 * 0.1, rel=1e-4)


def test_the_regular_phase() -> None:
    reused, _ = play(SadaTracker(Sada(start=10, multistep=10, period=3, stop=19)), lambda x, step: torch.sin(x), 20)
    assert reused == [False] * 10 + [False, True, True] * 3 + [False]


@pytest.mark.parametrize("name", ["ddim", "dpm++", "flow"])
def test_with_a_scheduler(name: str) -> None:
    """A denoiser for one Gaussian: fewer evaluations and nearly the same samples."""
    steps = 30

    def denoiser(solver: Solver, x: Tensor, step: int) -> Tensor:
        alpha, sigma = solver.alphas[step], solver.sigmas[step]
        x0 = 1.0 + 0.5 * alpha * (x - alpha) * 0.5 / (0.25 * alpha**2 + sigma**2)
        return solver.output(x0, x, step)

    def draw(steps: int, tracker: SadaTracker | None) -> tuple[Tensor, int]:
        scheduler = schedulers(steps)[name]
        solver, computed = solver_of(scheduler), 0
        x = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for step, time in enumerate(scheduler.timesteps):
            moment = Moment(step, steps)
            if tracker is not None and tracker.decide(moment, [x]) and tracker.ready:
                (y,) = tracker.predict(moment, [x])
            else:
                y = denoiser(solver, x, step)
                computed += 1
                if tracker is not None:
                    tracker.observe(moment, [x], [y])
            x = scheduler.step(y, time, x).prev_sample.double()
        return x, computed

    exact, _ = draw(steps, None)
    fast, computed = draw(
        steps, SadaTracker(Sada(solver_of(schedulers(steps)[name]), start=6, max_interval=2, period=2))
    )
    assert computed < 0.75 * steps
    error = float((fast - exact).norm() / exact.norm())
    assert error < 0.05, error


def test_mistakes_are_named() -> None:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    with pytest.raises(TypeError, match="solver_of"):
        laconic.cache("sada", solver="ddim")
    with pytest.raises(ValueError, match="period must be above 0"):
        laconic.cache("sada", period=0)
    with pytest.raises(ValueError, match="unknown prediction"):
        Solver((1.0, 1.0), (0.0, 0.0), "noise")
    with pytest.raises(laconic.UserError, match="DDIMScheduler"):
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler()
        scheduler.set_timesteps(5)
        solver_of(scheduler)
    for made, text in [
        (DDIMScheduler(thresholding=True), "thresholding"),
        (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), "draws noise"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "draws noise"),
    ]:
        made.set_timesteps(5)
        with pytest.raises(laconic.UserError, match=text):
            solver_of(made)
    solver = Solver((0.0, 1.0), (1.0, 0.0), "flow")
    with pytest.raises(laconic.UserError, match="1 steps and the session 9"):
        SadaTracker(Sada(solver=solver)).decide(Moment(0, 9), [torch.ones(2)])
    assert laconic.cache("sada", max_interval=0).policy.identity  # type: ignore[attr-defined]
