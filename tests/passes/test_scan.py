"""scan() and selective_scan(): the same numbers and gradients, by one operator in place of one copy per step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from laconic.backends import recurrence_cpu
from laconic.backends.providers import PROVIDERS, choose
from laconic.passes.apply import apply
from laconic.passes.base import PlanContext
from laconic.passes.ops.recurrence import linear_recurrence
from laconic.passes.ops.selective_scan import selective_scan
from laconic.passes.scan import LinearScan, Selective
from laconic.patterns.graph import NormalGraph
from laconic.patterns.normalize import normalize
from laconic.patterns.recurrence import recurrence, selective
from laconic.patterns.scan import find_scan
from laconic.patterns.sites import Scan, SelectiveScan, Sites

B, D, N = 2, 5, 3


def rewritten(function: Callable[..., Any], *inputs: Tensor) -> tuple[Callable[..., Any], dict[str, int]]:
    """``function`` with both passes applied and run as a graph by torch itself, and how often each operator occurs."""
    counts: dict[str, int] = {}

    def backend(module: GraphModule, values: list[Tensor]) -> GraphModule:
        graph = normalize(module, values)
        assert isinstance(graph, NormalGraph), graph
        for policy, kind in ((LinearScan(), Scan), (Selective(), SelectiveScan)):
            sites = Sites()
            sites.sites, _ = find_scan(graph, sites)
            plan = policy.plan(PlanContext(graph, sites, sites.of(kind)))
            outcome = apply(graph, plan.rewrites)
            assert not outcome.refused, outcome.refused
            graph = outcome.graph
        for node in graph.module.graph.nodes:
            if getattr(node.target, "namespace", "") == "laconic":
                counts[node.target._opname] = counts.get(node.target._opname, 0) + 1
        counts["nodes"] = len(graph.module.graph.nodes)
        return graph.module

    torch._dynamo.reset()
    fast = torch.compile(function, backend=backend, fullgraph=True)
    fast(*inputs)
    return fast, counts


def agree(value: Tensor, reference: Tensor, tolerance: float = 1e-5) -> None:
    assert value.shape == reference.shape and value.dtype == reference.dtype
    distance = torch.linalg.vector_norm((value - reference).double())
    assert distance <= tolerance * torch.linalg.vector_norm(reference.double()) + 1e-30


class Selected(nn.Module):
    """A small state-space layer, as a loop, a tree or a doubling; ``hidden`` gives the states' last value too."""

    def __init__(self, spelling: str, last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spelling = spelling
        self.last = last
        self.rate = nn.Parameter(-torch.rand(D, N))
        self.project = nn.Linear(D, D + 2 * N)

    def forward(self, x: Tensor) -> Any:
        delta, expand, read = self.project(x).split([D, N, N], -1)
        delta = torch.nn.functional.softplus(delta)
        decay = torch.exp(delta.unsqueeze(-1) * self.rate)
        value = (delta * x).unsqueeze(-1) * expand.unsqueeze(2)
        if self.spelling == "loop":
            state, outputs = torch.zeros(x.shape[0], D, N), []
            for step in range(x.shape[1]):
                state = decay[:, step] * state + value[:, step]
                outputs.append((state @ read[:, step].unsqueeze(-1))[..., 0])
            y = torch.stack(outputs, 1)
            return (y, state) if self.last else y
        from torch._higher_order_ops.associative_scan import associative_scan

        def combine(left: Any, right: Any) -> Any:
            return left[0] * right[0], right[0] * left[1] + right[1]

        states = associative_scan(combine, (decay, value), dim=1, combine_mode="generic")[1]
        y = (states @ read.unsqueeze(-1)).squeeze(-1)
        return (y, states[:, -1]) if self.last else y


def eager(model: Selected, x: Tensor) -> Any:
    """The layer by its loop: a compiler is needed for the tree."""
    reference = Selected("loop", model.last)
    reference.load_state_dict(model.state_dict())
    return reference, reference(x)


@pytest.mark.parametrize("length", [3, 17])
@pytest.mark.parametrize("spelling", ["loop", "tree"])
def test_outputs_and_gradients(spelling: str, length: int) -> None:
    model = Selected(spelling)
    x = torch.randn(B, length, D, requires_grad=True)
    weight = torch.randn(B, length, D)
    fast, counts = rewritten(model, x)
    assert counts["selective_scan"] == 1 and "linear_recurrence" not in counts
    assert counts["nodes"] < 60
    reference, expected = eager(model, x)
    agree(fast(x), expected)
    gradients = torch.autograd.grad((fast(x) * weight).sum(), [x, *model.parameters()])
    wanted = torch.autograd.grad((expected * weight).sum(), [x, *reference.parameters()])
    for gradient, want in zip(gradients, wanted, strict=True):
        agree(gradient, want, 1e-4)


@pytest.mark.parametrize("spelling", ["loop", "tree"])
def test_states_that_are_read_keep_the_recurrence(spelling: str) -> None:
    model = Selected(spelling, last=True)
    x = torch.randn(B, 9, D)
    fast, counts = rewritten(model, x)
    assert counts["linear_recurrence"] == 1 and "selective_scan" not in counts
    for value, want in zip(fast(x), eager(model, x)[1], strict=True):
        agree(value, want)


@pytest.mark.parametrize("spelling", ["loop", "tree"])
def test_a_single_step(spelling: str) -> None:
    model = Selected(spelling)
    x = torch.randn(B, 1, D)
    fast, counts = rewritten(model, x)
    agree(fast(x), eager(model, x)[1])


def test_length_does_not_change_the_size_of_the_graph() -> None:
    sizes = [rewritten(Selected("loop"), torch.randn(B, length, D))[1]["nodes"] for length in (8, 64)]
    assert sizes[0] == sizes[1]


def test_loop_whose_states_are_all_returned() -> None:
    def function(a: Tensor, x: Tensor) -> list[Tensor]:
        state, states = x[:, 0], []
        for step in range(1, x.shape[1]):
            state = state * a[:, step] + x[:, step]
            states.append(state)
        return [*states, torch.stack(states, -1), state.sum()]

    a, x = torch.rand(B, 7, D), torch.randn(B, 7, D)
    fast, counts = rewritten(function, a, x)
    assert counts["linear_recurrence"] == 1
    for value, want in zip(fast(a, x), function(a, x), strict=True):
        agree(value, want)


def test_written_zeros_are_an_initial_state() -> None:
    def function(a: Tensor, x: Tensor) -> Tensor:
        state, states = torch.zeros(B, D), []
        state[:, 1] = 2.0
        for step in range(x.shape[1]):
            state = state * a[:, step] + x[:, step]
            states.append(state)
        return torch.stack(states, 1)

    a, x = torch.rand(B, 7, D), torch.randn(B, 7, D)
    fast, _ = rewritten(function, a, x)
    agree(fast(a, x), function(a, x))


def operands(dtype: torch.dtype, length: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    shape = [3, 4, 19]
    shape.insert(dim, length)
    decay, value = (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(2))
    return decay.to(dtype), value.to(dtype), torch.rand(3, 4, 19, generator=generator, dtype=torch.float64).to(dtype)


ROWS = [row.name for row in PROVIDERS["linear_recurrence"] if row.name in ("cpp", "steps", "doubling")]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(("length", "dim", "reverse"), [(1, 0, False), (17, 3, False), (70, 1, True), (5, 2, True)])
def test_providers_mean_the_same(name: str, length: int, dim: int, reverse: bool) -> None:
    function = next(row.function for row in PROVIDERS["linear_recurrence"] if row.name == name)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        decay, value, initial = operands(dtype, length, dim)
        for start in (None, initial):
            expected = recurrence(decay, value, start, dim, reverse)
            agree(function(decay, value, start, dim, reverse), expected, tolerance)
            # Views of any strides, broadcast ones included.
            moved = decay.movedim(dim, 0).contiguous().movedim(0, dim)
            agree(function(moved, value, start, dim, reverse), expected, tolerance)
            flat = decay.select(dim, 0).unsqueeze(dim).expand_as(decay)
            agree(function(flat, value, start, dim, reverse), recurrence(flat, value, start, dim, reverse), tolerance)


def test_narrow_types_carry_the_state_in_float32() -> None:
    decay, value, _ = operands(torch.bfloat16, 33, 1)
    row, _ = choose(linear_recurrence, (decay, value, None, 1, False), {})
    result = row.function(decay, value, None, 1, False)
    agree(result, recurrence(decay.float(), value.float(), None, 1, False).bfloat16(), 4e-3)


@pytest.mark.parametrize(("length", "states", "channels"), [(1, 1, 1), (9, 16, 33), (40, 7, 16)])
def test_selective_kernel(length: int, states: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    args = (
        draw(B, length, channels).abs(), -draw(channels, states).abs(), draw(B, length, channels),
        draw(B, length, states), draw(B, length, states),
    )  # fmt: skip
    expected = selective(*args)
    agree(selective_scan(*args), expected, 1e-13)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        typed = tuple(value.to(dtype) for value in args)
        agree(recurrence_cpu.selective_scan_in_cpp(*typed), expected.to(dtype), tolerance)
        strided = tuple(value.transpose(-1, -2).contiguous().transpose(-1, -2) for value in typed)
        agree(recurrence_cpu.selective_scan_in_cpp(*strided), expected.to(dtype), tolerance)


def test_exponential_over_its_range() -> None:
    exponents = torch.cat(
        (torch.linspace(-110, 95, 20_000), torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0]))
    )
    one = torch.ones(1, 2, len(exponents))
    # With h_0 = 1 and no further input, y_1 is the exponential itself.
    value = torch.stack((torch.ones(len(exponents)), torch.zeros(len(exponents)))).unsqueeze(0)
    read = torch.ones(1, 2, 1)
    result = recurrence_cpu.selective_scan_in_cpp(one, exponents.unsqueeze(-1), value, read, read)[0, 1]
    torch.testing.assert_close(result, exponents.exp(), rtol=6e-7, atol=3e-38, equal_nan=True)


def test_split_sequences_agree() -> None:
    decay, value, initial = operands(torch.float64, 12, 1)
    whole = linear_recurrence(decay, value, initial, 1, False)
    first = linear_recurrence(decay[:, :5], value[:, :5], initial, 1, False)
    second = linear_recurrence(decay[:, 5:], value[:, 5:], first[:, -1], 1, False)
    agree(torch.cat((first, second), 1), whole, 1e-14)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradient_of_the_operator(dtype: torch.dtype, reverse: bool) -> None:
    decay, value = (torch.randn(2, 4, 3, dtype=dtype, requires_grad=True) for _ in range(2))
    initial = torch.randn(2, 3, dtype=dtype, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, x, h: linear_recurrence(a, x, h, 1, reverse), (decay, value, initial))
    assert torch.autograd.gradgradcheck(lambda a, x: linear_recurrence(a, x, None, 1, reverse), (decay, value))


def test_gradient_of_the_selective_scan() -> None:
    shapes = ((2, 4, 3), (3, 2), (2, 4, 3), (2, 4, 2), (2, 4, 2))
    args = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    assert torch.autograd.gradcheck(selective_scan, args)


def test_operators_are_registered_soundly() -> None:
    decay, value, initial = operands(torch.float64, 4, 1)
    for start in (None, initial):
        torch.library.opcheck(linear_recurrence.overload, (decay, value, start, 1, False))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence_cpu.shutil, "which", lambda name: None)
    decay, value, _ = operands(torch.float32, 6, 1)
    row, passed_over = choose(linear_recurrence, (decay, value, None, 1, False), {})
    assert row.name == "steps"
    assert "no-provider" in [reason.code for reason in passed_over]


def test_through_inductor() -> None:
    import laconic

    model = Selected("loop")
    x = torch.randn(B, 12, D)
    torch._dynamo.reset()
    fast = torch.compile(model, backend="laconic")
    weight = torch.randn(B, 12, D)
    result = fast(x)
    agree(result, model(x))
    gradients = torch.autograd.grad((result * weight).sum(), list(model.parameters()))
    wanted = torch.autograd.grad((model(x) * weight).sum(), list(model.parameters()))
    for gradient, want in zip(gradients, wanted, strict=True):
        agree(gradient, want, 1e-4)
    report = laconic.report(fast).to_dict()["graphs"][0]
    applied = [(row["pass"], row["status"], row["op"]) for row in report["rewrites"]]
    assert ("laconic.scan()", "applied", "laconic::linear_recurrence") in applied
    assert ("laconic.selective_scan()", "applied", "laconic::selective_scan") in applied
    assert {row["site"] for row in report["rewrites"]} <= {site["id"] for site in report["sites"]}

    torch._dynamo.reset()
    plain = torch.compile(model, backend="laconic", options={"passes": [laconic.disable("scan")]})
    with torch.no_grad():
        agree(plain(x), model(x))
    assert not laconic.report(plain).to_dict()["graphs"][0]["rewrites"]
