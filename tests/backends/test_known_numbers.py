"""Numbers known while Dynamo traces for this backend do not end the graph; others do, and writes are seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.variables.tensor import TensorVariable

import laconic
from tests.without_inductor import use_aot_autograd_only


def graphs(function: Any, *inputs: Any, backend: Any = "laconic") -> tuple[int, Any]:
    """How many graphs ``function`` becomes, and what it then computes."""
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    with torch.no_grad():
        result = torch.compile(function, backend=backend)(*inputs)
    return counted["unique_graphs"] - before, result


def span(x: Tensor) -> Tensor:
    """A bound of a slice as some models write it: made from sizes, through tensors."""
    half, x = torch.tensor(min(x.shape[0], 8)) // 2, x + 1
    return x[4 - half.item() : 4 + half.item()] * 2


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    use_aot_autograd_only(monkeypatch)


def test_a_known_bound_is_part_of_the_graph() -> None:
    x = torch.randn(6, 3)
    number, result = graphs(span, x)
    assert number == 1
    torch.testing.assert_close(result, span(x))
    assert len(laconic.explain(span, x).to_dict()["graphs"]) == 1


def test_a_tensor_is_a_bound() -> None:
    def cut(x: Tensor) -> Tensor:
        return (x + 1)[: torch.tensor(3)] * 2

    x = torch.randn(6)
    number, result = graphs(cut, x)
    assert number == 1
    torch.testing.assert_close(result, cut(x))


def test_other_backends_are_left_alone() -> None:
    x = torch.randn(6, 3)
    number, result = graphs(span, x, backend="eager")
    assert number > 1
    torch.testing.assert_close(result, span(x))


def test_a_number_that_is_not_known_ends_the_graph() -> None:
    def cut(x: Tensor, at: Tensor) -> Tensor:
        return (x + 1)[: at.item()] * 2

    x, at = torch.randn(6), torch.tensor(3)
    number, result = graphs(cut, x, at)
    assert number > 1
    torch.testing.assert_close(result, cut(x, at))


def test_a_number_is_forgotten_when_it_is_written() -> None:
    def cut(x: Tensor) -> Tensor:
        at = torch.tensor(3)
        also = at.view(1)
        at.add_(1)
        also.mul_(2)
        return (x + 1)[: at.item()] * also.item()

    def chosen(x: Tensor) -> Tensor:
        at = torch.tensor(1)
        at[...] = x.argmax()
        return x * at.item()

    for function in (cut, chosen):
        x = torch.arange(12.0)
        torch.testing.assert_close(graphs(function, x)[1], function(x))


def test_sizes_that_vary_are_no_numbers() -> None:
    torch._dynamo.reset()
    fast = torch.compile(span, backend="laconic", dynamic=True)
    for size in (6, 4, 7):
        x = torch.randn(size, 3)
        torch.testing.assert_close(fast(x), span(x))


def test_stands_down_without_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hasattr(TensorVariable.method_item, "laconic")
    monkeypatch.setattr(TensorVariable, "method_item", TensorVariable.method_item.__wrapped__)
    x = torch.randn(6, 3)
    number, result = graphs(span, x)
    assert number > 1
    torch.testing.assert_close(result, span(x))
