"""Writes in place that become new values, and those that must stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from laconic.patterns.functional import without_writes
from laconic.patterns.graph import NormalGraph
from laconic.patterns.nodes import mutates
from laconic.patterns.normalize import normalize
from tests.patterns.graphs import normal


def _added(x: Tensor, y: Tensor) -> Tensor:
    z = x * 2
    z.add_(y)
    return z * 3


def _twice(x: Tensor, y: Tensor) -> Tensor:
    z = x * 2
    z += y
    z /= y.sum(-1, keepdim=True)
    return z @ z.t()


def _masked(x: Tensor, y: Tensor) -> Tensor:
    z = x @ y.t()
    z.masked_fill_(z > 0, -1.0)
    return z.softmax(-1)


def _part(x: Tensor, y: Tensor) -> Tensor:
    z = torch.zeros(4, 4)
    z[:, 1:3] = x[:, :2]
    z[2] = y[0]
    return z + 1


def _part_again(x: Tensor, y: Tensor) -> Tensor:
    z = x.clone()
    part = z[:, 1:3]
    part.mul_(2)
    part.add_(y[:, :2])
    return z + part.sum()


def _scattered(x: Tensor, y: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    z.index_add_(0, torch.tensor([1, 3]), y[:2])
    z.index_put_((torch.tensor([0]),), y[3])
    return z


def _widened(x: Tensor, y: Tensor) -> Tensor:
    z = (x * 2).half()
    z.add_(y)
    return z


def _copied(x: Tensor, y: Tensor) -> Tensor:
    z = torch.empty_like(x)
    z.copy_(y)
    w = y * 1
    z.add_(1)
    return z * w


def _view_read_later(x: Tensor, y: Tensor) -> Tensor:
    z = x * 2
    flat = z.view(-1)
    z.add_(y)
    return flat * 2


def _transposed(x: Tensor, y: Tensor) -> Tensor:
    z = x * 2
    z.t().add_(y)
    return z * 1


def _row_of_many(x: Tensor, y: Tensor) -> Tensor:
    z = x * 2
    row, other = z[0], z[1]
    row[1::2] = other[0::2]
    row[::2].add_(y[0, :2])
    return row * z


def _strided(x: Tensor, y: Tensor) -> Tensor:
    z = torch.zeros_like((x @ y).t())
    for step in range(3):
        z[:, step] = x[step] + z[:, step - 1]
    return z.view(-1, 2) if z.is_contiguous() else z * 2


def _through_views(x: Tensor, y: Tensor) -> Tensor:
    z = (x * 2).reshape(2, 2, 4)
    z.transpose(0, 1)[0, 1:].mul_(y[:1])
    z.permute(2, 0, 1)[1].sub_(1)
    return z.flatten()


GONE = [_added, _twice, _masked, _part, _part_again, _scattered, _widened, _copied]
GONE += [_view_read_later, _transposed, _row_of_many, _strided, _through_views]


def _input(x: Tensor, y: Tensor) -> Tensor:
    x.add_(y)
    return x * 2


def _view_of_input(x: Tensor, y: Tensor) -> Tensor:
    x.view(-1)[:4].add_(1)
    return x * y


def _seen_twice(x: Tensor, y: Tensor) -> Tensor:
    z = (x * 2)[:, :1]
    z.expand(4, 2)[:, 0].add_(y[0])
    return z * 1


KEPT = [_input, _view_of_input, _seen_twice]


def _forms(function: Callable[..., Any]) -> tuple[Any, Any, list[Tensor]]:
    torch.manual_seed(0)
    inputs = [torch.randn(4, 4), torch.randn(4, 4)]
    graph = normal(function, *inputs)

    def run(target: Any, args: Any, kwargs: Any) -> Any:
        with graph.fake_mode, torch.no_grad():
            return target(*args, **kwargs)

    without_writes(graph.module.graph, run)
    graph.module.graph.lint()
    graph.module.recompile()
    return graph, function, inputs


@pytest.mark.parametrize("function", GONE, ids=lambda function: function.__name__)
def test_local_writes_become_values(function: Callable[..., Any]) -> None:
    graph, eager, inputs = _forms(function)
    assert not any(mutates(node) for node in graph.module.graph.nodes)
    torch.testing.assert_close(
        graph.module(*(value.clone() for value in inputs)), eager(*(value.clone() for value in inputs)), rtol=0, atol=0
    )


def test_many_writes_take_linear_time() -> None:
    def fill(x: Tensor, y: Tensor) -> Tensor:
        out = torch.zeros(500, 4)
        for step in range(500):
            out[step] = x[step % 4] * y[0]
        return out

    graph, eager, inputs = _forms(fill)
    assert not any(mutates(node) for node in graph.module.graph.nodes)
    torch.testing.assert_close(graph.module(*inputs), eager(*inputs), rtol=0, atol=0)


@pytest.mark.parametrize("function", KEPT, ids=lambda function: function.__name__)
def test_writes_somebody_can_see_stay(function: Callable[..., Any]) -> None:
    graph, eager, inputs = _forms(function)
    assert any(mutates(node) for node in graph.module.graph.nodes)
    mine, theirs = [value.clone() for value in inputs], [value.clone() for value in inputs]
    torch.testing.assert_close(graph.module(*mine), eager(*theirs), rtol=0, atol=0)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def _partly_recorded(x: Tensor, y: Tensor) -> Tensor:
    z = x * 2
    z.add_(y)
    with torch.no_grad():
        z.mul_(0.5)
    return z * z


def test_a_write_that_gradients_must_not_see_stays() -> None:
    kept: list[int] = []

    def backend(source: GraphModule, inputs: Sequence[Any]) -> Any:
        graph = normalize(source, inputs)
        assert isinstance(graph, NormalGraph)
        kept.append(sum(mutates(node) for node in graph.module.graph.nodes))
        return graph.module

    torch.manual_seed(0)
    inputs = [torch.randn(4, 4, requires_grad=True), torch.randn(4, 4)]
    (want,) = torch.autograd.grad(_partly_recorded(*inputs).sum(), inputs[:1])
    (got,) = torch.autograd.grad(torch.compile(_partly_recorded, backend=backend)(*inputs).sum(), inputs[:1])
    assert kept == [1]
    torch.testing.assert_close(got, want, rtol=0, atol=0)
