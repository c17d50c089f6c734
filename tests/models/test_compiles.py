"""Never more graphs or compiles than torch.compile alone in the same sequence of calls, on models nobody here wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from tests.models.builders import BUILDERS
from tests.models.support import relative, tensors, with_batch
from tests.without_inductor import use_aot_autograd_only

Call = tuple[tuple[Any, ...], dict[str, Any]]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiles(model: Any, backend: Any, calls: Sequence[Call], dynamic: bool | None) -> tuple[int, int, list[Any]]:
    """Graphs Dynamo made, frames it compiled, and what the calls returned."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = torch.compile(model, backend=backend, dynamic=dynamic)
    with torch.no_grad():
        results = [tensors(compiled(*args, **kwargs)) for args, kwargs in calls]
    return counters["stats"]["unique_graphs"], counters["frames"]["ok"], results


def check(model: Any, calls: Sequence[Call], dynamic: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    use_aot_autograd_only(monkeypatch)
    graphs, frames, theirs = compiles(model, "eager", calls, dynamic)
    our_graphs, our_frames, ours = compiles(model, "laconic", calls, dynamic)
    assert our_graphs <= graphs and our_frames <= frames
    for got, expected in zip(ours, theirs, strict=True):
        for value, reference in zip(got, expected, strict=True):
            assert relative(value, reference) <= 1e-5


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_three_batch_sizes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is compiled as it is, the second for any size, and the third must find that."""
    model, args, kwargs = BUILDERS[name](1)
    check(model, [with_batch((args, kwargs), batch) for batch in (2, 3, 5)], None, monkeypatch)


@pytest.mark.parametrize("dynamic", [None, False, True], ids=["by default", "static", "dynamic"])
def test_three_lengths(dynamic: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, args, kwargs = BUILDERS["llama-sdpa"](1)
    calls = [(args, {"input_ids": kwargs["input_ids"][:, :length].clone()}) for length in (5, 9, 12)]
    check(model, calls, dynamic, monkeypatch)


@pytest.mark.parametrize("name", ["bert", "dit"])
def test_dynamic_from_the_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, args, kwargs = BUILDERS[name](1)
    check(model, [with_batch((args, kwargs), batch) for batch in (2, 3, 5)], True, monkeypatch)
