"""Forecasts against polynomials they must continue exactly, and the policies' schedules and settings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import laconic
from laconic.passes.cache_delta_dit import DeltaDiT
from laconic.passes.cache_first_block import FirstBlockTracker
from laconic.passes.cache_static import interval_table
from laconic.passes.forecast import ForecastTracker, lagrange
from laconic.passes.reuse import Moment, Tracker


def run(
    tracker: Tracker, network: Callable[[Tensor, int], Tensor], steps: int, move: Callable[[Tensor, Tensor], Tensor]
) -> tuple[list[bool], list[Tensor]]:
    """A trajectory: which steps were reused, and every output."""
    x, reused, outputs = torch.ones(3, dtype=torch.float64), [], []
    for step in range(steps):
        moment = Moment(step, steps)
        if tracker.decide(moment, [x]) and tracker.ready:
            y = tracker.predict(moment, [x])[0]
            reused.append(True)
        else:
            y = network(x, step)
            tracker.observe(moment, [x], [y])
            reused.append(False)
        outputs.append(y.clone())
        x = move(x, y)
    return reused, outputs


def every(interval: int) -> Callable[[Moment], bool]:
    return lambda moment: moment.step % interval == 0


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_polynomial_is_continued_exactly(order: int) -> None:
    powers = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)[: order + 1]

    def network(x: Tensor, step: int) -> Tensor:
        return torch.stack([(powers * float(step) ** torch.arange(order + 1)).sum()] * 3)

    reused, outputs = run(ForecastTracker(every(3), order), network, 20, lambda x, y: x + y)
    assert sum(reused) == 13
    start = 3 * order + 1  # enough computed calls for the order
    for step in range(start, 20):
        torch.testing.assert_close(outputs[step], network(outputs[0], step), rtol=1e-9, atol=1e-9)
    # One order more than the forecast has is missed, so the test above can fail.
    _, missed = run(ForecastTracker(every(3), order), lambda x, step: x * 0 + step ** (order + 1), 20, lambda x, y: x)
    assert (missed[19] - 19 ** (order + 1)).abs().max() > 0.5


def test_unequal_gaps_and_weights() -> None:
    weights = lagrange([0.0, 1.0, 4.0], 6.0)
    assert sum(weights) == pytest.approx(1.0)
    assert sum(w * t**2 for w, t in zip(weights, (0, 1, 4), strict=True)) == pytest.approx(36.0)


def test_increments_ride_on_the_entry_of_now_and_only_where_shapes_agree() -> None:
    tracker = ForecastTracker(every(2), increments=True)
    u, v = torch.randn(2, 3), torch.randn(5)
    tracker.observe(Moment(0, 9), [u, v], [u + 2, torch.ones(4), torch.tensor([1, 2])])
    moved, kept, integers = tracker.predict(Moment(1, 9), [u + 10, v])
    torch.testing.assert_close(moved, u + 12)
    assert torch.equal(kept, torch.ones(4)) and torch.equal(integers, torch.tensor([1, 2]))
    kept.zero_()  # the caller may write into what it got
    assert torch.equal(tracker.predict(Moment(1, 9), [u, v])[1], torch.ones(4))


def test_forecasts_over_the_time_of_the_call() -> None:
    tracker = ForecastTracker(every(3), 1, timed=True)
    times = [0.0, 0.1, 0.5, 0.6, 0.65, 0.9]
    for step, time in enumerate(times):
        moment, entries = Moment(step, 6), [torch.ones(2), torch.full((2,), time, dtype=torch.float64)]
        if tracker.decide(moment, entries) and tracker.ready:
            (value,) = tracker.predict(moment, entries)
            if step > 3:
                torch.testing.assert_close(value, torch.full((2,), 3 * time, dtype=torch.float64))
        else:
            tracker.observe(moment, entries, [torch.full((2,), 3 * time, dtype=torch.float64)])
    # Two calls at one time are one point, not a division by zero.
    tracker.observe(Moment(6, 9), entries, [torch.ones(2, dtype=torch.float64)])
    assert torch.isfinite(tracker.predict(Moment(7, 9), entries)[0]).all()


def test_repaid_errors_bring_the_sample_back() -> None:
    """A sampler that adds outputs: with the debt repaid it ends nearer to where every call computed would."""

    def network(x: Tensor, step: int) -> Tensor:
        return torch.full((3,), float(torch.sin(torch.tensor(step / 4.0))), dtype=torch.float64)

    ends = {}
    for repay in (0.0, 1.0):
        outputs = run(ForecastTracker(every(4), 1, repay=repay), network, 40, lambda x, y: x + y)[1]
        ends[repay] = torch.stack(outputs).sum(0)
    exact = sum(network(torch.ones(3), step) for step in range(40))
    assert (ends[1.0] - exact).abs().max() < 0.6 * (ends[0.0] - exact).abs().max()


def test_half_precision_is_kept() -> None:
    tracker = ForecastTracker(every(2), 1)
    for step in (0, 2):
        tracker.observe(Moment(step, 9), [torch.ones(2)], [torch.full((2,), 1 + step / 64, dtype=torch.bfloat16)])
    (value,) = tracker.predict(Moment(3, 9), [torch.ones(2)])
    assert value.dtype == torch.bfloat16 and torch.equal(value, torch.full((2,), 1.046875, dtype=torch.bfloat16))
    assert len(tracker.tensors()) == 2


def test_delta_dit_switches_groups_with_a_refresh_between() -> None:
    policy = DeltaDiT(interval=2, blocks=3, switch=5)
    rows = {part: [policy.due(Moment(step, 10), part) for step in range(10)] for part in ("front", "both", "rear")}
    assert [int(due) for due in rows["rear"]] == [1, 0, 1, 0, 1, 1, 1, 1, 1, 1]
    assert [int(due) for due in rows["front"]] == [1, 1, 1, 1, 1, 1, 0, 1, 0, 1]
    assert [int(due) for due in rows["both"]] == [1, 0, 1, 0, 1, 1, 0, 1, 0, 1]
    assert all(all(DeltaDiT(interval=1).due(Moment(step, 9), part) for step in range(9)) for part in rows)


def test_first_block_decides_by_the_change_of_the_residual() -> None:
    tracker = FirstBlockTracker(threshold=0.1, warmup=1)
    x, out = torch.ones(4), torch.full((4,), 3.0)
    assert not tracker.decide(Moment(0, 9), [out, x, out])
    tracker.observe(Moment(0, 9), [out, x, out], [out + 5])
    # Residual 2.0 then; 2.1 is a change of 5 %, 2.3 one of 15 %.
    assert tracker.decide(Moment(1, 9), [x + 3.1 - 1, x, x + 2.1])
    assert tracker.indicator == pytest.approx(0.05, abs=1e-6)
    (value,) = tracker.predict(Moment(1, 9), [x + 2.1, x, x + 2.1])
    torch.testing.assert_close(value, x + 7.1)
    assert not tracker.decide(Moment(2, 9), [x + 2.3, x, x + 2.3])
    assert not tracker.decide(Moment(8, 9), [x + 2.1, x, x + 2.1])  # the last step


def test_settings_are_checked() -> None:
    cache = laconic.cache
    for policy, settings, error, text in [
        ("taylor", {"interval": 0}, ValueError, "interval must be above 0"),
        ("taylor", {"order": 3}, ValueError, "order must be 0, 1 or 2"),
        ("taylor", {"level": "block"}, ValueError, "did you mean 'blocks'"),
        ("taylor", {"repay": 2.0}, ValueError, "at most 1"),
        ("taylor", {"repay": 0.5, "level": "layers"}, ValueError, "network"),
        ("taylor", {"time": 3}, TypeError, "name of an argument"),
        ("static", {}, TypeError, "needs table"),
        ("static", {"table": [0, 1]}, ValueError, "first row"),
        ("static", {"table": [[1, 1], [1]]}, ValueError, "different lengths"),
        ("static", {"table": [1, 2]}, TypeError, "true and false"),
        ("static", {"table": "yes"}, TypeError, "row for each step"),
        ("first-block", {"max_consecutive": -1}, ValueError, "max_consecutive"),
        ("first-block", {"treshold": 1}, TypeError, "did you mean 'threshold'"),
        ("delta-dit", {"blocks": 0}, ValueError, "blocks must be above 0"),
        ("delta-dit", {"switch": 0.5}, TypeError, "switch must be an integer"),
        ("delta_dit", {}, ValueError, "did you mean 'delta-dit'"),
    ]:
        with pytest.raises(error, match=text):
            cache(policy, **settings)
    assert cache("static", table=torch.ones(3, 2)) == cache("static", table=[[1, True], (1, 1), [1, 1]])
    assert hash(cache("static", table=[1, 0])) == hash(cache("static", table=((True,), (False,))))


def test_interval_tables() -> None:
    assert [int(row[0]) for row in interval_table(10, 4, warmup=2)] == [1, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert laconic.cache("static", table=interval_table(9, 1)).policy.identity  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="interval"):
        interval_table(9, 0)
