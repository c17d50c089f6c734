"""Under ``dynamic=True`` floats that are no arguments are constants for this backend until they change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from laconic.backends.dynamo import for_this_backend
from tests.without_inductor import use_aot_autograd_only


class RootMeanSquare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.epsilon = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * math.pi


def scaled(x: Tensor, factor: float) -> Tensor:
    return x * factor + 1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    use_aot_autograd_only(monkeypatch)
    torch._dynamo.reset()


def compilations() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def unknown_floats() -> int:
    """How many floats the graph of a norm takes as inputs."""
    seen: list[int] = []

    def backend(module: GraphModule, inputs: Sequence[Any]) -> Any:
        seen.append(sum(isinstance(value, Tensor) and value.dtype is torch.float64 for value in inputs))
        return module

    torch.compile(RootMeanSquare(), backend=backend, dynamic=True)(torch.randn(3, 8))
    (number,) = seen
    return number


@torch.no_grad()
def test_floats_of_modules_and_globals_are_constants() -> None:
    with for_this_backend():
        assert unknown_floats() == 0


@torch.no_grad()
def test_other_backends_are_left_alone() -> None:
    assert unknown_floats() == 2, "the epsilon and pi"


@torch.no_grad()
def test_it_is_followed_when_it_changes() -> None:
    norm, x = RootMeanSquare(), torch.randn(3, 8)
    compiled = torch.compile(norm, backend="laconic", dynamic=True)
    for epsilon in (1e-5, 0.5, 0.7, 0.9):
        norm.epsilon = epsilon
        torch.testing.assert_close(compiled(x), norm(x))
    before = compilations()
    norm.epsilon = 0.11
    torch.testing.assert_close(compiled(x), norm(x))
    assert compilations() == before, "unknown from its first change on"


@torch.no_grad()
def test_an_argument_is_unknown_at_once() -> None:
    compiled, x = torch.compile(scaled, backend="laconic", dynamic=True), torch.randn(3, 8)
    before = compilations()
    for factor in (0.5, 0.25, 0.75):
        torch.testing.assert_close(compiled(x, factor), scaled(x, factor))
    assert compilations() == before + 1
