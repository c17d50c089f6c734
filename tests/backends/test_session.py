"""Sessions: state never outlives, leaks into or is mistaken for that of another trajectory, model, stream or thread."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import gc
import json
import pickle
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

import laconic
from laconic.backends import runner, session
from laconic.backends.summary import Call, Summary
from laconic.backends.timeline import svg
from laconic.passes.base import FACTORIES, Factory, Pass, PlanContext
from laconic.passes.measure import relative_l2
from laconic.passes.plan import CachedRegion, Plan
from laconic.passes.reuse import CachePolicy, Moment, Tracker

STEPS = 20


class Network(nn.Module):
    """A velocity field that changes slowly, so that some calls are skipped and some are not."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)).requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(x) * (1 + t) - x


@dataclass
class Pieces:
    """What was compiled and how often it ran."""

    compiled: int = 0
    runs: int = 0
    fail: bool = False
    pause: float = 0.0


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pieces]:
    """Run pieces as they are instead of through Inductor: what is tested here is between them."""
    torch._dynamo.reset()
    count = Pieces()

    def compile_graph(module: torch.fx.GraphModule, inputs: Any, options: Any) -> Callable[..., Any]:
        count.compiled += 1

        def run(*args: Any) -> Any:
            count.runs += 1
            time.sleep(count.pause)
            if count.fail:
                raise RuntimeError("out of memory")
            return module(*args)

        return run

    monkeypatch.setattr(runner, "compile_graph", compile_graph)
    yield count
    torch._dynamo.reset()


def compiled(model: Any, **settings: Any) -> Any:
    settings = {"threshold": 0.2, "warmup": 3, **settings}
    return torch.compile(model, backend="laconic", options={"passes": [laconic.cache("easycache", **settings)]})


def start(seed: int = 0, *size: int) -> Tensor:
    return torch.randn(*(size or (4, 8)), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def advance(model: Callable[..., Tensor], x: Tensor, step: int, streams: int = 1) -> Tensor:
    outs = [model(x, torch.tensor(step / STEPS) + stream) for stream in range(streams)]
    return x + (outs[0] if streams == 1 else 2 * outs[0] - outs[1]) / STEPS


def trajectory(model: Callable[..., Tensor], x: Tensor, streams: int = 1, steps: int = STEPS) -> Tensor:
    for step in range(steps):
        x = advance(model, x, step, streams)
    return x


def in_session(model: Any, x: Tensor, streams: int = 1) -> Tensor:
    with laconic.session(model, steps=STEPS, calls_per_step=streams):
        return trajectory(model, x, streams)


def test_a_session_skips_calls_and_says_which(pieces: Pieces) -> None:
    fast = compiled(Network())
    with laconic.session(fast, steps=STEPS) as here:  # before the first compile
        result = trajectory(fast, start())
    summary = here.summary()
    assert 0 < summary.reused < STEPS and summary.computed == pieces.runs == STEPS - summary.reused
    assert [call.step for call in summary.calls] == list(range(STEPS))
    assert not any(call.reused for call in (*summary.calls[:3], summary.calls[-1]))
    assert all(call.indicator is not None and call.indicator < 0.2 for call in summary.calls if call.reused)
    assert summary.peak_bytes >= 4 * start().nbytes and "#" in str(summary) and "." in str(summary)
    assert summary.to_dict()["reused"] == summary.reused
    exact = trajectory(Network(), start())
    assert 0 < relative_l2(result, exact) < 0.2
    assert any("cache" in row.pass_name and row.status == "applied" for row in laconic.report(fast).rewrites)


def test_without_a_session_everything_is_computed_and_the_report_says_so(pieces: Pieces) -> None:
    fast = compiled(Network())
    assert torch.equal(trajectory(fast, start()), trajectory(Network(), start()))
    assert pieces.runs == STEPS
    assert [row.code for row in laconic.report(fast).refusals if row.pass_name == "cache"] == ["no-session"]
    in_session(fast, start())
    again = trajectory(fast, start())
    assert torch.equal(again, trajectory(Network(), start()))


def test_threshold_zero_computes_every_call(pieces: Pieces) -> None:
    fast = compiled(Network(), threshold=0)
    assert torch.equal(in_session(fast, start()), trajectory(Network(), start()))
    assert pieces.runs == STEPS


def test_back_to_back_trajectories_equal_separate_ones(pieces: Pieces) -> None:
    fast = compiled(Network())
    alone = [in_session(fast, start(seed)) for seed in (1, 2)]
    torch._dynamo.reset()
    fast = compiled(Network())
    one = laconic.session(fast, steps=STEPS)
    for seed, expected in zip((1, 2, 1), (*alone, alone[0]), strict=True):
        with one:
            assert torch.equal(trajectory(fast, start(seed)), expected)


@pytest.mark.parametrize("shared_settings", [True, False])
def test_interleaved_instances_do_not_mix(pieces: Pieces, shared_settings: bool) -> None:
    models = [Network(1), Network(2)]
    fast = [compiled(models[0]), compiled(models[1], warmup=3 if shared_settings else 4)]
    alone = [in_session(model, start(seed)) for seed, model in enumerate(fast)]
    compiles = pieces.compiled
    xs = [start(0), start(1)]
    with laconic.session(fast[0], steps=STEPS) as first, laconic.session(fast[1], steps=STEPS) as second:
        for step in range(STEPS):
            xs = [advance(model, x, step) for model, x in zip(fast, xs, strict=True)]
    assert all(torch.equal(x, expected) for x, expected in zip(xs, alone, strict=True))
    assert len(first.summary().calls) == len(second.summary().calls) == STEPS
    both = [start(0), start(1)]
    with laconic.session(*fast, steps=STEPS) as together:
        for step in range(STEPS):
            both = [advance(model, x, step) for model, x in zip(fast, both, strict=True)]
    assert all(torch.equal(x, expected) for x, expected in zip(both, alone, strict=True))
    assert len(together.summary().calls) == 2 * STEPS
    assert pieces.compiled == compiles  # sessions never recompile


def test_only_the_sessions_model_is_cached(pieces: Pieces) -> None:
    fast, other = compiled(Network(1)), compiled(Network(2))
    with laconic.session(fast, steps=STEPS) as here:
        assert torch.equal(trajectory(other, start()), trajectory(Network(2), start()))
    assert here.summary().calls == []


def test_the_inner_of_nested_sessions_holds(pieces: Pieces) -> None:
    fast = compiled(Network())
    alone, x = [in_session(fast, start(seed)) for seed in (0, 1)], start(0)
    outer = laconic.session(fast, steps=STEPS)
    with outer as entered:
        for step in range(STEPS):
            x = advance(fast, x, step)
            if step == 9:
                assert torch.equal(in_session(fast, start(1)), alone[1])
                with outer:  # re-entered: a trajectory of its own
                    assert torch.equal(trajectory(fast, start(1)), alone[1])
    assert torch.equal(x, alone[0]) and entered is outer


def test_guidance_streams_do_not_mix_and_follow_the_first(pieces: Pieces) -> None:
    fast = compiled(Network())
    with laconic.session(fast, steps=STEPS, calls_per_step=2) as here:
        result = trajectory(fast, start(), streams=2)
    calls = here.summary().calls
    first = [call.reused for call in calls if call.stream == 0]
    assert first == [call.reused for call in calls if call.stream == 1] and any(first)
    exact = trajectory(Network(), start(), streams=2)
    assert relative_l2(result, exact) < 0.3
    # Calls and steps counted wrongly would mix the streams.
    assert not torch.equal(result, in_session_counting_one(fast))


def in_session_counting_one(fast: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with laconic.session(fast, steps=STEPS):
            return trajectory(fast, start(), streams=2)


def test_an_exception_drops_the_state(pieces: Pieces) -> None:
    fast = compiled(Network())
    expected, x = in_session(fast, start()), start()
    one = laconic.session(fast, steps=STEPS)
    with pytest.raises(KeyError), one:
        trajectory(fast, x, steps=12)
        raise KeyError
    assert session._active.get() == ()
    with one:
        assert torch.equal(trajectory(fast, start()), expected)


def test_an_exception_in_the_network_drops_the_state_and_does_not_count(pieces: Pieces) -> None:
    fast = compiled(Network())
    x = start()
    with laconic.session(fast, steps=STEPS) as here:
        for step in range(10):
            x = advance(fast, x, step)
        pieces.fail = True
        with pytest.raises(RuntimeError, match="out of memory"):
            for _ in range(10):
                advance(fast, x, 10)
        pieces.fail = False
        calls = len(here.summary().calls)
        advance(fast, x, 10)
        assert [call.reused for call in here.summary().calls[calls:]] == [False]
        assert here.summary().calls[-1].step == calls


def test_more_calls_than_steps_compute_and_warn_once(pieces: Pieces) -> None:
    fast = compiled(Network())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with laconic.session(fast, steps=5) as here:
            trajectory(fast, start())
    assert [call.reused for call in here.summary().calls[4:]] == [False] * (STEPS - 4)
    assert sum("more than 5 steps" in str(item.message) for item in caught) == 1


@pytest.mark.parametrize(("steps", "streams", "calls"), [(STEPS, 1, 13), (STEPS, 2, STEPS), (STEPS, 1, STEPS)])
def test_fewer_calls_than_steps_are_said_at_the_end(pieces: Pieces, steps: int, streams: int, calls: int) -> None:
    """A scheduler that skips steps, or a wrong number of steps or calls: no step was known to be the last."""
    fast = compiled(Network())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with laconic.session(fast, steps=steps, calls_per_step=streams):
            trajectory(fast, start(), steps=calls)
        with pytest.raises(KeyError), laconic.session(fast, steps=steps):
            fast(start(), torch.tensor(0.0))
            raise KeyError  # an exception says enough by itself
    texts = [str(item.message) for item in caught if "announced" in str(item.message)]
    assert [f"called {calls} times" in text for text in texts] == ([True] if calls < steps * streams else [])


@dataclass(frozen=True)
class Never(CachePolicy):
    """Decides to reuse whatever it is asked."""

    limit: int | None = 4

    @property
    def longest_run(self) -> int | None:
        return self.limit

    def tracker(self, role: str = "") -> Tracker:
        return Stubborn()

    def plan(self, context: PlanContext) -> Plan:
        (output,) = context.graph.output.all_input_nodes
        latent = next(node for node in context.graph.placeholders if not context.graph.is_static(node))
        return Plan(regions=[CachedRegion(entries=(latent,), exits=(output,), policy=self, role="all")])


class Stubborn(Tracker):
    def decide(self, moment: Moment, entries: Sequence[Tensor]) -> bool:
        return True

    def observe(self, moment: Moment, entries: Sequence[Tensor], exits: Sequence[Tensor]) -> None:
        self.kept, self.ready = exits[0].clone(), True

    def predict(self, moment: Moment, entries: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (self.kept.clone(),)

    def tensors(self) -> Sequence[Tensor]:
        return [self.kept] if self.ready else []


@pytest.mark.parametrize(("limit", "computed"), [(4, [0, 5, 10, 15]), (None, [0])])
def test_a_policy_that_never_refreshes_is_made_to(
    pieces: Pieces, monkeypatch: pytest.MonkeyPatch, limit: int | None, computed: list[int]
) -> None:
    monkeypatch.setitem(FACTORIES, "cache", Factory("cache", {"never": Never}, None, ""))
    fast = torch.compile(Network(), backend="laconic", options={"passes": [Pass("cache", "never", Never(limit))]})
    with laconic.session(fast, steps=STEPS) as here:
        trajectory(fast, start())
        advance(fast, start(), STEPS)  # beyond the end: computed, whatever the policy says
    assert [call.step for call in here.summary().calls if not call.reused] == [*computed, STEPS]
    assert {call.region.split(" ", 2)[2] for call in here.summary().calls} == {"all"}


def test_memory_returns_to_the_level_before(pieces: Pieces) -> None:
    model = Network()
    fast = compiled(model)
    one, two = start(0, 37, 8), start(0, 41, 8)  # sizes that nothing else in this process has
    in_session(fast, one)
    advance(fast, two, 0)  # what compiled code for other sizes keeps is there to stay

    def alive() -> int:
        gc.collect()
        held = [item for item in gc.get_objects() if issubclass(type(item), Tensor)]
        return sum(item.dim() > 0 and item.shape[0] in (37, 41) for item in held)

    before = alive()
    with laconic.session(fast, steps=STEPS, calls_per_step=2):
        x = trajectory(fast, one, streams=2, steps=8)
        assert alive() > before + 1
        trajectory(fast, two, streams=2, steps=2)
    with contextlib.suppress(KeyError), laconic.session(fast, steps=STEPS):
        trajectory(fast, one, steps=8)
        raise KeyError
    del x
    assert alive() == before
    weight = weakref.ref(model.layers[0].weight)
    last = laconic.session(fast, steps=STEPS)
    with last:
        trajectory(fast, one, steps=8)
    del fast, model
    torch._dynamo.reset()
    gc.collect()
    assert weight() is None and last.summary().calls  # a session keeps no model alive


def test_copies(pieces: Pieces) -> None:
    """Copied models have trajectories of their own; a session itself is of this place and time."""
    fast = compiled(Network())
    expected = in_session(fast, start())
    with laconic.session(fast, steps=STEPS) as here:
        x = trajectory(fast, start(), steps=9)
        copies = [copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))]
        for other in copies:  # not of this session
            assert torch.equal(advance(other, x, 9), advance(Network(), x, 9))
        for step in range(9, STEPS):
            x = advance(fast, x, step)
    assert torch.equal(x, expected)
    assert all(torch.equal(in_session(other, start()), expected) for other in copies)
    summary = pickle.loads(pickle.dumps(here.summary()))
    assert str(summary) == str(copy.deepcopy(here.summary())) == str(here.summary())
    summary.add([], 0, 0)
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a session cannot be copied"):
            attempt(here)


def test_modes_that_change_on_the_way(pieces: Pieces) -> None:
    """Another gradient mode, autocast or a gradient runs another graph, whose state starts empty: nothing is stale."""
    modes: list[Callable[[], Any]] = [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        torch.enable_grad,
    ]
    fast, network = compiled(Network(), threshold=1e9, warmup=1), Network()
    with laconic.session(fast, steps=STEPS) as here:
        for step in range(STEPS):
            x, t = start(step), torch.tensor(step / STEPS)
            with torch.no_grad() if step % 5 else contextlib.nullcontext(), modes[step // 2 % 4]():
                result, expected = fast(x, t), network(x, t)
                # The first call in each mode; behind it the last output is continued.
                if not here.summary().calls[-1].reused:
                    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
                result.zero_()
        again = start(9).requires_grad_(True)
        fast(again, torch.tensor(0.0)).sum().backward()
        assert again.grad is not None and again.grad.any()
    assert here.summary().computed >= 4


def test_the_picture_and_the_plain_data_of_a_session(pieces: Pieces) -> None:
    fast = compiled(Network())
    with laconic.session(fast, steps=STEPS) as here:
        trajectory(fast, start())
    data, lines = here.summary().to_dict(), str(here.summary()).splitlines()
    assert [row["step"] for row in data["bytes_held"]] == list(range(STEPS))
    assert data["peak_bytes"] == max(row["bytes"] for row in data["bytes_held"]) > 0
    marks, bars = lines[1].split()[-1], lines[2]
    assert len(marks) == STEPS and marks.count(".") == data["reused"] and "up to" in bars and "█" in bars
    report = laconic.report(fast)
    assert lines[1].strip() in str(report) and report.to_dict()["graphs"][0]["session"] == data


def test_a_session_is_drawn_into_the_debug_folder(pieces: Pieces, tmp_path: Path) -> None:
    passes = [laconic.cache("easycache", threshold=0.2, warmup=3)]
    fast = torch.compile(Network(), backend="laconic", options={"passes": passes, "debug": str(tmp_path / "a<b")})
    for _ in range(2):
        with laconic.session(fast, steps=STEPS, calls_per_step=2) as here:
            trajectory(fast, start(), streams=2)
    folder = tmp_path / "a<b"
    assert sorted(path.name for path in folder.glob("*.svg")) == ["session-0.svg", "session-1.svg"]
    root = ElementTree.fromstring((folder / "session-1.svg").read_text())
    space = "{http://www.w3.org/2000/svg}"
    cells = [cell for cell in root.iter(f"{space}rect") if cell.find(f"{space}title") is not None]
    titles = [str(cell.findtext(f"{space}title")) for cell in cells]
    summary = here.summary()
    assert len(cells) == len(summary.calls) == 2 * STEPS
    assert sum(": reused" in title for title in titles) == summary.reused > 0
    # One curve of indicators (only stream 0 has them) and one of memory.
    curves = [str(line.get("points")).split() for line in root.iter(f"{space}polyline")]
    assert [len(points) for points in curves] == [sum(c.indicator is not None for c in summary.calls), STEPS]
    saved = json.loads((folder / "report.json").read_text())["graphs"][0]["session"]
    assert saved["reused"] == summary.reused and summary.reused > 0
    # A picture of nothing, and one with numbers that are none, are drawn as well.
    for other in (Summary(3), Summary(3, 1, [Call("r & s", 0, 0, False, float("nan"))], {0: 0})):
        ElementTree.fromstring(svg(other))


def test_a_change_of_shape_starts_afresh(pieces: Pieces) -> None:
    fast = compiled(Network())
    with laconic.session(fast, steps=STEPS) as here:
        trajectory(fast, start(), steps=10)
        for rows in (2, 4, 4):
            result = advance(fast, start(0, rows, 8), 10)
            assert torch.equal(result, advance(Network(), start(0, rows, 8), 10))
    calls = here.summary().calls
    assert [call.step for call in calls] == list(range(13))
    assert not any(call.reused for call in calls[10:12])


def test_threads_have_trajectories_of_their_own(pieces: Pieces) -> None:
    fast = compiled(Network())
    expected = [in_session(fast, start(seed)) for seed in range(4)]
    results: dict[int, Tensor] = {}
    one = laconic.session(fast, steps=STEPS)

    def work(seed: int) -> None:
        with one:
            results[seed] = trajectory(fast, start(seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    with one:  # not seen by the threads
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(results[seed], expected[seed]) for seed in range(4))


def test_threads_that_share_a_context_take_turns(pieces: Pieces) -> None:
    fast = compiled(Network())
    trajectory(fast, start(), steps=1)
    pieces.pause = 0.005  # long enough for a second thread to come in between deciding and counting
    with laconic.session(fast, steps=STEPS) as here:
        contexts = [contextvars.copy_context() for _ in range(4)]
        threads = [threading.Thread(target=c.run, args=(trajectory, fast, start(0), 1, 5)) for c in contexts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(call.step for call in here.summary().calls) == list(range(STEPS))


def test_nothing_outlives_the_block_or_the_model(pieces: Pieces) -> None:
    model = Network()
    fast = compiled(model)
    with laconic.session(fast, steps=STEPS) as here:
        trajectory(fast, start(), steps=5)
        state = session._active.get()[0]
        (strand,) = state._strands.values()
        kept = weakref.ref(next(iter(strand.trackers.values())).tracker)
        weight = weakref.ref(model.layers[0].weight)
        del strand, model, fast
        torch._dynamo.reset()
        gc.collect()
        assert weight() is None and kept() is None and not state._strands
    model = Network()
    fast = compiled(model)
    with laconic.session(fast, steps=STEPS):
        trajectory(fast, start(), steps=5)
        (strand,) = session._active.get()[0]._strands.values()
        kept = weakref.ref(next(iter(strand.trackers.values())).tracker)
        del strand
    gc.collect()
    assert kept() is None and len(here.summary().calls) == 5


@pytest.mark.parametrize("change", ["add_", "data", "load_state_dict", "replaced"])
def test_changed_weights_are_not_mistaken_for_the_old(pieces: Pieces, change: str) -> None:
    model = Network()
    fast = compiled(model, threshold=100)  # reuses whatever it may
    other = Network(7)
    with laconic.session(fast, steps=STEPS) as here:
        x = trajectory(fast, start(), steps=10)
        assert here.summary().calls[-1].reused
        with torch.no_grad():
            for layer, wanted in ((model.layers[0], other.layers[0]), (model.layers[2], other.layers[2])):
                if change == "add_":
                    layer.weight.add_(wanted.weight - layer.weight)
                    layer.bias.copy_(wanted.bias)
                elif change == "data":
                    layer.weight.data, layer.bias.data = wanted.weight.data, wanted.bias.data
                elif change == "replaced":
                    layer.weight, layer.bias = wanted.weight, wanted.bias
            if change == "load_state_dict":
                model.load_state_dict(other.state_dict())
        torch.testing.assert_close(advance(fast, x, 10), advance(other, x, 10), rtol=1e-5, atol=1e-6)


def test_tensors_the_caller_writes_into_are_not_the_state(pieces: Pieces) -> None:
    fast = compiled(Network())
    expected, x = in_session(fast, start()), start()
    with laconic.session(fast, steps=STEPS), torch.inference_mode():
        for step in range(STEPS):
            out = fast(x, torch.tensor(step / STEPS))
            x.add_(out / STEPS)  # the latent in place
            out.zero_()
    assert torch.equal(x, expected)


def test_a_function_and_a_module_compiled_in_place(pieces: Pieces) -> None:
    model = Network()
    expected = in_session(compiled(model), start())
    torch._dynamo.reset()
    function = compiled(lambda x, t: model(x, t))
    assert torch.equal(in_session(function, start()), expected)
    torch._dynamo.reset()
    passes = [laconic.cache("easycache", threshold=0.2, warmup=3)]
    model.compile(backend="laconic", options={"passes": passes})
    assert torch.equal(in_session(model, start()), expected)


def test_the_latent_may_come_back_in_a_dict_among_others(pieces: Pieces) -> None:
    class Wrapped(Network):
        def forward(self, x: Tensor, t: Tensor) -> Any:
            return {"hidden": self.layers[0](x), "x": x, "velocity": super().forward(x, t), "n": 3, "none": None}

    fast = compiled(Wrapped())
    with laconic.session(fast, steps=STEPS) as here:
        x = start()
        for step in range(STEPS):
            with torch.no_grad():
                out = fast(x, torch.tensor(step / STEPS))
            assert out["x"] is x and out["n"] == 3 and out["none"] is None and out["hidden"].shape == (4, 16)
            x = x + out["velocity"] / STEPS
    assert here.summary().reused > 0
    assert torch.equal(x, in_session(compiled(Network()), start()))


def test_an_error_budget_judges_the_first_reuse(pieces: Pieces) -> None:
    def made(budget: float) -> Any:
        passes = [laconic.cache("easycache", threshold=0.2, warmup=3)]
        return torch.compile(Network(), backend="laconic", options={"passes": passes, "error_budget": budget})

    strict, loose = made(1e-6), made(0.9)
    assert torch.equal(in_session(strict, start()), trajectory(Network(), start()))
    (row,) = [row for row in laconic.report(strict).rewrites if "cache" in row.pass_name]
    assert row.status == "fell_back" and row.error is not None and row.error > 1e-6
    assert "over-budget" in [row.code for row in laconic.report(strict).refusals]
    before = pieces.runs
    in_session(loose, start())
    (row,) = [row for row in laconic.report(loose).rewrites if "cache" in row.pass_name]
    assert row.status == "applied" and row.error is not None and 0 < row.error < 0.9
    assert pieces.runs - before < STEPS


@pytest.mark.parametrize(
    ("function", "code"),
    [
        (lambda x, t: (x * t).sum(-1), "no-latent"),
        (lambda x, t: x.add_(t) * 2, "mutation"),
    ],
)
def test_what_cannot_be_cached_runs_as_it_is(pieces: Pieces, function: Any, code: str) -> None:
    fast = compiled(function)
    with laconic.session(fast, steps=STEPS) as here:
        for step in range(6):
            t = torch.tensor(float(step))
            assert torch.equal(fast(start(), t), function(start(), t))
    assert here.summary().calls == []
    assert code in [row.code for row in laconic.report(fast).refusals]


def test_differentiated_calls_are_refused(pieces: Pieces) -> None:
    fast = compiled(Network().requires_grad_(True))
    with laconic.session(fast, steps=STEPS):
        for _ in range(5):
            fast(start(), torch.tensor(0.5)).sum().backward()
    assert "requires-grad" in [row.code for row in laconic.report(fast).refusals]


def test_what_a_session_takes() -> None:
    model = Network()
    fast = torch.compile(model, backend="laconic")
    for wrong in (model, torch.compile(model, backend="eager"), len, 3, None):
        with pytest.raises(TypeError, match=r"laconic\.session takes"):
            laconic.session(wrong, steps=4)
    with pytest.raises(TypeError, match="at least one"):
        laconic.session(steps=4)
    for name in ("steps", "calls_per_step"):
        for value in (2.0, True, None):
            with pytest.raises(TypeError, match=name):
                laconic.session(fast, **{"steps": 4, name: value})
        with pytest.raises(ValueError, match=name):
            laconic.session(fast, **{"steps": 4, name: 0})
    assert laconic.session(fast, steps=4).summary().calls == []
