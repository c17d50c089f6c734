"""One row of the zoo run through the whole backend: what the rewrites that are on by default change in its outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.without_inductor import run_graphs_as_they_are

from .table import Row, call


def error_of(row: Row) -> float:
    """The largest relative L2 error of any output of a model compiled with laconic.

    The rewritten graphs run node by node, so what is seen is the rewrites and not Inductor. They are compared with the
    graphs that Dynamo gives to a backend that does nothing: a few models compute something else when they are compiled
    at all. Infinite where an output is missing, has another shape or type, or differs in what is no real number.
    """
    module, inputs = row.build()
    expected = _outputs(torch.compile(module, backend="eager"), inputs)
    with pytest.MonkeyPatch.context() as patch:
        run_graphs_as_they_are(patch)
        results = _outputs(torch.compile(module, backend="laconic"), inputs)
    if len(expected) != len(results):
        return float("inf")
    return max((_error(a, b) for a, b in zip(expected, results, strict=True)), default=0.0)


def _outputs(compiled: Any, inputs: Any) -> list[Tensor]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    with torch.no_grad():
        result = call(compiled, inputs)
    result = result.to_tuple() if hasattr(result, "to_tuple") else result
    return [value for value in pytree.tree_leaves(result) if isinstance(value, Tensor)]


def _error(expected: Tensor, result: Tensor) -> float:
    if expected.shape != result.shape or expected.dtype != result.dtype:
        return float("inf")
    if not expected.is_floating_point() and not expected.is_complex():
        return 0.0 if torch.equal(expected, result) else float("inf")
    finite = expected.isfinite()
    if not torch.equal(finite, result.isfinite()):
        return float("inf")
    wide = torch.complex128 if expected.is_complex() else torch.float64
    expected, result = expected[finite].to(wide), result[finite].to(wide)
    difference = float(torch.linalg.vector_norm(result - expected))
    return difference / max(float(torch.linalg.vector_norm(expected)), 1e-30) if difference else 0.0
