"""Awkward graphs and failing passes with everything switched on: they run, exactly where nothing fits, and say why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import laconic
from tests.without_inductor import run_graphs_as_they_are

EVERYTHING = [
    laconic.quantize("int8", min_features=1, min_products=0),
    laconic.merge_tokens("tome", r=4),
    laconic.sparse_attention("window", size=2),
    laconic.cache("easycache", threshold=100, warmup=1),
]


@pytest.fixture(autouse=True)
def as_they_are(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    run_graphs_as_they_are(monkeypatch)
    yield
    torch._dynamo.reset()


def compiled(function: Any, *passes: Any) -> Any:
    return torch.compile(function, backend="laconic", options={"passes": list(passes or EVERYTHING)})


def exact(function: Callable[..., Any], *args: Tensor) -> set[str]:
    """The result and what is left of the arguments must be eager's own; the codes of what was refused."""
    first, second = ([value.clone() for value in args] for _ in range(2))
    run = compiled(function)
    with torch.no_grad():
        torch.testing.assert_close(run(*first), function(*second), equal_nan=True)
    torch.testing.assert_close(first, second)
    report = laconic.report(run)
    assert not [row for row in report.rewrites if row.status == "applied" and "cache" not in row.pass_name]
    return {row.code for row in report.refusals}


def attend(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


class Held(nn.Module):
    """A linear with a weight of any type."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


def test_complex_tensors() -> None:
    layer = Held(torch.randn(8, 8, dtype=torch.complex64))
    assert "unsupported-dtype" in exact(layer, torch.randn(3, 8, dtype=torch.complex64))


def test_integer_tensors() -> None:
    layer = Held(torch.ones(8, 8, dtype=torch.int64))
    assert {"unsupported-dtype", "no-site"} & exact(layer, torch.ones(3, 8, dtype=torch.int64))


def test_nothing_in_them() -> None:
    assert exact(attend, torch.zeros(2, 2, 0, 8))
    assert "unsupported-shape" in exact(Held(torch.randn(8, 8)), torch.zeros(0, 8))
    assert exact(Held(torch.zeros(8, 0)), torch.zeros(4, 0))


def test_writes_into_arguments_and_views() -> None:
    def function(x: Tensor, weight: Tensor) -> Tensor:
        view = x.view(-1)
        view[3:9].mul_(2)
        weight.t()[0].add_(1)
        y = F.linear(x, weight)
        x.add_(y)
        return x.t() @ y

    assert exact(function, torch.randn(5, 8), torch.randn(8, 8))


def test_scores_written_in_place_keep_what_they_say() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        scores = x @ x.transpose(-2, -1)
        kept = scores.view(-1)
        scores.mul_(0.5)
        return torch.softmax(scores, -1) @ x, kept

    assert exact(function, torch.randn(2, 12, 8))


@pytest.mark.parametrize(
    "wrapped",
    [
        pytest.param(lambda y: {"y": y, "none": None, "more": [y * 2, (y + 1,)]}, id="dict"),
        pytest.param(lambda y: None, id="None"),
        pytest.param(lambda y: (y, 3, 0.5), id="numbers"),
        pytest.param(lambda y: y[:0], id="empty"),
    ],
)
def test_what_a_model_returns(wrapped: Callable[[Tensor], Any]) -> None:
    linear = nn.Linear(8, 8)
    x = torch.randn(4, 8)

    def model(x: Tensor) -> Any:
        return wrapped(linear(x))

    run = compiled(model)
    with torch.no_grad(), laconic.session(run, steps=6):
        for _ in range(3):
            got, expected = run(x), model(x)
            torch.testing.assert_close(got, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("place", ["plan", "replacement"])
@pytest.mark.parametrize("item", EVERYTHING, ids=[item.name for item in EVERYTHING])
def test_a_failing_pass_costs_only_itself(item: laconic.Pass, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception while planning, or in what the plan would put in place: another pass still applies."""

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a bug in a pass")

    kind = type(item.policy)
    original = kind.plan

    def plan(self: Any, context: Any) -> Any:
        found = broken() if place == "plan" else original(self, context)
        found.rewrites = [dataclasses.replace(rewrite, replacement=broken) for rewrite in found.rewrites]
        return found

    monkeypatch.setattr(kind, "plan", plan)
    other = EVERYTHING[0] if item.name != "quantize" else EVERYTHING[1]
    linear = nn.Linear(8, 8)

    def model(x: Tensor) -> Tensor:
        return linear(attend(x.unflatten(-1, (2, 4)).transpose(1, 2)).transpose(1, 2).flatten(2))

    run, x = compiled(model, item, other), torch.randn(2, 16, 8)
    with torch.no_grad():
        assert run(x).shape == x.shape
    report = laconic.report(run)
    done = {row.pass_name for row in report.rewrites if row.status == "applied"}
    if place == "replacement" and item.name == "cache":
        assert repr(item) in done  # it replaces nothing
    else:
        code = "pass-failed" if place == "plan" else "rolled-back"
        (refusal,) = [row for row in report.refusals if row.code == code]
        assert refusal.pass_name == item.name and "ZeroDivisionError" in refusal.text
        assert repr(item) not in done
    assert repr(other) in done


def test_unknown_names_are_answered_with_the_nearest() -> None:
    for call, text in (
        (lambda: laconic.disable("qantize"), "did you mean 'quantize'"),
        (lambda: laconic.quantize("int"), "did you mean 'int8'"),
        (lambda: laconic.Backend(passes=["merge_token"]), "did you mean 'merge_tokens'"),
        (lambda: laconic.Backend(verify="alway"), "did you mean 'always'"),
        (lambda: laconic.merge_tokens("tome", ratio=3), "valid choices: "),
    ):
        with pytest.raises((ValueError, TypeError), match=text):
            call()


@pytest.mark.parametrize("way", ["option", "environment"])
@pytest.mark.parametrize("fuel", [0, 1, 2])
def test_fuel_stops_after_so_many_rewrites(fuel: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    options: dict[str, Any] = {"passes": EVERYTHING[:1]}
    if way == "option":
        options["fuel"] = fuel
    else:
        monkeypatch.setenv("LACONIC_FUEL", str(fuel))
    run = torch.compile(model, backend="laconic", options=options)
    with torch.no_grad():
        run(torch.randn(4, 8))
    report = laconic.report(run)
    assert len(report.rewrites) == fuel
    assert [row.code for row in report.refusals] == ["out-of-fuel"] * (3 - fuel)
