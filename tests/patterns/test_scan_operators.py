"""Recurrences that are one operator: ``scan`` and ``while_loop`` as Dynamo captures them, ``torch.nn.LSTM``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

from laconic.passes.apply import apply
from laconic.passes.base import PlanContext
from laconic.passes.scan import LinearScan
from laconic.patterns.graph import NormalGraph
from laconic.patterns.normalize import normalize
from laconic.patterns.scan import find_scan, prove_scan
from laconic.patterns.sites import Recurrence, Scan, Sites

B, L, D = 2, 7, 5

Spelling = Callable[[Tensor, Tensor], Any]


def vectors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(B, L, D, generator=generator), torch.randn(B, L, D, generator=generator)


def captured(function: Callable[..., Any], *inputs: Tensor, rewrite: bool = False) -> tuple[Sites, list[str], Any]:
    """What is found in the graph Dynamo hands over, the operators left when it is rewritten, and what it computes."""
    found: list[Sites] = []
    names: list[str] = []

    def backend(module: torch.fx.GraphModule, values: list[Any]) -> torch.fx.GraphModule:
        graph = normalize(module, values)
        assert isinstance(graph, NormalGraph), graph
        found.append(Sites(*find_scan(graph, Sites())))
        if rewrite:
            outcome = apply(graph, LinearScan().plan(PlanContext(graph, found[0], found[0].of(Scan))).rewrites)
            assert not outcome.refused, outcome.refused
            graph = outcome.graph
        names.extend(str(node.target) for node in graph.module.graph.nodes)
        return graph.module

    torch._dynamo.reset()
    with torch.no_grad():
        result = torch.compile(function, backend=backend, fullgraph=True)(*inputs)
    (sites,) = found
    return sites, names, result


def carried(step: Callable[[Tensor, Any], tuple[Tensor, Any]], a: Tensor, x: Tensor) -> tuple[Tensor, Any]:
    return scan(step, torch.ones(B, D), (a, x), dim=1)


def plain(a: Tensor, x: Tensor) -> Any:
    def step(h: Tensor, read: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h = read[0] * h + read[1]
        return h, h.clone()

    return carried(step, a, x)


def gates_in_the_body(a: Tensor, x: Tensor) -> Any:
    rate = a[0, 0].exp()

    def step(h: Tensor, read: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        gate = torch.sigmoid(read[0] * rate)
        h = gate * h + (1 - gate) * read[1].tanh()
        return h, torch.tanh(h).sum(-1)

    return carried(step, a, x)


def reads_the_state_before(a: Tensor, x: Tensor) -> Any:
    def step(h: Tensor, read: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return read[0] * h - read[1], h * read[1]

    return carried(step, a, x)


@pytest.mark.parametrize("spelling", [plain, gates_in_the_body, reads_the_state_before], ids=lambda f: f.__name__)
def test_a_scan_of_affine_steps_is_rewritten(spelling: Spelling) -> None:
    inputs = vectors()
    sites, names, result = captured(spelling, *inputs, rewrite=True)
    (site,) = sites
    assert isinstance(site, Scan) and (site.form, site.gate, site.length) == ("scan operator", "diagonal", L)
    assert prove_scan(site) is None and not sites.refusals
    assert "laconic.linear_recurrence.default" in names and "scan" not in names
    torch._dynamo.reset()
    expected = torch.compile(spelling, backend="eager")(*inputs)
    for got, want in zip(result, expected, strict=True):
        torch.testing.assert_close(got, want)


def nonlinear(a: Tensor, x: Tensor) -> Any:
    def step(h: Tensor, read: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h = torch.tanh(read[0] * h + read[1])
        return h, h.clone()

    return carried(step, a, x)


def decay_from_the_state(a: Tensor, x: Tensor) -> Any:
    def step(h: Tensor, read: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h = torch.sigmoid(h) * h + read[1] * read[0]
        return h, h.clone()

    return carried(step, a, x)


@pytest.mark.parametrize("spelling", [nonlinear, decay_from_the_state], ids=lambda f: f.__name__)
def test_a_scan_of_other_steps_is_reported_and_left(spelling: Spelling) -> None:
    sites, _, _ = captured(spelling, *vectors())
    (site,) = sites
    assert isinstance(site, Recurrence) and (site.form, site.length) == ("scan operator", L)
    assert site.gate == "nonlinear" and site.obstacle.code == "nonlinear-state"


def until_done(a: Tensor, x: Tensor) -> Any:
    def condition(step: Tensor, state: Tensor) -> Tensor:
        return step < L

    def body(step: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return step + 1, a[:, 0] * state + x[:, 0]

    return while_loop(condition, body, (torch.zeros((), dtype=torch.int64), torch.zeros(B, D)))[1]


def test_a_while_loop_is_reported_and_left() -> None:
    sites, _, _ = captured(until_done, *vectors())
    (site,) = sites
    assert isinstance(site, Recurrence) and site.form == "while_loop operator" and site.gate == "diagonal"
    assert site.obstacle.code == "no-operator"


@pytest.mark.parametrize(
    ("network", "form"), [(nn.LSTM, "lstm operator"), (nn.GRU, "gru operator"), (nn.RNN, "rnn_tanh operator")]
)
def test_recurrent_networks_of_torch(network: type[nn.Module], form: str) -> None:
    """Dynamo leaves them to Python unless it is told otherwise; then they are one operator, whatever the length."""
    model = network(D, D, batch_first=True).eval()
    with mock.patch("torch._dynamo.config.allow_rnn", True):
        sites, names, _ = captured(lambda x: model(x)[0], vectors()[1])
    (site,) = sites
    assert isinstance(site, Recurrence) and (site.form, site.gate, site.length) == (form, "nonlinear", L)
    assert site.obstacle.code == "nonlinear-state"
    assert len(names) < 20
