"""Associative scans on the CPU: one operator for this backend while tracing, the tree for everybody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

import laconic
from laconic.backends import entry, runner
from laconic.backends.dynamo import whole_scans


def associative_scan(*args: Any, **kwargs: Any) -> Any:
    from torch._higher_order_ops.associative_scan import associative_scan

    return associative_scan(*args, combine_mode="generic", **kwargs)


def affine(left: Any, right: Any) -> Any:
    return left[0] * right[0], right[0] * left[1] + right[1]


def states(decay: Tensor, value: Tensor) -> Tensor:
    return associative_scan(affine, (decay, value), dim=1)[1]


def backwards(decay: Tensor, value: Tensor) -> Tensor:
    return associative_scan(affine, (decay, value), dim=-2, reverse=True)[1]


def both(decay: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return associative_scan(affine, (decay, value), dim=1)


def scaled(decay: Tensor, value: Tensor) -> Tensor:
    scale = decay[0, 0]
    return associative_scan(lambda a, b: (a[0] * b[0], (b[0] * a[1] + b[1]) * scale), (decay, value), dim=1)[1]


def polynomial(decay: Tensor, value: Tensor) -> Tensor:
    return associative_scan(lambda a, b: (a[0] * b[0], a[1] + b[1] * a[0]), (decay, value), dim=1)[1]


def largest(decay: Tensor, value: Tensor) -> Tensor:
    return associative_scan(torch.maximum, value, dim=1)


def largest_with_place(decay: Tensor, value: Tensor) -> Tensor:
    def later(a: Any, b: Any) -> Any:
        return torch.maximum(a[0], b[0]), torch.where(a[0] > b[0], a[1], b[1])

    return associative_scan(later, (decay, value), dim=1)[1]


def matrices(decay: Tensor, value: Tensor) -> Tensor:
    square = torch.stack([torch.stack([decay, value], -1), torch.stack([value, decay], -1)], -1)
    return associative_scan(lambda a, b: (b[0] @ a[0], a[1] * b[1]), (square, square), dim=1)[0]


def centred(decay: Tensor, value: Tensor) -> Tensor:
    def combine(a: Any, b: Any) -> Any:
        return a[0] * b[0], (a[1] + b[1]) - (a[1] + b[1]).mean(-1, keepdim=True)

    return associative_scan(combine, (decay, value), dim=1)[1]


def widening(decay: Tensor, value: Tensor) -> Tensor:
    return associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1].double() + b[1]), (decay, value), dim=1)[1]


def operands(length: int = 11) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, length, 3, generator=generator), torch.randn(2, length, 3, generator=generator)


def nodes_of(module: GraphModule) -> int:
    return sum(getattr(node.target, "_name", "") == "associative_scan" for node in module.graph.nodes)


def for_another_backend(function: Callable[..., Any], *args: Any) -> tuple[Any, int]:
    """What a function gives, and how many scan operators another backend sees in its graph."""
    seen: list[int] = []

    def keep(module: GraphModule, inputs: Any) -> Any:
        seen.append(nodes_of(module))
        return module.forward

    return torch.compile(function, backend=keep, fullgraph=True)(*args), sum(seen)


def for_this_backend(function: Callable[..., Any], *args: Any, **settings: Any) -> tuple[Any, int, laconic.Report]:
    """The same for laconic, with its report; Inductor is left out, so that only the graphs are compared."""
    seen: list[int] = []

    def as_it_is(module: GraphModule, inputs: Any, options: Any) -> Any:
        return whole_scans.spelled_out(module)

    original = entry.rewrite

    def counted(module: GraphModule, *rest: Any) -> Any:
        seen.append(nodes_of(module))
        return original(module, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry, "rewrite", counted)
        patch.setattr(runner, "compile_graph", as_it_is)
        compiled = torch.compile(function, backend="laconic", fullgraph=True, **settings)
        return compiled(*args), sum(seen), laconic.report(compiled)


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()  # a second length would be traced with sizes that vary


AFFINE = [states, backwards, both]
OTHER = [scaled, largest, largest_with_place, matrices, centred, widening]


@pytest.mark.parametrize("function", AFFINE, ids=lambda item: item.__name__)
@pytest.mark.parametrize("length", [1, 2, 11])
def test_affine_maps_become_one_recurrence(function: Callable[..., Any], length: int) -> None:
    args = operands(length)
    expected, spelled = for_another_backend(function, *args)
    result, kept, report = for_this_backend(function, *args)
    torch.testing.assert_close(result, expected)
    assert (spelled, kept) == (0, 1)
    if length > 1:
        assert [site.kind for graph in report.graphs for site in graph.sites] == ["scan"]
        assert [site.source.split(":")[0] for graph in report.graphs for site in graph.sites] == [__file__]
        assert [row.op for graph in report.graphs for row in graph.rewrites] == ["laconic::linear_recurrence"]


def test_sums_and_products_that_are_no_affine_map_are_no_scan() -> None:
    expected, _ = for_another_backend(polynomial, *operands())
    result, kept, report = for_this_backend(polynomial, *operands())
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    assert kept == 1 and not any(graph.rewrites for graph in report.graphs)


@pytest.mark.parametrize("function", [*AFFINE, polynomial], ids=lambda item: item.__name__)
def test_what_no_pass_takes_is_the_same_tree_again(function: Callable[..., Any]) -> None:
    args = operands()
    expected, _ = for_another_backend(function, *args)
    result, kept, _ = for_this_backend(function, *args, options={"passes": [laconic.disable("scan")]})
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    assert kept == 1


def test_through_inductor_with_gradients() -> None:
    def loss(decay: Tensor, value: Tensor) -> Tensor:
        return (states(decay, value) * value).sum() + polynomial(decay, value).sum()

    args = [item.requires_grad_() for item in operands(5)]
    expected, _ = for_another_backend(loss, *args)
    compiled = torch.compile(loss, backend="laconic", fullgraph=True)
    gradients = torch.autograd.grad(compiled(*args), args)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, args), rtol=1e-4, atol=1e-5)


def test_sizes_that_vary_are_traced_step_by_step() -> None:
    for length in (5, 6):
        args = [item.requires_grad_() for item in operands(length)]
        result, kept, _ = for_this_backend(states, *args, dynamic=True)
        torch.testing.assert_close(result, for_another_backend(states, *args)[0])
        assert kept == 0


@pytest.mark.parametrize("function", OTHER, ids=lambda item: item.__name__)
def test_other_combinations_are_traced_step_by_step(function: Callable[..., Any]) -> None:
    args = operands()
    expected, _ = for_another_backend(function, *args)
    result, kept, _ = for_this_backend(function, *args)
    torch.testing.assert_close(result, expected)
    assert kept == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: associative_scan(affine, (a, b), dim=5), "Dimension out of range"),
        (lambda a, b: associative_scan(affine, (a, b), dim="time"), "int"),
        (lambda a, b: associative_scan(affine, (a[:, :0], b[:, :0]), dim=1), "dimension > 0"),
    ],
    ids=["axis", "type", "empty"],
)
def test_mistakes_are_answered_as_by_torch(call: Callable[..., Any], message: str) -> None:
    for backend in ("eager", "laconic"):
        with pytest.raises(Exception, match=message):
            torch.compile(call, backend=backend, fullgraph=True)(*operands())


def test_explain_sees_what_compiling_sees() -> None:
    report = laconic.explain(states, *operands())
    assert [site.kind for graph in report.graphs for site in graph.sites] == ["scan"]
    assert report.graphs[0].nodes_before < 40  # the tree of 11 elements has more
