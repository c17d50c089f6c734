"""EasyCache's arithmetic against the paper's, what it takes for the latent, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import laconic
from laconic.passes.cache_easycache import EasyCacheTracker
from laconic.passes.latent import argument_name, find_latent
from laconic.passes.reuse import Moment, written_inputs
from laconic.patterns.graph import NormalGraph
from laconic.patterns.normalize import normalize
from laconic.patterns.reasons import Reason


def normal(function, *args, grad: bool = False) -> NormalGraph:  # type: ignore[no-untyped-def]
    """The normal form Dynamo and the retrace give for a function or module."""
    found: list[NormalGraph | Reason] = []

    def keep(module, inputs):  # type: ignore[no-untyped-def]
        found.append(normalize(module, inputs))
        return module

    torch._dynamo.reset()
    with torch.set_grad_enabled(grad):
        torch.compile(function, backend=keep, fullgraph=True)(*args)
    assert isinstance(found[0], NormalGraph)
    return found[0]


def run(tracker: EasyCacheTracker, network, latents: list[Tensor], steps: int) -> list[tuple[bool, Tensor]]:  # type: ignore[no-untyped-def]
    rows = []
    for step, x in enumerate(latents):
        moment = Moment(step, steps)
        if tracker.decide(moment, [x]) and tracker.ready:
            rows.append((True, tracker.predict(moment, [x])[0]))
        else:
            y = network(x)
            tracker.observe(moment, [x], [y])
            rows.append((False, y))
    return rows


def test_rate_is_the_networks_slope() -> None:
    tracker = EasyCacheTracker(threshold=0.1, warmup=2)
    latents = [torch.randn(2, 3, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    run(tracker, lambda x: -2.5 * x, latents, 50)
    assert tracker.rate is not None
    torch.testing.assert_close(tracker.rate, torch.tensor(2.5), rtol=1e-5, atol=0)


def paper(network, latents: list[Tensor], tau: float, warmup: int) -> list[tuple[bool, Tensor]]:  # type: ignore[no-untyped-def]
    """EasyCache as the paper and its published scripts have it, written down once more."""
    x_prev = x_full = y_full = k = None
    acc, rows = 0.0, []
    for step, x in enumerate(latents):
        compute = True
        if step < warmup or step == len(latents) - 1:
            acc = 0.0
        elif k is not None:
            acc += float(k * (x - x_prev).abs().mean() / y_full.abs().mean())
            compute = not acc < tau
            if compute:
                acc = 0.0
        x_prev = x
        if compute:
            y = network(x)
            if y_full is not None:
                k = (y - y_full).abs().mean() / (x - x_full).abs().mean()
            x_full, y_full = x, y
        else:
            y = x + (y_full - x_full)
        rows.append((not compute, y))
    return rows


@pytest.mark.parametrize("tau", [0.0, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_decisions_and_values_are_the_papers(tau: float, warmup: int) -> None:
    generator = torch.Generator().manual_seed(0)
    start, drift = torch.randn(2, 4, 8, generator=generator), torch.randn(2, 4, 8, generator=generator)
    latents = [start + step / 30 * drift for step in range(30)]

    def network(x: Tensor) -> Tensor:
        return torch.sin(2 * x) + 1

    expected = paper(network, latents, tau, warmup)
    actual = run(EasyCacheTracker(tau, warmup), network, latents, 30)
    assert [row[0] for row in actual] == [row[0] for row in expected]
    for (_, value), (_, wanted) in zip(actual, expected, strict=True):
        assert torch.equal(value, wanted)
    if tau == 0.1:
        assert 0 < sum(row[0] for row in actual) < 25


@pytest.mark.parametrize("order", [0, 1])
def test_forecasts_decide_alike_and_continue_the_outputs(order: int) -> None:
    start, drift = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    latents = [start + step / 30 * drift for step in range(30)]
    plain = run(EasyCacheTracker(0.1, 5), lambda x: 2 * x + 1, latents, 30)
    rows = run(EasyCacheTracker(0.1, 5, order), lambda x: 2 * x + 1, latents, 30)
    assert [row[0] for row in rows] == [row[0] for row in plain] and any(row[0] for row in rows)
    for step, (reused, value) in enumerate(rows):
        exact = 2 * latents[step] + 1
        if order == 1:  # linear along the trajectory: a line predicts it
            torch.testing.assert_close(value, exact, rtol=1e-4, atol=1e-4)
        elif reused:
            assert torch.equal(value, rows[step - 1][1])


def test_a_latent_that_stands_still_computes() -> None:
    tracker = EasyCacheTracker(0.5, 0)
    rows = run(tracker, lambda x: x + 1, [torch.ones(3)] * 6, 10)
    assert [row[0] for row in rows] == [False] * 6


def test_more_channels_and_further_outputs_are_kept_as_they_were() -> None:
    tracker = EasyCacheTracker(0.5, 0)
    x, y, extra = torch.randn(2, 3, 4, 4), torch.randn(2, 6, 4, 4), torch.randn(5)
    moment = Moment(0, 9)
    tracker.decide(moment, [x])
    tracker.observe(moment, [x], [y, extra])
    whole, other = tracker.predict(moment, [x + 1])
    assert torch.equal(whole[:, :3], (x + 1) + (y[:, :3] - x))
    assert torch.equal(whole[:, 3:], y[:, 3:]) and torch.equal(other, extra)
    whole.zero_(), other.zero_()  # the caller may write into what it got
    assert torch.equal(tracker.predict(moment, [x])[1], extra)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="threshold must be at least 0"):
        laconic.cache("easycache", threshold=-0.1)
    with pytest.raises(TypeError, match="warmup must be an integer"):
        laconic.cache("easycache", warmup=1.5)
    with pytest.raises(ValueError, match="order must be None, 0 or 1"):
        laconic.cache("easycache", order=2)
    with pytest.raises(TypeError, match="latent"):
        laconic.cache("easycache", latent=0)
    with pytest.raises(TypeError, match="did you mean 'threshold'"):
        laconic.cache("easycache", treshold=0.1)
    with pytest.raises(ValueError, match="did you mean 'easycache'"):
        laconic.cache("easy-cache")
    assert laconic.cache("easycache", threshold=0.1) == laconic.cache("easycache", threshold=0.1)


class Denoiser(nn.Module):
    def __init__(self, out: int = 4) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, out, 1)
        self.register_buffer("table", torch.ones(2, 4, 8, 8))

    def forward(self, context: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(x * t.view(-1, 1, 1, 1) + self.table) + context.mean()


def arguments(*size: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 7), torch.randn(*size), torch.rand(2)


def test_the_latent_is_found_by_shape_and_dataflow() -> None:
    latent, output = found(normal(Denoiser(), *arguments(2, 4, 8, 8)))
    assert argument_name(latent) == "x" and tuple(output.meta["val"].shape) == (2, 4, 8, 8)
    latent, output = found(normal(Denoiser(8), *arguments(2, 4, 8, 8)))
    assert argument_name(latent) == "x" and output.meta["val"].shape[1] == 8
    # An input the output does not depend on is none, whatever its shape.
    graph = normal(lambda a, b: (b * 2, a.sum()), torch.randn(3, 4), torch.randn(3, 4))
    assert argument_name(found(graph)[0]) == "b"
    # Of two candidates the first, or the one named.
    graph = normal(lambda a, b: a + b, torch.randn(3, 4), torch.randn(3, 4))
    assert argument_name(found(graph)[0]) == "a"
    assert argument_name(found(graph, "b")[0]) == "b"
    missing = find_latent(graph, "c")
    assert isinstance(missing, Reason) and missing.code == "no-latent" and "a, b" in missing.text


def found(graph: NormalGraph, name: str | None = None):  # type: ignore[no-untyped-def]
    result = find_latent(graph, name)
    assert not isinstance(result, Reason), result
    return result


@pytest.mark.parametrize(
    ("function", "size"),
    [
        (lambda x: x.sum(-1), (3, 4)),  # another shape
        (lambda x: (x > 0, x.shape[0]), (3, 4)),  # no floating-point output
        (lambda x: torch.ones(3, 4) * 2, (3, 4)),  # not computed from the input
        (lambda x: x.repeat(1, 3), (3, 4)),  # more channels, but not twice as many
        (lambda x: x.repeat(2, 1, 1), (3, 4, 2)),  # twice as many, but not channels
    ],
)
def test_no_latent_is_a_refusal(function, size: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    reason = find_latent(normal(function, torch.randn(size)))
    assert isinstance(reason, Reason) and reason.code == "no-latent"


def test_what_writes_into_its_inputs_is_seen() -> None:
    assert written_inputs(normal(lambda x: x.view(-1).add_(1).sum() + x, torch.randn(3, 4)))
    assert not written_inputs(normal(lambda x: (x + 1).add_(1).view(-1), torch.randn(3, 4)))
    model = nn.BatchNorm1d(4).train()
    assert written_inputs(normal(model, torch.randn(3, 4)))
