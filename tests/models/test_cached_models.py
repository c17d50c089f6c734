"""Every cache policy on real models: no recompile, exact when off, trajectories apart from each other.

Pieces run as they are; ``benchmarks/policy_matrix.py`` has the same rows through Inductor with 50 steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn

import laconic
from laconic.backends import pipeline, runner
from laconic.passes.base import PlanContext
from laconic.passes.cache_levels import regions_at
from laconic.passes.cache_static import Static
from laconic.passes.measure import relative_l2
from laconic.passes.report import GraphReport

from .policy_rows import ARCHITECTURES, POLICIES, Architecture, Guided, Row

STEPS = 8


class Several(laconic.Backend):
    """Compiles a graph for each row three times, as ``(row, "first" | "fresh" | "off")``; ``chosen`` is what runs.

    Dynamo, the retrace and detection take most of a compile and are the same for all, so they are done once.
    """

    rows: dict[str, Row]
    chosen: list[tuple[str, str]]
    keys: list[tuple[str, str]]

    @classmethod
    def of(cls, rows: dict[str, Row]) -> Several:
        backend = cls()
        for name, value in (("rows", rows), ("chosen", []), ("keys", [])):
            object.__setattr__(backend, name, value)
        return backend

    def __call__(self, module: Any, inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        made: dict[Any, Callable[..., Any]] = {}
        with pytest.MonkeyPatch.context() as patch:
            graph = pipeline.normalize(module, inputs)
            sites = pipeline.detect(graph)
            patch.setattr(pipeline, "normalize", lambda *_: graph)
            patch.setattr(pipeline, "detect", lambda *_: sites)
            layers = regions_at("layers", PlanContext(graph, sites, ()), Static([1], level="layers")).regions
            for name, row in self.rows.items():
                for kind in ("first", "fresh", "off"):
                    passes = row.passes(STEPS, len(layers), identity=kind == "off")
                    made[name, kind] = laconic.Backend(passes)(module, inputs)
                    self.keys.append((name, kind))
        return lambda *args: made[self.chosen[-1]](*args)


@pytest.fixture
def compiled_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Pieces run as they are instead of through Inductor; the list grows by one for each that is compiled."""
    torch._dynamo.reset()
    count: list[int] = []

    def compile_graph(module: torch.fx.GraphModule, inputs: Any, options: Any) -> Callable[..., Any]:
        count.append(len(count))
        return module

    monkeypatch.setattr(runner, "compile_graph", compile_graph)
    yield count
    torch._dynamo.reset()


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_policy(name: str, guided: bool, compiled_pieces: list[int]) -> None:
    architecture = ARCHITECTURES[name]()
    if guided:
        architecture = architecture.guided()
    rows = {label: row for label, row in POLICIES.items() if row.guided is guided}
    backend = Several.of(rows)
    fast = torch.compile(architecture.model, backend=backend, fullgraph=True)
    plain = architecture.trajectory(architecture.model, STEPS)

    def run(label: str, kind: str, *seeds: int) -> list[torch.Tensor]:
        backend.chosen.append((label, kind))
        ends = []
        session = laconic.session(fast, steps=STEPS)
        for seed in seeds:
            with session:  # the same one again: each block is a trajectory of its own
                ends.append(architecture.trajectory(fast, STEPS, seed))
        reused.append(session.summary().reused)
        return ends

    reused: list[int] = []
    for label in rows:
        backend.chosen.append((label, "first"))
        # Outside a session the pieces run without a policy.
        exact = architecture.trajectory(fast, STEPS)
        assert relative_l2(exact, plain) < 1e-5, label
        with torch._dynamo.config.patch(error_on_recompile=True):
            together = run(label, "first", 0, 1)
            compiles = len(compiled_pieces)
            assert torch.equal(run(label, "first", 0)[0], together[0]), label
            assert len(compiled_pieces) == compiles, label
            assert reused[-1] > 0 and 0 < relative_l2(together[0], plain) < (1 if guided else 0.1), label
            if label == "adaptive-guidance":  # from the second step on
                assert relative_l2(together[0], unguided_after_the_first(architecture)) < 1e-5
            # Back to back is as apart from each other.
            assert torch.equal(run(label, "fresh", 1)[0], together[1]), label
            assert not torch.equal(*together), label
            # The identity setting is the pieces without a policy.
            assert torch.equal(run(label, "off", 0)[0], exact) and reused[-1] == 0, label
    refused = refusals(fast, backend)
    assert not refused, refused


def unguided_after_the_first(architecture: Architecture) -> torch.Tensor:
    """A trajectory whose first step alone is guided; a scale of one is the conditional output."""
    assert isinstance(architecture.model, Guided)
    networks = [architecture.model, Guided(architecture.model.network, architecture.model.latent, 1.0)]
    calls = itertools.count()
    return architecture.trajectory(lambda **inputs: networks[next(calls) > 0](**inputs), STEPS)


def refusals(fast: nn.Module, backend: Several) -> list[Any]:
    """What any of the caches left alone, where."""
    graphs: list[GraphReport] = laconic.report(fast).graphs
    assert len(graphs) == len(backend.keys)
    found = zip(backend.keys, graphs, strict=True)
    return [
        (key, row)
        for key, graph in found
        for row in graph.refusals
        if row.pass_name == "cache" and row.code != "no-session"
    ]


def compile_with(model: nn.Module, policy: str, settings: dict[str, Any]) -> Any:
    options = {"passes": [laconic.cache(policy, **settings)]}
    return torch.compile(model, backend="laconic", options=options, fullgraph=True)


def trajectory_with(architecture: Architecture, policy: str, settings: dict[str, Any]) -> tuple[Any, torch.Tensor, int]:
    """The compiled model, where it ended, and how often something was reused."""
    torch._dynamo.reset()
    fast = compile_with(architecture.model, policy, settings)
    with laconic.session(fast, steps=STEPS) as session:
        end = architecture.trajectory(fast, STEPS)
    return fast, end, session.summary().reused


def test_forecasts_over_the_models_own_time(compiled_pieces: list[int]) -> None:
    architecture = ARCHITECTURES["custom"]()
    _, over_time, reused = trajectory_with(architecture, "taylor", {"interval": 3, "time": "t"})
    assert reused > 0
    # The time of this trajectory grows ever faster, so steps and times give different lines.
    assert not torch.equal(trajectory_with(architecture, "taylor", {"interval": 3})[1], over_time)
    wrong, *_ = trajectory_with(architecture, "taylor", {"time": "time"})
    texts = [row.text for row in laconic.report(wrong).refusals if row.pass_name == "cache"]
    assert texts == ["no tensor argument is named 'time'; there are x, t, label"]


def test_a_network_without_repeated_blocks_says_so(compiled_pieces: list[int]) -> None:
    from .builders import BUILDERS

    architecture = Architecture.of(BUILDERS["dit"](1))
    plain = architecture.trajectory(architecture.model, STEPS)
    fast, end, reused = trajectory_with(architecture, "delta-dit", {})
    codes = {row.code for row in laconic.report(fast).refusals if row.pass_name == "cache"}
    assert codes == {"no-site"} and reused == 0 and relative_l2(end, plain) < 1e-5
