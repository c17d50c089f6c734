"""Every kernel against its plain-torch meaning, in Triton's interpreter. Run by ``test_interpreter.py``.

Rule: the error against the meaning in float64 is at most twice the error of the meaning in the operands' own type, plus
a floor. Memory that torch.empty returns is poisoned, and operands lie in poisoned surroundings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from laconic.backends import kernels
from laconic.backends.kernels import launch
from laconic.backends.kernels.linear_recurrence import plan_linear_recurrence
from laconic.passes.ops.block_sparse import block_sparse_attention
from laconic.passes.ops.int8 import int8_linear, quantize_rows
from laconic.passes.ops.recurrence import linear_recurrence
from laconic.passes.ops.selective_scan import selective_scan
from laconic.passes.ops.tokens import bipartite_match

assert launch.INTERPRETED, "run tests/kernels/test_interpreter.py"
assert kernels.register()
TRITON = torch.ops.laconic_triton
FLOOR = 2e-6
HALF, SINGLE, BRAIN, DOUBLE = torch.float16, torch.float32, torch.bfloat16, torch.float64


def poison(x: Tensor) -> Tensor:
    return x.fill_(float("nan")) if x.dtype.is_floating_point else x.fill_(77)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fresh memory holds NaN (77 for integers), so what a kernel forgets to write shows."""
    torch.manual_seed(0)
    if "far" not in request.node.name:
        empty, new_empty = torch.empty, Tensor.new_empty
        monkeypatch.setattr(torch, "empty", lambda *size, **options: poison(empty(*size, **options)))
        monkeypatch.setattr(Tensor, "new_empty", lambda x, *size, **options: poison(new_empty(x, *size, **options)))
    launch.LAUNCHES.clear()
    yield
    assert launch.LAUNCHES, "no kernel was launched"


def island(x: Tensor) -> Tensor:
    """The same values as a strided view with poison around it on every axis."""
    sea = poison(torch.zeros([size + 3 for size in x.shape], dtype=x.dtype))
    view = sea[tuple(slice(1, size + 1) for size in x.shape)]
    return view.copy_(x)


def accurate(result: Tensor, meaning: Callable[..., Tensor], *args: Any) -> None:
    """The rule above; integers and other arguments are passed on as they are."""

    def widened(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.dtype.is_floating_point else value

    exact = meaning(*(widened(value) for value in args)).double()
    plain = meaning(*args)
    assert result.dtype == plain.dtype and result.shape == plain.shape
    size = exact.norm()
    # The interpreter rounds to bfloat16 towards zero: twice the error of a GPU's rounding.
    factor = 4 if result.dtype == BRAIN else 2
    error, allowed = (result.double() - exact).norm(), factor * (plain.double() - exact).norm() + FLOOR * size
    assert error <= allowed, f"error {error / size:.2e}, allowed {allowed / size:.2e}"


@pytest.mark.parametrize("dtype", [SINGLE, HALF, BRAIN, DOUBLE])
@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (3, 5, 130), (2, 9001), (40, 64)])
def test_quantize_rows(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = island(torch.randn(shape).to(dtype))
    values, scale = TRITON.quantize_rows(x)
    expected, expected_scale = quantize_rows.body(x)
    assert torch.equal(values, expected) and torch.equal(scale, expected_scale)


def test_quantize_rows_of_a_tie_rounds_to_even() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]])
    assert TRITON.quantize_rows(x)[0].tolist() == [[127, 0, 2, 2, 0, -2, -126]]


@pytest.mark.parametrize("dtype", [SINGLE, BRAIN])
def test_quantize_rows_rounds_ties_as_its_meaning_does(dtype: torch.dtype) -> None:
    # Half-integers times a step: which side they fall on depends on the last bit of the factor.
    x = ((torch.arange(-127, 128) - 0.5) * torch.linspace(0.5, 3, 40)[:, None]).to(dtype)
    x[:, 0] = 127 * torch.linspace(0.5, 3, 40)
    assert torch.equal(TRITON.quantize_rows(x)[0], quantize_rows.body(x)[0])


def test_quantize_rows_without_a_finite_largest() -> None:
    x = torch.randn(5, 40)
    x[1, 3], x[2, 1], x[3, 2], x[4] = float("nan"), float("inf"), -float("inf"), 0.0
    _, scale = TRITON.quantize_rows(x)
    assert scale.isnan().flatten().tolist() == [False, True, True, True, False]
    assert not TRITON.quantize_rows(x[4:])[0].any()


@pytest.mark.parametrize("dtype", [SINGLE, HALF, BRAIN, DOUBLE])
@pytest.mark.parametrize(
    ("rows", "columns", "depth"), [(1, 1, 1), (5, 7, 33), (40, 70, 64), (33, 130, 272), (200, 300, 128), (17, 5, 160)]
)
def test_int8_linear(rows: int, columns: int, depth: int, dtype: torch.dtype) -> None:
    x = island(torch.randint(-127, 128, (rows, depth), dtype=torch.int8))
    weight = island(torch.randint(-127, 128, (columns, depth), dtype=torch.int8))
    x_scale, weight_scale = torch.rand(rows, 1) / 127, torch.rand(columns) / 127
    for bias in (None, torch.randn(columns).to(dtype)):
        args = (x, x_scale, weight, weight_scale, bias, dtype)
        result = TRITON.int8_linear(*args)
        torch.testing.assert_close(result, int8_linear.body(*args), rtol=max(torch.finfo(dtype).eps, 2e-7), atol=1e-6)


def test_int8_linear_keeps_leading_axes_and_takes_a_transposed_weight() -> None:
    x = torch.randint(-127, 128, (2, 3, 32), dtype=torch.int8)
    weight = torch.randint(-127, 128, (32, 9), dtype=torch.int8).t()
    args = (x, torch.rand(2, 3, 1), weight, torch.rand(9), None, SINGLE)
    assert torch.equal(TRITON.int8_linear(*args), int8_linear.body(*args))


RECURRENCES = [
    ((2, 21, 5), 1), ((3, 17), 1), ((2, 20, 2, 3), 1), ((2, 3, 19), 2), ((19, 9), 0), ((70,), 0), ((1, 9, 70), 1)
]  # fmt: skip


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("shape", "dim", "dtype"),
    [(*case, SINGLE) for case in RECURRENCES] + [((1, 1, 1), 1, dtype) for dtype in (SINGLE, HALF, BRAIN, DOUBLE)]
    + [((2, 21, 5), 1, dtype) for dtype in (HALF, BRAIN, DOUBLE)],
)  # fmt: skip
def test_linear_recurrence(shape: tuple[int, ...], dim: int, reverse: bool, dtype: torch.dtype) -> None:
    decay, input = island((torch.rand(shape) * 1.4 - 0.4).to(dtype)), island(torch.randn(shape).to(dtype))
    for initial in (None, torch.randn(shape[:dim] + shape[dim + 1 :]).to(dtype)):
        args = (decay, input, initial, dim, reverse)
        accurate(TRITON.linear_recurrence(*args), linear_recurrence.body, *args)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("spans", [2, 3])
def test_linear_recurrence_in_spans(spans: int, reverse: bool) -> None:
    shape = (1, 150, 2)
    decay, input, initial = island(torch.rand(shape)), island(torch.randn(shape)), torch.randn(1, 2)
    for start in (None, initial):
        out = torch.empty(shape)
        plan = plan_linear_recurrence(decay, input, start, out, 1, reverse, launch.device_of(input), spans)
        assert len(plan) == 3
        for item in plan:
            item.run()
        accurate(out, linear_recurrence.body, decay, input, start, 1, reverse)


def test_linear_recurrence_reads_broadcast_operands() -> None:
    decay, input = torch.rand(1, 20, 1).expand(3, 20, 6), torch.randn(3, 20, 6)
    accurate(
        TRITON.linear_recurrence(decay, input, None, 1, False), linear_recurrence.body, decay, input, None, 1, False
    )


def test_linear_recurrence_does_not_multiply_decays_before_a_state() -> None:
    # The product of all decays overflows; no state is there to grow.
    decay, input = torch.full((1, 100, 1, 2), 1e5), torch.zeros(1, 100, 1, 2)
    out = torch.empty(1, 100, 1, 2)
    for plan in (1, 2):
        for item in plan_linear_recurrence(decay, input, None, out, 1, False, launch.device_of(out), plan):
            item.run()
        assert torch.equal(out, input)


@pytest.mark.parametrize("dtype", [SINGLE, HALF, BRAIN, DOUBLE])
@pytest.mark.parametrize(("batch", "length", "channels", "states"), [(1, 1, 1, 1), (2, 9, 5, 3), (1, 19, 3, 16)])
def test_selective_scan(batch: int, length: int, channels: int, states: int, dtype: torch.dtype) -> None:
    delta, rate = torch.rand(batch, length, channels), -torch.rand(channels, states)
    input, expand, read = (
        torch.randn(batch, length, channels), torch.randn(batch, length, states), torch.randn(batch, length, states)
    )  # fmt: skip
    args = tuple(island(value.to(dtype)) for value in (delta, rate, input, expand, read))
    accurate(TRITON.selective_scan(*args), selective_scan.body, *args)


BANDS = [(7, 7), (-1, 0), (20, -1), (-1, -1), (0, 0), (64, 64)]


@pytest.mark.parametrize("dtype", [SINGLE, HALF, BRAIN])
@pytest.mark.parametrize(
    ("batch", "heads", "groups", "queries", "keys", "depth", "width"),
    [(1, 2, 1, 100, 100, 24, 24), (2, 2, 2, 70, 133, 16, 40), (1, 3, 3, 150, 60, 72, 72), (1, 1, 1, 1, 1, 1, 3)],
)
def test_banded_attention(
    batch: int, heads: int, groups: int, queries: int, keys: int, depth: int, width: int, dtype: torch.dtype
) -> None:
    query = island(torch.randn(batch, heads, queries, depth).to(dtype))
    key = island(torch.randn(batch, groups, keys, depth).to(dtype))
    value = island(torch.randn(batch, groups, keys, width).to(dtype))
    for left, right in BANDS:
        args = (query, key, value, None, None, 64, left, right, depth**-0.5)
        accurate(TRITON.block_sparse_attention(*args), block_sparse_attention.body, *args)


@pytest.mark.parametrize("scale", [-0.3, 0.0, 3.0])
def test_attention_with_any_scale(scale: float) -> None:
    query, key, value = (torch.randn(1, 2, 50, 16) for _ in range(3))
    args = (query, key, value, None, None, 64, 9, 9, scale)
    accurate(TRITON.block_sparse_attention(*args), block_sparse_attention.body, *args)


def test_a_query_that_sees_no_key_is_zero() -> None:
    query, key, value = torch.randn(1, 1, 90, 16), torch.randn(1, 1, 20, 16), torch.randn(1, 1, 20, 16)
    result = TRITON.block_sparse_attention(query, key, value, None, None, 64, 3, 3, 0.25)
    assert not result[:, :, 23:].any() and result[:, :, :23].any()


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize(("queries", "keys", "lists"), [(100, 100, 1), (70, 133, 2), (133, 70, 1)])
def test_listed_attention(queries: int, keys: int, lists: int, block: int, counted: bool) -> None:
    rows, columns = -(-queries // block), -(-keys // block)
    # Three of a few columns: blocks repeat, and must count once.
    index = island(torch.randint(0, columns, (lists, rows, 3), dtype=torch.int32))
    count = torch.randint(0, 4, (lists, rows), dtype=torch.int32) if counted else None
    query, key, value = torch.randn(2, 2, queries, 16), torch.randn(2, 1, keys, 16), torch.randn(2, 1, keys, 24)
    for left, right in ((-1, -1), (30, 5)):
        args = (query, key, value, index, count, block, left, right, 0.25)
        accurate(TRITON.block_sparse_attention(*args), block_sparse_attention.body, *args)


@pytest.mark.parametrize("dtype", [SINGLE, HALF, BRAIN, DOUBLE])
@pytest.mark.parametrize(("batch", "tokens", "depth"), [(2, 45, 24), (1, 700, 150), (1, 3, 1), (3, 66, 16)])
def test_bipartite_match(batch: int, tokens: int, depth: int, dtype: torch.dtype) -> None:
    metric = island(torch.randn(batch, tokens, depth).to(dtype))
    source, destination = metric[:, ::2], metric[:, 1::2]
    score, index = TRITON.bipartite_match(source, destination)
    expected, _ = bipartite_match.body(source, destination)
    torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-6)
    # Any of equals will do: what is chosen must have the score.
    chosen = destination.gather(1, index.unsqueeze(-1).expand(-1, -1, depth))
    similarity = torch.nn.functional.cosine_similarity(source.float(), chosen.float(), dim=-1, eps=1e-20)
    torch.testing.assert_close(similarity, expected, rtol=1e-5, atol=1e-6)


def test_bipartite_match_shows_a_nan() -> None:
    metric = torch.randn(1, 30, 20)
    metric[0, 4, 0] = float("nan")
    score, _ = TRITON.bipartite_match(metric[:, ::2], metric[:, 1::2])
    assert score.isnan().tolist() == [[position == 2 for position in range(15)]]
    score, index = TRITON.bipartite_match(metric[:, 1::2], metric[:, ::2])
    assert score.isnan().all() and (index >= 0).all() and (index < 15).all()


def test_offsets_are_far_beyond_32_bits() -> None:
    # Untouched memory costs nothing; only the few rows in use are ever written.
    step = 2**31 + 64
    x = torch.empty(2 * step, dtype=torch.int8).as_strided((2, 32), (step, 1))
    x.copy_(torch.randint(-127, 128, (2, 32)))
    args = (x, torch.rand(2, 1), x.clone(), torch.rand(2), None, SINGLE)
    assert torch.equal(TRITON.int8_linear(*args), int8_linear.body(*args))
    step = 2**30 + 32
    half = torch.empty(2 * step, dtype=HALF)
    input = half.as_strided((1, 2, 16), (step, step, 1)).copy_(torch.randn(1, 2, 16))
    args = (torch.rand(1, 2, 16).half(), input, None, 1, False)
    accurate(TRITON.linear_recurrence(*args), linear_recurrence.body, *args)
    key = half.as_strided((1, 1, 2, 16), (step, step, step, 1))
    args = (torch.randn(1, 1, 3, 16).half(), key, key, None, None, 64, -1, -1, 0.25)
    accurate(TRITON.block_sparse_attention(*args), block_sparse_attention.body, *args)
    score, _ = TRITON.bipartite_match(key[0], key[0])
    torch.testing.assert_close(score, torch.ones(1, 2), rtol=1e-3, atol=0)


def test_gradients_run_the_kernels_too() -> None:
    from laconic.backends import providers

    table = providers.decompositions({})
    lowered = table[torch.ops.laconic.linear_recurrence.default]
    decay, input = torch.rand(2, 9, 3), torch.randn(2, 9, 3)
    torch.testing.assert_close(
        lowered(decay, input, None, 1, True), linear_recurrence.body(decay, input, None, 1, True)
    )
    assert launch.LAUNCHES["linear_recurrence_kernel"] == 1
