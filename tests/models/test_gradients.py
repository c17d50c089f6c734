"""Gradients of models nobody here wrote: each parameter's to 1e-4 of its norm and 1e-6 of the largest."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import laconic
from tests.models.builders import BUILDERS
from tests.models.support import relative, tensors
from tests.without_inductor import use_aot_autograd_only

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(run: Any, owner: nn.Module, args: Any, kwargs: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and the gradient of each parameter under random cotangents."""
    outputs = tensors(run(*args, **kwargs))
    torch.manual_seed(0)
    sum((value * torch.randn_like(value)).sum() for value in outputs if value.requires_grad).backward()
    return outputs, {key: value.grad for key, value in owner.named_parameters() if value.grad is not None}


def check(name: str) -> None:
    model, args, kwargs = BUILDERS[name](1)
    reference = copy.deepcopy(model)
    outputs, expected = gradients(reference, reference, args, kwargs)
    compiled = torch.compile(model, backend="laconic")
    results, got = gradients(compiled, model, args, kwargs)
    for value, wanted in zip(results, outputs, strict=True):
        assert relative(value.detach(), wanted.detach()) <= 1e-5
    assert got.keys() == expected.keys()
    largest = max(float(value.norm()) for value in expected.values())
    for key, value in expected.items():
        assert float((got[key] - value).norm()) <= 1e-4 * float(value.norm()) + 1e-6 * largest, key
    refused = [row.code for row in laconic.report(compiled).refusals]
    assert not {"not-normalised", "pass-failed", "not-proven"} & set(refused)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_the_graph_is_differentiated_as_eager_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = use_aot_autograd_only(monkeypatch)
    check(name)
    assert graphs


@pytest.mark.parametrize("name", ["bert", "dit"])
def test_through_inductor(name: str) -> None:
    check(name)
