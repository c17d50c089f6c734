"""Token merging: matching against a naive loop, merging and restoring, and the rewrite around attention and linears."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import laconic
from laconic.passes.merge_tokens import merge_tokens
from laconic.passes.ops.tokens import bipartite_match, match_tokens, merge, merge_limit, unmerge

from . import attention_sites as sites

LINEAR = torch.ops.aten.linear.default


def naive_rows(metric: Tensor, r: int, protected: int) -> tuple[list[int], list[list[int]]]:
    """The row of every token, and the tokens of every row, by the paper's five steps in plain loops."""
    tokens = list(range(len(metric)))
    free = tokens[protected:]
    sources, destinations = free[0::2], free[1::2]
    edges = []
    for source in sources:
        scores = [float(F.cosine_similarity(metric[source], metric[target], dim=0)) for target in destinations]
        best = max(range(len(scores)), key=scores.__getitem__)
        edges.append((scores[best], source, destinations[best]))
    edges.sort(reverse=True)
    target_of = {source: target for _, source, target in edges[:r]}
    kept = [token for token in tokens if token not in target_of]
    row = [kept.index(target_of.get(token, token)) for token in tokens]
    return row, [[token for token in tokens if row[token] == number] for number in range(len(kept))]


@pytest.mark.parametrize("tokens", [2, 7, 16, 33])
@pytest.mark.parametrize("protected", [0, 1, 3])
def test_matching_equals_a_naive_loop(tokens: int, protected: int) -> None:
    torch.manual_seed(tokens + protected)
    metric, x = torch.randn(2, tokens, 5), torch.randn(2, 3, tokens, 4)
    for r in {1, merge_limit(tokens, protected) // 2, merge_limit(tokens, protected)} - {0}:
        if r > merge_limit(tokens, protected):
            continue
        merging = match_tokens(metric, r, protected)
        merged, restored = merge(x, merging), unmerge(merge(x, merging), merging)
        assert merging.size.sum(1).tolist() == [tokens, tokens]
        assert merging.row[:, :protected].tolist() == [list(range(min(protected, tokens)))] * 2
        for batch in range(2):
            row, members = naive_rows(metric[batch], r, protected)
            assert merging.row[batch].tolist() == row
            assert merging.size[batch].tolist() == [len(group) for group in members]
            assert sorted([*merging.kept[batch].tolist(), *merging.merged[batch].tolist()]) == list(range(tokens))
            for number, group in enumerate(members):
                torch.testing.assert_close(merged[batch, :, number], x[batch][:, group].mean(1))
                torch.testing.assert_close(restored[batch][:, group], merged[batch][:, [number] * len(group)])


def test_restoring_is_exact_where_merged_tokens_are_equal() -> None:
    metric = torch.randn(2, 17, 5)
    merging = match_tokens(metric, 6, 1)
    equal = unmerge(torch.randn(2, 3, 11, 4), merging)
    torch.testing.assert_close(unmerge(merge(equal, merging), merging), equal)


def test_the_limit_leaves_a_destination() -> None:
    assert [merge_limit(tokens, 0) for tokens in (0, 1, 2, 3, 10, 11)] == [0, 0, 1, 2, 5, 6]
    assert [merge_limit(tokens, 4) for tokens in (0, 4, 5, 6, 7)] == [0, 0, 0, 1, 2]


def test_operator_is_well_formed() -> None:
    metric = torch.randn(2, 9, 5)
    torch.library.opcheck(
        bipartite_match.overload, (metric[:, 1::2], metric[:, 2::2]), test_utils=("test_schema", "test_faketensor")
    )
    score, index = bipartite_match(torch.zeros(1, 2, 3), torch.ones(1, 4, 3))
    assert score.eq(0).all() and index.lt(4).all()  # a token of zeros has no direction, and no NaN


def test_proportional_attention_is_exact_for_equal_tokens() -> None:
    torch.manual_seed(0)
    few = [torch.randn(2, 3, 9, 8) for _ in range(3)]
    # Source 2i and destination 2i + 1 are equal tokens, so every merge joins equals.
    twice = [x.repeat_interleave(2, 2) for x in few]
    graph, _ = sites.rewritten(merge_tokens("tome", r=7), sites.traced(attention, *twice))
    torch.testing.assert_close(graph.module(*twice), attention(*twice), rtol=1e-5, atol=1e-5)
    plain, _ = sites.rewritten(merge_tokens("tome", r=7, proportional=False), sites.traced(attention, *twice))
    assert (plain.module(*twice) - attention(*twice)).abs().max() > 1e-3


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value)


def reference(query: Tensor, key: Tensor, value: Tensor, r: int, protect: int = 0) -> Tensor:
    """Merged attention, token by token: what the rewrite means."""
    groups = query.shape[1] // key.shape[1]
    rows = []
    for batch in range(query.shape[0]):
        row, members = naive_rows(key[batch].mean(0), r, protect)
        q, k, v = (torch.stack([x[batch][:, group].mean(1) for group in members], 1) for x in (query, key, value))
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        size = torch.tensor([float(len(group)) for group in members])
        weights = (q @ k.transpose(-1, -2) * query.shape[-1] ** -0.5 + size.log()).softmax(-1)
        rows.append((weights @ v)[:, row])
    return torch.stack(rows)


@pytest.mark.parametrize("tokens", [10, 33])
@pytest.mark.parametrize("protect", [0, 1])
def test_rewrite_equals_the_reference(tokens: int, protect: int) -> None:
    inputs = [torch.randn(2, tokens, 4, 8).transpose(1, 2) for _ in range(3)]
    item = merge_tokens("tome", r=4, protect=protect)
    graph, applied = sites.rewritten(item, sites.traced(attention, *inputs))
    assert [rewrite.op for rewrite in applied] == ["laconic::bipartite_match"]
    torch.testing.assert_close(graph.module(*inputs), reference(*inputs, 4, protect), rtol=1e-5, atol=1e-5)


def test_grouped_heads() -> None:
    def grouped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)

    inputs = [torch.randn(2, heads, 12, 8) for heads in (6, 2, 2)]
    graph, _ = sites.rewritten(merge_tokens("tome", r=5), sites.traced(grouped, *inputs))
    torch.testing.assert_close(graph.module(*inputs), reference(*inputs, 5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axes", [2, 3])
def test_fewer_batch_axes(axes: int) -> None:
    inputs = [torch.randn(3, 12, 8) for _ in range(3)]
    inputs = inputs if axes == 3 else [x[0] for x in inputs]
    graph, _ = sites.rewritten(merge_tokens("tome", r=5), sites.traced(attention, *inputs))
    lifted = [x[:, None] if axes == 3 else x[None, None] for x in inputs]
    want = reference(*lifted, 5).reshape(inputs[0].shape)
    torch.testing.assert_close(graph.module(*inputs), want, rtol=1e-5, atol=1e-5)


class Block(nn.Module):
    """Self-attention with its linear layers, spelled in several ways."""

    def __init__(self, spelling: str, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.spelling, self.heads = spelling, heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q, self.k, self.v = (nn.Linear(width, width, bias=bias) for bias in (True, False, True))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        shape = (batch, tokens, self.heads, width // self.heads)
        if self.spelling == "packed":
            q, k, v = self.qkv(x).reshape(batch, tokens, 3, *shape[2:]).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.spelling == "chunked":
            q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        elif self.spelling == "interleaved":  # each head's q, k and v side by side
            q, k, v = self.qkv(x).view(*shape[:3], -1).transpose(1, 2).chunk(3, -1)
        else:
            q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.spelling == "rotated":
            q, k = q.roll(1, -1) + q, k.roll(1, -1) + k
        y = F.scaled_dot_product_attention(q, k, v)
        if self.spelling == "head-major":  # not what a projection of [B, N, H * D] reads
            return x + self.out(y.reshape(batch, tokens, width))
        y = y.transpose(1, 2).reshape(batch, tokens, width)
        if self.spelling == "gated":
            y = y * y.sigmoid()
        if self.spelling == "time-major":
            return x + self.out(y.transpose(0, 1)).transpose(0, 1)
        return x + self.out(y)


def flat_block(block: Block) -> tuple[Any, tuple[Tensor, ...]]:
    """The block as a function of its input and its parameters, as Dynamo lifts them."""
    names, values = zip(*block.named_parameters(), strict=True)

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (x,))

    return function, tuple(value.detach() for value in values)


def rows_of_linears(graph: Any) -> list[int]:
    """How many tokens each linear layer runs on, in the order of the graph."""
    nodes = graph.module.graph.find_nodes(op="call_function", target=LINEAR)
    return [node.meta["val"].shape[-2] for node in nodes]


@pytest.mark.parametrize(
    ("spelling", "linears"),
    [
        ("packed", [16, 11, 11, 11]),  # k for all 16 tokens, q and v for 11, then the output projection
        ("chunked", [16, 11, 11, 11]),
        ("separate", [16, 11, 11, 11]),
        ("interleaved", [16, 11]),  # q, k and v cannot be told apart by rows: only the output projection moves
        ("rotated", [16, 16, 11, 11]),  # positions enter q and k, so those are merged after it
        ("gated", [16, 11, 11, 16]),
        ("head-major", [16, 11, 11, 16]),
        ("time-major", [16, 11, 11, 2]),  # [N, B, C] into the projection: left where it is
    ],
)
@pytest.mark.parametrize("protect", [0, 1])
def test_linears_run_on_merged_tokens_where_dataflow_allows(spelling: str, linears: list[int], protect: int) -> None:
    torch.manual_seed(0)
    function, parameters = flat_block(Block(spelling))
    x = torch.randn(2, 16, 24)
    before = sites.traced(function, x, *parameters)
    graph, _ = sites.rewritten(merge_tokens("tome", r=5, protect=protect), before)
    assert sorted(rows_of_linears(graph)) == sorted(linears)

    (call,) = before.module.graph.find_nodes(op="call_function", target=sites.SDPA)
    with_reference = before.module
    call.target = lambda q, k, v: reference(q, k, v, 5, protect)
    with_reference.recompile()
    torch.testing.assert_close(graph.module(x, *parameters), with_reference(x, *parameters), rtol=1e-5, atol=1e-5)


def test_a_layer_with_other_readers_stays_whole() -> None:
    torch.manual_seed(0)
    block = Block("separate")
    function, parameters = flat_block(block)

    def and_queries(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        q = F.linear(x, rest[2], rest[3])  # block.q, computed once and read twice
        y = q.view(2, 16, 3, 8).transpose(1, 2)
        return F.scaled_dot_product_attention(y, y, y), q

    x = torch.randn(2, 16, 24)
    graph, _ = sites.rewritten(merge_tokens("tome", r=5), sites.traced(and_queries, x, *parameters))
    assert rows_of_linears(graph) == [16]
    torch.testing.assert_close(graph.module(x, *parameters)[1], F.linear(x, parameters[2], parameters[3]))


def test_a_trained_output_projection_is_not_moved() -> None:
    function, parameters = flat_block(Block("separate"))
    x = torch.randn(2, 16, 24)
    names = [name for name, _ in Block("separate").named_parameters()]
    parameters[names.index("out.weight")].requires_grad_()
    graph, _ = sites.rewritten(merge_tokens("tome", r=5), sites.traced(function, x, *parameters, grad=True))
    assert sorted(rows_of_linears(graph)) == [11, 11, 16, 16]


def test_nothing_to_merge_changes_nothing() -> None:
    inputs = [torch.randn(2, 4, 16, 8) for _ in range(3)]
    for r in (0, 0.0, 0.05):
        assert sites.refusal(merge_tokens("tome", r=r), sites.traced(attention, *inputs))[0] == "identity"


def test_a_ratio_counts_all_tokens() -> None:
    inputs = [torch.randn(2, 4, 16, 8) for _ in range(3)]
    by_ratio, _ = sites.rewritten(merge_tokens("tome", r=0.25), sites.traced(attention, *inputs))
    by_count, _ = sites.rewritten(merge_tokens("tome", r=4), sites.traced(attention, *inputs))
    assert torch.equal(by_ratio.module(*inputs), by_count.module(*inputs))


def test_refusals() -> None:
    item = merge_tokens("tome", r=4)
    query, key, value = (torch.randn(2, 4, 16, 8) for _ in range(3))

    def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    def masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, mask)

    assert sites.refusal(item, sites.traced(causal, query, key, value))[0] == "unsupported-mask"
    assert sites.refusal(item, sites.traced(masked, query, key, value, torch.zeros(16, 16)))[0] == "unsupported-mask"
    plain = sites.traced(attention, query, key, value)
    for r, protect in ((9, 0), (8, 2), (4, 16)):
        code, text = sites.refusal(merge_tokens("tome", r=r, protect=protect), plain)
        assert code == "unsupported-shape" and f"r={r}" in text
    assert sites.planned(merge_tokens("tome", r=8), plain).rewrites
    cross = sites.traced(attention, query, key[:, :, :12], value[:, :, :12])
    assert sites.refusal(item, cross)[0] == "unsupported-shape"
    shared = sites.traced(attention, query, key[:, :1], value[:, :1])
    assert sites.refusal(item, shared)[0] == "unsupported-shape"  # heads broadcast, and no groups say so
    assert sites.refusal(item, plain, dropout=0.5)[0] == "dropout-active"
    needs = sites.traced(attention, query, key.clone().requires_grad_(), value, grad=True)
    assert sites.refusal(item, needs)[0] == "requires-grad"


def test_cross_attention_of_equal_lengths_is_refused() -> None:
    def cross(x: Tensor, context: Tensor, weight: Tensor) -> Tensor:
        key = F.linear(context, weight).unflatten(-1, (2, 4)).transpose(1, 2)
        return attention(F.linear(x, weight).unflatten(-1, (2, 4)).transpose(1, 2), key, key)

    inputs = torch.randn(1, 20, 8), torch.randn(1, 20, 8), torch.randn(8, 8)
    assert sites.refusal(merge_tokens("tome", r=4), sites.traced(cross, *inputs))[0] == "cross-attention"


def compiled(model: Any, *passes: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, backend="laconic", options={"passes": list(passes)})


@torch.no_grad()
def test_through_torch_compile() -> None:
    torch.manual_seed(0)
    block, x = Block("packed").eval(), torch.randn(2, 16, 24)
    fast = compiled(block, merge_tokens("tome", r=5, protect=1))
    got = fast(x)
    (row,) = laconic.report(fast).rewrites
    assert (row.op, row.status) == ("laconic::bipartite_match", "applied")

    q, k, v = block.qkv(x).reshape(2, 16, 3, 3, 8).permute(2, 0, 3, 1, 4).unbind(0)
    want = x + block.out(reference(q, k, v, 5, 1).transpose(1, 2).reshape(2, 16, 24))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_r_zero_through_torch_compile_is_the_plain_compile() -> None:
    torch.manual_seed(0)
    block, x = Block("packed").eval(), torch.randn(2, 16, 24)
    fast = compiled(block, merge_tokens("tome", r=0))
    got = fast(x)
    report = laconic.report(fast)
    assert not report.rewrites and "identity" in [row.code for row in report.refusals]
    torch._dynamo.reset()
    assert torch.equal(got, torch.compile(block)(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "dit"])
@torch.no_grad()
def test_real_models(name: str) -> None:
    from tests.models.builders import BUILDERS

    model, args, kwargs = BUILDERS[name](2)
    exact = model(*args, **kwargs)[0]
    fast = compiled(model, merge_tokens("tome", r=4, protect=1))
    got = fast(*args, **kwargs)[0]
    assert [row.status for row in laconic.report(fast).rewrites] == ["applied", "applied"]
    assert got.shape == exact.shape and got.isfinite().all()
    error = (got - exact).norm() / exact.norm()
    assert 1e-6 < error < 0.3  # a different function, near the model's own
    off = compiled(model, merge_tokens("tome", r=0))
    torch.testing.assert_close(off(*args, **kwargs)[0], exact, rtol=1e-5, atol=1e-5)


def test_settings_are_checked() -> None:
    with pytest.raises(TypeError, match="needs r="):
        merge_tokens("tome")
    for bad in (-1, 0.6):
        with pytest.raises(ValueError, match="r"):
            merge_tokens("tome", r=bad)
    for bad in ("half", True):
        with pytest.raises(TypeError, match="r must be"):
            merge_tokens("tome", r=bad)
    with pytest.raises(TypeError, match="proportional"):
        merge_tokens("tome", r=1, proportional=1)
    with pytest.raises(TypeError, match="protect"):
        merge_tokens("tome", r=1, protected=1)
    assert repr(merge_tokens("tome", r=0.5, protect=1)) == "laconic.merge_tokens('tome', r=0.5, protect=1)"
