"""Guidance in the graph: the unconditional half is dropped when asked, and the rest is what it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import laconic
from laconic.backends import runner
from laconic.passes.cache_guidance import AdaptiveTracker, LinearTracker, fit_guidance
from laconic.passes.reuse import Moment

STEPS, SCALE = 10, 3.0


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8)).requires_grad_(False)
        self.text = nn.Linear(4, 8).requires_grad_(False)

    def forward(self, x: Tensor, text: Tensor, t: Tensor) -> Tensor:
        return self.layers(x + self.text(text) * (1 - t)) - x


class Guided(nn.Module):
    """A guided step, as compiled by somebody whose sampler is in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Denoiser()

    def forward(self, x: Tensor, text: Tensor, t: Tensor) -> Tensor:
        u, c = self.network(torch.cat([x, x]), text, t).chunk(2)
        return u + SCALE * (c - u)


TEXT = torch.cat([torch.zeros(3, 4), torch.randn(3, 4, generator=torch.Generator().manual_seed(1))])


@torch.no_grad()
def sample(step: Any) -> Tensor:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    for index in range(STEPS):
        x = x + step(x, TEXT, torch.tensor(index / STEPS)) / STEPS
    return x


def compiled(policy: str, **settings: Any) -> Any:
    torch._dynamo.reset()
    options = {"passes": [laconic.cache(policy, **settings)]}
    return torch.compile(Guided(), backend="laconic", options=options, fullgraph=True)


@pytest.fixture(autouse=True)
def eager_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "compile_graph", lambda graph, inputs, options: graph)


def reference(unguided: dict[int, Any]) -> Tensor:
    """Guidance by hand; ``unguided[step](c, u, past)`` replaces u, None leaves guidance out."""
    model, x, past = Denoiser(), torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), []
    for index in range(STEPS):
        t = torch.tensor(index / STEPS)
        u, c = model(x, TEXT[:3], t), model(x, TEXT[3:], t)
        if index in unguided:
            u = unguided[index](c, past)
        past.append((c, u))
        x = x + (u + SCALE * (c - u)) / STEPS
    return x


def test_guidance_stops_when_the_halves_agree() -> None:
    fast = compiled("adaptive-guidance", threshold=0.9)
    with laconic.session(fast, steps=STEPS) as session:
        result = sample(fast)
    calls = session.summary().calls
    first = next(call.step for call in calls if call.reused)
    assert 0 < first < STEPS - 1 and all(call.reused for call in calls[first:])
    expected = reference({step: lambda c, past: c for step in range(first, STEPS)})
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(result, sample(Guided()), atol=1e-4)


def test_the_conditional_half_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_graphs: list[Any] = []

    def compile_graph(graph: Any, inputs: Any, options: Any) -> Any:
        compiled_graphs.append(graph)
        return graph

    monkeypatch.setattr(runner, "compile_graph", compile_graph)
    fast = compiled("adaptive-guidance", threshold=0.0)
    sample(fast)
    before = len(compiled_graphs)
    for _ in range(2):
        with laconic.session(fast, steps=STEPS):
            sample(fast)
    assert len(compiled_graphs) == before + 1


def test_above_one_nothing_changes() -> None:
    fast = compiled("adaptive-guidance", threshold=1.01)
    with laconic.session(fast, steps=STEPS):
        result = sample(fast)
    assert torch.equal(result, sample(Guided()))


def test_the_unconditional_output_as_a_combination() -> None:
    rows = [None] * STEPS
    rows[2] = ((0.5, 0.25), (0.25,))  # type: ignore[call-overload]
    rows[7] = ((1.0,), ())  # type: ignore[call-overload]
    fast = compiled("linear-ag", coefficients=rows)
    with laconic.session(fast, steps=STEPS) as session:
        result = sample(fast)
    assert [call.step for call in session.summary().calls if call.reused] == [2, 7]
    expected = reference({2: lambda c, past: 0.5 * c + 0.25 * past[-1][0] + 0.25 * past[-1][1], 7: lambda c, past: c})
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    off = compiled("linear-ag", coefficients=[None] * STEPS)
    with laconic.session(off, steps=STEPS):
        assert torch.equal(sample(off), sample(Guided()))


def test_fitted_coefficients_predict_what_is_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(9, 50, generator=generator, dtype=torch.float64)
    u = c.clone()
    for step in range(1, 9):
        u[step] = 0.3 * c[step] + 0.5 * u[step - 1] - 0.1 * c[step - 1]
    rows = fit_guidance(c, u, history=1)
    assert [row is None for row in rows] == [True, False, True, False, True, False, False, False, False]
    a, b = rows[3]  # type: ignore[misc]
    torch.testing.assert_close(torch.tensor([*a, *b]), torch.tensor([0.3, -0.1, 0.5]), rtol=1e-3, atol=1e-3)
    assert rows[5:] == (((1.0,), ()),) * 4


def test_graphs_without_guidance_are_left_alone_and_mistakes_are_named() -> None:
    torch._dynamo.reset()
    options = {"passes": [laconic.cache("adaptive-guidance")]}
    fast = torch.compile(Denoiser(), backend="laconic", options=options, fullgraph=True)
    with laconic.session(fast, steps=2), torch.no_grad():
        fast(torch.ones(3, 8), torch.ones(3, 4), torch.tensor(0.0))
    assert [row.code for row in laconic.report(fast).refusals if row.pass_name == "cache"] == ["no-site"]
    for settings, error in [
        ({"coefficients": []}, TypeError),
        ({"coefficients": [None, 3]}, TypeError),
        ({"coefficients": [None, ((), ())]}, ValueError),
        ({"coefficients": [((1.0,), (1.0,))]}, ValueError),
    ]:
        with pytest.raises(error):
            laconic.cache("linear-ag", **settings)
    with pytest.raises(laconic.UserError, match="2 rows of coefficients and 5 steps"):
        LinearTracker((None, None), None).decide(Moment(0, 5), [])
    tracker = AdaptiveTracker(0.99, None)
    tracker.observe(Moment(0, 5), [], [torch.ones(2, 3), torch.ones(2, 3), torch.tensor([[1.0, 1, 1], [1, 1, -1]])])
    assert not tracker.decide(Moment(1, 5), [])  # one sample of the batch disagrees
