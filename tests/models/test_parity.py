"""With no passes named, laconic changes only rounding, on models nobody here wrote: outputs, gradients, compiles."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import laconic
from tests.models.builders import BUILDERS

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def tensors(result: Any) -> list[Tensor]:
    """Every floating-point tensor of a result, whatever dataclass, dict or tuple it comes in."""
    return [
        leaf
        for leaf in torch.utils._pytree.tree_leaves(dict(result) if hasattr(result, "items") else result)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def relative(value: Tensor, reference: Tensor) -> float:
    scale = reference.double().norm()
    return float((value.double() - reference.double()).norm() / scale) if scale > 0 else float(value.double().norm())


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_forward_matches_eager_and_compiles_no_more_than_torch(name: str) -> None:
    model, args, kwargs = BUILDERS[name]()
    model.eval()
    with torch.no_grad():
        expected = tensors(model(*args, **kwargs))
        compiled = torch.compile(model, backend="laconic")
        got = tensors(compiled(*args, **kwargs))
        ours = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        torch.compile(model, backend="eager")(*args, **kwargs)
    assert len(got) == len(expected) > 0
    for value, reference in zip(got, expected, strict=True):
        assert relative(value, reference) <= 1e-5
    assert ours <= torch._dynamo.utils.counters["stats"]["unique_graphs"]
    report = laconic.report(compiled)
    assert not [row for row in report.refusals if row.code in ("not-normalised", "pass-failed", "not-proven")]


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_gradients_match_eager(name: str) -> None:
    model, args, kwargs = BUILDERS[name]()
    model.eval()
    reference = copy.deepcopy(model)

    def gradients(run: Any, owner: nn.Module) -> dict[str, Tensor]:
        torch.manual_seed(0)
        sum(
            (value * torch.randn_like(value)).sum() for value in tensors(run(*args, **kwargs)) if value.requires_grad
        ).backward()
        return {key: parameter.grad for key, parameter in owner.named_parameters() if parameter.grad is not None}

    expected = gradients(reference, reference)
    # AOTAutograd without Inductor: the forward test above compiles; here the graph's own differentiation is judged.
    got = gradients(torch.compile(model, backend="laconic"), model)
    assert got.keys() == expected.keys()
    largest = max(float(value.norm()) for value in expected.values())
    for key, value in expected.items():
        assert float((got[key] - value).norm()) <= 1e-4 * float(value.norm()) + 1e-6 * largest, key


def test_three_lengths_and_dynamic_shapes_compile_no_more_than_torch() -> None:
    model, args, kwargs = BUILDERS["llama-sdpa"]()
    model.eval()
    graphs = {}
    for backend in ("eager", "laconic"):
        for dynamic in (None, True):
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            compiled = torch.compile(model, backend=backend, dynamic=dynamic)
            with torch.no_grad():
                for length in (5, 9, 12):
                    ids = torch.arange(2 * length).reshape(2, length) % 50
                    got = tensors(compiled(ids, use_cache=False))[0]
                    assert relative(got, tensors(model(ids, use_cache=False))[0]) <= 1e-5
            graphs[backend, dynamic] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs["laconic", None] <= graphs["eager", None]
    assert graphs["laconic", True] <= graphs["eager", True]
