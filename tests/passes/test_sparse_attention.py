"""Banded attention: the operator, its CPU form and the rewrite against dense attention with the same boolean mask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import laconic
from laconic.backends import block_sparse_cpu, providers
from laconic.backends.block_sparse_cpu import gathered_band_attention
from laconic.passes.apply import apply
from laconic.passes.base import PlanContext
from laconic.passes.ops.block_sparse import block_sparse_attention, visible_keys
from laconic.passes.plan import Fidelity
from laconic.passes.sparse_attention import Window, sparse_attention
from laconic.patterns.sites import Bias, Operand, Sites

from . import attention_sites as sites


def band(tokens: int, left: int, right: int) -> Tensor:
    row, column = torch.arange(tokens)[:, None], torch.arange(tokens)
    return (column >= row - left) & (column <= row + right)


def tensors(batch: int, heads: int, key_heads: int, tokens: int, token_major: bool) -> tuple[Tensor, Tensor, Tensor]:
    def make(count: int, depth: int) -> Tensor:
        if token_major:
            return torch.randn(batch, tokens, count, depth).transpose(1, 2)
        return torch.randn(batch, count, tokens, depth)

    torch.manual_seed(0)
    return make(heads, 8), make(key_heads, 8), make(key_heads, 5)


@pytest.mark.parametrize("tokens", [1, 64, 257])
@pytest.mark.parametrize("sides", [(0, 0), (5, 0), (0, 7), (63, 66), (300, 300)], ids=str)
@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 4, 2), (3, 3, 1)], ids=str)
@pytest.mark.parametrize("token_major", [True, False])
def test_operator_and_cpu_form_equal_dense_attention(
    tokens: int, sides: tuple[int, int], shape: tuple[int, int, int], token_major: bool
) -> None:
    query, key, value = tensors(*shape, tokens, token_major)
    mask = band(tokens, *sides)
    want = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    args = (query, key, value, None, None, 16, *sides, 0.3)
    for got in (block_sparse_attention(*args), gathered_band_attention(*args)):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert providers.choose(block_sparse_attention, args, {})[0].name == "gather"


def test_cpu_form_reads_only_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    dense = F.scaled_dot_product_attention

    def counted(query: Tensor, key: Tensor, *args, **kwargs) -> Tensor:
        seen.append(query.shape[:-1].numel() * key.shape[-2])
        return dense(query, key, *args, **kwargs)

    monkeypatch.setattr(block_sparse_cpu.F, "scaled_dot_product_attention", counted)
    query, key, value = tensors(1, 2, 2, 2048, True)
    gathered_band_attention(query, key, value, None, None, 64, 64, 64, 0.3)
    assert sum(seen) <= 2 * 2048 * (64 + 64 + block_sparse_cpu.ROWS)


def test_block_lists_name_the_key_blocks() -> None:
    query, key, value = tensors(2, 4, 2, 37, True)
    index = torch.tensor([[[0, 1], [1, 1], [2, 0]]], dtype=torch.int32)
    count = torch.tensor([[2, 1, 1]], dtype=torch.int32)
    mask = torch.zeros(37, 37, dtype=torch.bool)
    mask[:16, :32] = mask[16:32, 16:32] = mask[32:, 32:] = True
    got = block_sparse_attention(query, key, value, index, count, 16, -1, -1, 0.3)
    want = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    banded = visible_keys(37, 37, index, count, 16, 3, -1, query.device)
    assert torch.equal(banded[0], mask & band(37, 3, 37))
    heads = torch.cat([index, index.flip(1), index, index.flip(1)])
    per_head = visible_keys(37, 37, heads, None, 16, -1, -1, query.device)
    assert per_head.shape == (4, 37, 37) and not torch.equal(per_head[0], per_head[1])


def test_a_query_without_keys_gives_zeros() -> None:
    query, key, value = tensors(1, 2, 2, 32, True)
    index = torch.zeros(1, 2, 1, dtype=torch.int32)
    count = torch.tensor([[1, 0]], dtype=torch.int32)
    got = block_sparse_attention(query, key, value, index, count, 16, -1, -1, 0.3)
    assert got[:, :, 16:].eq(0).all() and got[:, :, :16].ne(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    query, key, value = (x.to(dtype) for x in tensors(2, 4, 4, 200, True))
    want = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), band(200, 20, 3), scale=0.3)
    args = (query, key, value, None, None, 16, 20, 3, 0.3)
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float64: 1e-12}[dtype]
    for got in (block_sparse_attention(*args), gathered_band_attention(*args)):
        assert got.dtype is dtype
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


def test_operator_is_well_formed() -> None:
    query, key, value = tensors(2, 4, 2, 37, False)
    index = torch.tensor([[[0, 1], [1, 1], [2, 0]]], dtype=torch.int32)
    for lists in ((None, None), (index, None), (index, torch.ones(1, 3, dtype=torch.int32))):
        torch.library.opcheck(
            block_sparse_attention.overload,
            (query, key, value, *lists, 16, 3, 4, 0.5),
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"index": True}, "unsupported-op"),
        ({"left": -1}, "unsupported-shape"),
        ({"keys": 30}, "unsupported-shape"),
        ({"dtype": torch.complex64}, "unsupported-dtype"),
        ({"device": "meta"}, "unsupported-device"),
    ],
    ids=str,
)
def test_what_the_cpu_form_does_not_take(change: dict, code: str) -> None:
    query = torch.randn(1, 2, 40, 8).to(change.get("device", "cpu"), change.get("dtype", torch.float32))
    key = query[:, :, : change.get("keys", 40)]
    index = torch.zeros(1, 3, 1, dtype=torch.int32) if "index" in change else None
    args = (query, key, key, index, None, 16, change.get("left", 3), 3, 0.5)
    chosen, passed_over = providers.choose(block_sparse_attention, args, {})
    assert chosen.name == "inductor" and code in [reason.code for reason in passed_over]


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value)


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def grouped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)


@pytest.mark.parametrize("tokens", [33, 64])
def test_rewrite_is_the_band(tokens: int) -> None:
    inputs = tensors(2, 4, 4, tokens, True)
    graph, applied = sites.rewritten(sparse_attention("window", size=5), sites.traced(attention, *inputs))
    assert [rewrite.op for rewrite in applied] == ["laconic::block_sparse_attention"]
    want = F.scaled_dot_product_attention(*inputs, band(tokens, 5, 5))
    torch.testing.assert_close(graph.module(*inputs), want, rtol=1e-5, atol=1e-5)


def test_causal_rewrite_looks_back_only() -> None:
    inputs = tensors(1, 4, 4, 40, False)
    graph, _ = sites.rewritten(sparse_attention("window", size=7), sites.traced(causal, *inputs))
    want = F.scaled_dot_product_attention(*inputs, band(40, 7, 0))
    torch.testing.assert_close(graph.module(*inputs), want, rtol=1e-5, atol=1e-5)


def test_grouped_heads() -> None:
    inputs = tensors(2, 6, 2, 40, True)
    graph, _ = sites.rewritten(sparse_attention("window", size=7), sites.traced(grouped, *inputs))
    want = F.scaled_dot_product_attention(*inputs, band(40, 7, 7), enable_gqa=True)
    torch.testing.assert_close(graph.module(*inputs), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axes", [2, 3])
def test_fewer_batch_axes(axes: int) -> None:
    inputs = [x[0] if axes == 3 else x[0, 0] for x in tensors(1, 4, 4, 40, False)]
    graph, _ = sites.rewritten(sparse_attention("window", size=7), sites.traced(attention, *inputs))
    want = F.scaled_dot_product_attention(*inputs, band(40, 7, 7))
    torch.testing.assert_close(graph.module(*inputs), want, rtol=1e-5, atol=1e-5)


def test_operands_and_output_are_permuted() -> None:
    def token_major(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)

    plain = tensors(2, 3, 3, 40, True)
    graph = sites.traced(token_major, *plain)
    (site,) = sites.attention_sites(graph)
    (out,) = site.output.users
    turned = {name: Operand(getattr(site, name).node, (0, 1, 2, 3)) for name in ("query", "key", "value")}
    fields = {
        **turned,
        "outputs": (out,),
        "interior": frozenset({site.output, out}),
        "output_permutation": (0, 2, 1, 3),
    }
    moved = type(site)(id="a", inputs=site.inputs, scale=site.scale, **fields)
    rewrite = Window(size=4).rewrite(moved, PlanContext(graph, Sites([moved]), [moved]))
    outcome = apply(graph, [rewrite])
    assert outcome.applied, outcome.refused
    want = F.scaled_dot_product_attention(*plain, band(40, 4, 4)).transpose(1, 2)
    torch.testing.assert_close(outcome.graph.module(*plain), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [39, 40, 1000])
def test_a_window_over_everything_changes_nothing(size: int) -> None:
    inputs = tensors(2, 4, 4, 40, True)
    for function in (attention, causal):
        code, text = sites.refusal(sparse_attention("window", size=size), sites.traced(function, *inputs))
        assert code == "identity" and str(size) in text


def test_one_key_less_than_everything_is_a_band() -> None:
    inputs = tensors(2, 4, 4, 40, True)
    graph, _ = sites.rewritten(sparse_attention("window", size=38), sites.traced(attention, *inputs))
    want = F.scaled_dot_product_attention(*inputs, band(40, 38, 38))
    torch.testing.assert_close(graph.module(*inputs), want, rtol=1e-5, atol=1e-5)


def test_refusals() -> None:
    item = sparse_attention("window", size=3)
    query, key, value = tensors(2, 4, 4, 40, True)
    mask = torch.ones(40, 40, dtype=torch.bool)

    def masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, mask)

    assert sites.refusal(item, sites.traced(masked, query, key, value, mask))[0] == "unsupported-mask"
    cross = sites.traced(attention, query, key[:, :, :30], value[:, :, :30])
    assert sites.refusal(item, cross)[0] == "unsupported-shape"
    shared = sites.traced(attention, query, key[:, :1], value[:, :1])
    assert sites.refusal(item, shared)[0] == "unsupported-shape"  # heads broadcast, and no groups say so
    plain = sites.traced(attention, query, key, value)
    assert sites.refusal(item, plain, dropout=0.1)[0] == "dropout-active"
    needs = sites.traced(attention, query.clone().requires_grad_(), key, value, grad=True)
    assert sites.refusal(item, needs)[0] == "requires-grad"
    # The same input in a graph that records no gradient is fine.
    without = sites.traced(attention, query.clone().requires_grad_(), key, value, grad=False)
    assert sites.planned(item, without).rewrites


@pytest.mark.parametrize(
    ("own", "size", "used", "fidelity"),
    [
        ((6, 0), 9, (6, 0), Fidelity.REORDERED),  # the model's own window, only faster
        ((6, 0), 100, (6, 0), Fidelity.REORDERED),
        ((6, 0), 4, (4, 0), Fidelity.APPROXIMATE),
        ((None, 3), 5, (5, 3), Fidelity.APPROXIMATE),
        ((3, 8), 5, (3, 5), Fidelity.APPROXIMATE),
    ],
)
def test_a_models_own_window_stays(own: tuple, size: int, used: tuple[int, int], fidelity: Fidelity) -> None:
    inputs = tensors(1, 4, 4, 40, True)
    bias = Bias("boolean", None, structure="window", window=own)
    item = sparse_attention("window", size=size)
    graph, (rewrite,) = sites.rewritten(item, sites.traced(attention, *inputs), biases=(bias,))
    assert rewrite.fidelity is fidelity
    want = F.scaled_dot_product_attention(*inputs, band(40, *used))
    torch.testing.assert_close(graph.module(*inputs), want, rtol=1e-5, atol=1e-5)


def test_cross_attention_of_equal_lengths_is_refused() -> None:
    def cross(x: Tensor, context: Tensor, weight: Tensor) -> Tensor:
        key = F.linear(context, weight).unflatten(-1, (2, 4)).transpose(1, 2)
        return attention(F.linear(x, weight).unflatten(-1, (2, 4)).transpose(1, 2), key, key)

    x, context, weight = torch.randn(1, 20, 8), torch.randn(1, 20, 8), torch.randn(8, 8)
    item = sparse_attention("window", size=3)
    assert sites.refusal(item, sites.traced(cross, x, context, weight))[0] == "cross-attention"
    graph = sites.traced(lambda x, weight: cross(x + 1, x * 2, weight), x, weight)
    assert sites.planned(item, graph).rewrites


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("mask", [False, True])
def test_through_torch_compile(fresh_dynamo: None, mask: bool) -> None:
    inputs = tensors(1, 4, 2, 333, True)

    def model(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=mask, enable_gqa=True) * 2

    options = {"passes": [sparse_attention("window", size=30)]}
    fast = torch.compile(model, backend="laconic", options=options)
    with torch.no_grad():
        got = fast(*inputs)
    want = F.scaled_dot_product_attention(*inputs, band(333, 30, 0 if mask else 30), enable_gqa=True) * 2
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    (row,) = laconic.report(fast).rewrites
    assert (row.op, row.status, row.provider) == ("laconic::block_sparse_attention", "applied", "gather")


def test_a_full_window_through_torch_compile_is_the_plain_compile(fresh_dynamo: None) -> None:
    inputs = tensors(1, 4, 4, 100, True)
    fast = torch.compile(attention, backend="laconic", options={"passes": [sparse_attention("window", size=99)]})
    with torch.no_grad():
        assert torch.equal(fast(*inputs), torch.compile(attention)(*inputs))
    report = laconic.report(fast)
    assert not report.rewrites and "identity" in [row.code for row in report.refusals]


def test_settings_are_checked() -> None:
    with pytest.raises(TypeError, match="needs size="):
        sparse_attention("window")
    with pytest.raises(ValueError, match="at least 0"):
        sparse_attention("window", size=-1)
    with pytest.raises(TypeError, match="integer"):
        sparse_attention("window", size=2.5)
    with pytest.raises(ValueError, match="'window'"):
        sparse_attention("windows", size=2)
    assert repr(sparse_attention("window", size=2)) == "laconic.sparse_attention('window', size=2)"
    assert sparse_attention("window", size=2) == sparse_attention("window", size=2)
