"""Compiled models whose operators go to Triton's providers, in its interpreter. Run by ``test_provider_path.py``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import laconic
from laconic.backends.kernels import register
from laconic.backends.providers import PROVIDERS
from laconic.passes.measure import relative_l2

assert os.environ.get("TRITON_INTERPRET") == "1", "run tests/kernels/test_provider_path.py"
assert register()
from laconic.backends.kernels.launch import LAUNCHES  # noqa: E402


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    LAUNCHES.clear()
    yield
    torch._dynamo.reset()


def compiled(model: Callable[..., Any], *passes: Any) -> Any:
    return torch.compile(model, backend="laconic", options={"passes": list(passes)})


def without_triton(monkeypatch: pytest.MonkeyPatch, model: Callable[..., Any], *passes: Any) -> Any:
    """The same rewrites on the CPU providers."""
    for name, rows in PROVIDERS.items():
        monkeypatch.setitem(PROVIDERS, name, [row for row in rows if row.name != "triton"])
    torch._dynamo.reset()
    return compiled(model, *passes)


def providers(run: Any) -> list[tuple[str, str]]:
    rows = laconic.report(run).rewrites
    assert all(row.status == "applied" for row in rows), rows
    return [(row.op, row.provider) for row in rows]


class Attention(nn.Module):
    """Projections, attention and the output projection."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


def test_quantize(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.LayerNorm(33), nn.Linear(33, 50), nn.GELU(), nn.Linear(50, 33)).eval()
    x = torch.randn(2, 9, 33)
    passes = [laconic.quantize("int8", min_features=1, min_products=0)]
    run = compiled(model, *passes)
    with torch.no_grad():
        result = run(x)
        assert providers(run) == [("laconic::int8_linear", "triton")] * 2
        assert LAUNCHES == Counter(quantize_rows_kernel=2, int8_linear_kernel=2)
        run(x)
        assert LAUNCHES == Counter(quantize_rows_kernel=4, int8_linear_kernel=4)
        reference = without_triton(monkeypatch, model, *passes)
        # A value at the edge of two integers may fall either way: Inductor fuses what Triton is handed.
        assert relative_l2(result, reference(x)) <= 1e-3
        assert 0 < relative_l2(result, model(x)) <= 3e-2
        assert ("laconic::int8_linear", "triton") not in providers(reference)
    assert LAUNCHES == Counter(quantize_rows_kernel=4, int8_linear_kernel=4)


@pytest.mark.parametrize("causal", [False, True])
def test_sparse_attention(causal: bool) -> None:
    model, x, size = Attention(causal).eval(), torch.randn(2, 77, 24), 9
    run = compiled(model, laconic.sparse_attention("window", size=size))
    distance = torch.arange(77) - torch.arange(77)[:, None]
    mask = (distance >= -size) & (distance <= (0 if causal else size))
    with torch.no_grad():
        result = run(x)
        query, key, value = model.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, mask)
        reference = x + model.out(mixed.transpose(1, 2).flatten(2))
    assert relative_l2(result, reference) <= 1e-6
    assert relative_l2(result, model(x)) > 1e-3
    assert providers(run) == [("laconic::block_sparse_attention", "triton")]
    assert LAUNCHES == Counter(block_sparse_attention_kernel=1)


def test_merge_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Attention().eval(), torch.randn(2, 45, 24)
    passes = [laconic.merge_tokens("tome", r=9)]
    run = compiled(model, *passes)
    with torch.no_grad():
        result = run(x)
        assert providers(run) == [("laconic::bipartite_match", "triton")]
        assert LAUNCHES == Counter(bipartite_match_kernel=1)
        reference = without_triton(monkeypatch, model, *passes)
        assert relative_l2(result, reference(x)) <= 1e-6
        assert relative_l2(result, model(x)) > 1e-3
    assert LAUNCHES == Counter(bipartite_match_kernel=1)


def recurrent(decay: Tensor, input: Tensor) -> Tensor:
    state, states = torch.zeros_like(input[:, 0]), []
    for step in range(input.shape[1]):
        state = decay[:, step] * state + input[:, step]
        states.append(state)
    return torch.stack(states, 1)


def test_scan_is_on_by_default_and_so_is_its_gradient() -> None:
    decay, input = torch.rand(2, 13, 5, requires_grad=True), torch.randn(2, 13, 5, requires_grad=True)
    run = torch.compile(recurrent, backend="laconic")
    weight = torch.randn(2, 13, 5)
    result = run(decay, input)
    assert ("laconic::linear_recurrence", "triton") in providers(run)
    assert LAUNCHES == Counter(linear_recurrence_kernel=1)
    gradients = torch.autograd.grad((result * weight).sum(), (decay, input))
    assert LAUNCHES == Counter(linear_recurrence_kernel=2)
    expected = recurrent(decay, input)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    for got, want in zip(gradients, torch.autograd.grad((expected * weight).sum(), (decay, input)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def state_space(delta: Tensor, rate: Tensor, input: Tensor, expand: Tensor, read: Tensor) -> Tensor:
    decay = torch.exp(delta[..., None] * rate)
    added = (delta * input)[..., None] * expand[:, :, None]
    state, out = torch.zeros_like(added[:, 0]), []
    for step in range(delta.shape[1]):
        state = decay[:, step] * state + added[:, step]
        out.append((state @ read[:, step, :, None])[..., 0])
    return torch.stack(out, 1)


def test_selective_scan() -> None:
    batch, length, channels, states = 2, 11, 5, 3
    args = (
        torch.rand(batch, length, channels), -torch.rand(channels, states), torch.randn(batch, length, channels),
        torch.randn(batch, length, states), torch.randn(batch, length, states),
    )  # fmt: skip
    run = torch.compile(state_space, backend="laconic")
    with torch.no_grad():
        result = run(*args)
    assert ("laconic::selective_scan", "triton") in providers(run)
    assert LAUNCHES == Counter(selective_scan_kernel=1)
    torch.testing.assert_close(result, state_space(*args), rtol=1e-5, atol=1e-5)
