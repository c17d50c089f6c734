"""Checks of the kernels on a device, without pytest, so that ``benchmarks/gpu.py`` can run them on a bare machine.

Each check yields nothing and raises AssertionError. Rule: the error against the operator's meaning in float64 is at
most twice that of the meaning in the operands' own type, plus a floor; fresh memory is poisoned. ``small`` sizes are
for Triton's interpreter, where the same checks run in CI.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import laconic
from laconic.backends import kernels

if not kernels.register():
    raise ImportError("triton is not installed")

from laconic.backends.kernels.launch import LAUNCHES
from laconic.passes.ops.block_sparse import block_sparse_attention
from laconic.passes.ops.int8 import int8_linear, quantize_rows
from laconic.passes.ops.recurrence import linear_recurrence
from laconic.passes.ops.selective_scan import selective_scan

TRITON = torch.ops.laconic_triton
FLOOR = 5e-6
TYPES = (torch.float32, torch.float16, torch.bfloat16)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, or 77 in integers."""
    empty, new_empty = torch.empty, Tensor.new_empty

    def fill(x: Tensor) -> Tensor:
        return x.fill_(float("nan")) if x.dtype.is_floating_point else x.fill_(77)

    with (
        mock.patch.object(torch, "empty", lambda *size, **options: fill(empty(*size, **options))),
        mock.patch.object(Tensor, "new_empty", lambda x, *size, **options: fill(new_empty(x, *size, **options))),
    ):
        yield


def accurate(operator: str, meaning: Callable[..., Tensor], *args: Any) -> None:
    """Launch ``operator`` and hold it to the rule."""
    before = sum(LAUNCHES.values())
    with poisoned():
        result = getattr(TRITON, operator)(*args)
    assert sum(LAUNCHES.values()) > before, f"{operator} launched no kernel"
    wide = [x.double() if isinstance(x, Tensor) and x.dtype.is_floating_point else x for x in args]
    exact, plain = meaning(*wide).double(), meaning(*args)
    assert result.dtype == plain.dtype and result.shape == plain.shape
    size = exact.norm() + 1e-30
    # Triton's interpreter, on CPU, rounds to bfloat16 towards zero.
    factor = 4 if result.dtype == torch.bfloat16 and result.device.type == "cpu" else 2
    error, allowed = (result.double() - exact).norm(), factor * (plain.double() - exact).norm() + FLOOR * size
    shapes = [tuple(x.shape) if isinstance(x, Tensor) else x for x in args]
    assert error <= allowed, f"{operator} {result.dtype} {shapes}: {error / size:.2e} > {allowed / size:.2e}"


def _randn(device: str, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def check_quantize_rows(device: str, small: bool) -> None:
    for shape in ((7, 33), (3, 5, 130), (2, 9001), *(() if small else ((4096, 3072), (513, 20000)))):
        for dtype in (*TYPES, torch.float64):
            x = _randn(device, dtype, *shape)
            with poisoned():
                values, scale = TRITON.quantize_rows(x)
            expected, expected_scale = quantize_rows.body(x)
            torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
            assert (values.int() - expected.int()).abs().max() <= 1
            changed = (values != expected).double().mean()
            assert changed <= 1e-3, f"{changed:.1e} of the integers differ"
    x = _randn(device, torch.float32, 3, 40)
    x[0, 1], x[1, 2] = float("nan"), float("inf")
    assert TRITON.quantize_rows(x)[1].isnan().flatten().tolist() == [True, True, False]


def check_int8_linear(device: str, small: bool) -> None:
    shapes = [(1, 1, 1), (5, 7, 33), (33, 130, 272), (17, 40, 160), (130, 70, 64)]
    if not small:
        shapes += [(16, 4096, 4096), (300, 768, 3072), (1024, 3072, 768), (4097, 1000, 1040), (8192, 4096, 512)]
    for rows, columns, depth in shapes:
        x = torch.randint(-127, 128, (rows, depth), dtype=torch.int8, device=device)
        weight = torch.randint(-127, 128, (columns, depth), dtype=torch.int8, device=device)
        scale, weight_scale = torch.rand(rows, 1, device=device) / 1e3, torch.rand(columns, device=device)
        for dtype in TYPES:
            for bias in (None, _randn(device, dtype, columns)):
                before = LAUNCHES["int8_linear_kernel"]
                with poisoned():
                    result = TRITON.int8_linear(x, scale, weight, weight_scale, bias, dtype)
                assert LAUNCHES["int8_linear_kernel"] == before + 1
                expected = int8_linear.body(x, scale, weight, weight_scale, bias, dtype)
                tolerance = max(1e-6, torch.finfo(dtype).eps)
                torch.testing.assert_close(
                    result, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
                )


def check_linear_recurrence(device: str, small: bool) -> None:
    shapes = [((2, 21, 5), 1), ((3, 17), 1), ((1, 9, 70), 1)]
    if not small:
        # Many channels, few channels (spans), time innermost, a handful of states.
        shapes += [((8, 1000, 2048), 1), ((2, 4099, 96), 1), ((64, 8193), 1), ((1536, 256, 16), 1), ((1, 20000, 8), 1)]
    for shape, dim in shapes:
        for dtype in (*TYPES, torch.float64):
            decay, input = torch.rand(shape, device=device).to(dtype), _randn(device, dtype, *shape)
            for reverse in (False, True):
                initial = _randn(device, dtype, *shape[:dim], *shape[dim + 1 :]) if reverse else None
                accurate("linear_recurrence", _stepped, decay, input, initial, dim, reverse)


def _stepped(decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool) -> Tensor:
    """The meaning, computed on the CPU in float32 at least (thousands of steps are slow as separate kernels)."""
    wide = torch.promote_types(input.dtype, torch.float32)
    moved = (None if value is None else value.cpu().to(wide) for value in (decay, input, initial))
    return linear_recurrence.body(*moved, dim, reverse).to(input.device, input.dtype)


def check_selective_scan(device: str, small: bool) -> None:
    sizes = [(2, 9, 5, 3), (1, 19, 3, 16)]
    if not small:
        sizes += [(2, 1000, 1536, 16), (1, 257, 100, 64), (1, 64, 40, 128), (3, 33, 7, 1)]
    for batch, length, channels, states in sizes:
        for dtype in TYPES:
            args = (
                torch.rand(batch, length, channels, device=device).to(dtype),
                -torch.rand(channels, states, device=device).to(dtype),
                _randn(device, dtype, batch, length, channels),
                _randn(device, dtype, batch, length, states),
                _randn(device, dtype, batch, length, states),
            )
            accurate("selective_scan", _scanned, *args)


def _scanned(delta: Tensor, rate: Tensor, input: Tensor, expand: Tensor, read: Tensor) -> Tensor:
    """The meaning in float32 at least, rounded once."""
    wide = torch.promote_types(delta.dtype, torch.float32)
    return selective_scan.body(*(x.to(wide) for x in (delta, rate, input, expand, read))).to(delta.dtype)


def check_banded_attention(device: str, small: bool) -> None:
    sizes = [(1, 2, 1, 100, 100, 24, 24), (2, 2, 2, 70, 133, 16, 40), (1, 1, 1, 60, 60, 72, 72)]
    if not small:
        sizes += [(2, 8, 2, 1000, 1000, 64, 64), (1, 4, 4, 777, 1111, 128, 128), (1, 2, 2, 300, 300, 256, 256)]
        sizes += [(2, 12, 12, 513, 513, 72, 72), (1, 3, 3, 400, 400, 40, 80)]
    for batch, heads, groups, queries, keys, depth, width in sizes:
        for dtype in TYPES:
            # Token-major, as projections leave them.
            query = _randn(device, dtype, batch, queries, heads, depth).transpose(1, 2)
            key = _randn(device, dtype, batch, keys, groups, depth).transpose(1, 2)
            value = _randn(device, dtype, batch, keys, groups, width).transpose(1, 2)
            for left, right in ((7, 7), (100, 0), (-1, 0), (-1, -1), (300, 300)):
                args = (query, key, value, None, None, 64, left, right, depth**-0.5)
                accurate("block_sparse_attention", block_sparse_attention.body, *args)


def check_listed_attention(device: str, small: bool) -> None:
    for queries, keys, block, slots in (
        (100, 70, 16, 3),
        (133, 133, 64, 2),
        *(() if small else ((1000, 3000, 128, 9),)),
    ):
        rows, columns = -(-queries // block), -(-keys // block)
        for dtype in TYPES:
            index = torch.randint(0, columns, (2, rows, slots), dtype=torch.int32, device=device)
            count = torch.randint(0, slots + 1, (2, rows), dtype=torch.int32, device=device)
            query, key, value = (_randn(device, dtype, 1, 2, n, 64) for n in (queries, keys, keys))
            for used in (None, count):
                args = (query, key, value, index, used, block, 200, -1, 0.125)
                accurate("block_sparse_attention", block_sparse_attention.body, *args)


def check_bipartite_match(device: str, small: bool) -> None:
    sizes = [(2, 45, 24), (1, 300, 150), (1, 3, 1)]
    if not small:
        sizes += [(2, 4096, 64), (1, 4097, 640), (16, 197, 64)]
    for batch, tokens, depth in sizes:
        for dtype in (*TYPES, torch.float64):
            metric = _randn(device, dtype, batch, tokens, depth)
            source, destination = metric[:, ::2], metric[:, 1::2]
            with poisoned():
                score, index = TRITON.bipartite_match(source, destination)
            left, right = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (source, destination))
            expected = (left @ right.transpose(1, 2)).amax(-1)
            assert (score - expected).abs().max() <= 1e-5, f"{(score - expected).abs().max():.1e} of {dtype}"
            chosen = (left * right.gather(1, index.unsqueeze(-1).expand(-1, -1, depth))).sum(-1)
            assert (chosen - expected).abs().max() <= 1e-5, "a destination that is not the most similar"


def check_compiled_models(device: str, small: bool) -> None:
    """Once through ``torch.compile``: the report names the Triton provider and the kernels really ran."""
    model = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64)).to(device).eval()
    x = torch.randn(4, 50, 64, device=device)
    run = torch.compile(model, backend=laconic.Backend(passes=[laconic.quantize("int8", min_products=0)]))
    before = LAUNCHES["int8_linear_kernel"]
    with torch.no_grad():
        result, expected = run(x), model(x)
    assert LAUNCHES["int8_linear_kernel"] == before + 2
    assert {row.provider for row in laconic.report(run).rewrites} == {"triton"}
    assert (result - expected).norm() <= 0.02 * expected.norm()
    torch._dynamo.reset()

    def recurrent(decay: Tensor, input: Tensor) -> Tensor:
        state, states = torch.zeros_like(input[:, 0]), []
        for step in range(input.shape[1]):
            state = decay[:, step] * state + input[:, step]
            states.append(state)
        return torch.stack(states, 1)

    decay, input = (torch.rand(2, 12, 40, device=device, requires_grad=True) for _ in range(2))
    run = torch.compile(recurrent, backend=laconic.Backend())
    before = LAUNCHES["linear_recurrence_kernel"]
    result, expected = run(decay, input), recurrent(decay, input)
    grads = torch.autograd.grad(result.square().sum(), (decay, input))
    assert LAUNCHES["linear_recurrence_kernel"] >= before + 2
    torch.testing.assert_close(result, expected)
    for got, want in zip(grads, torch.autograd.grad(expected.square().sum(), (decay, input)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


def check_cuda_graph(device: str, small: bool) -> None:
    """The operators can be captured and replayed on new values."""
    if device == "cpu":
        return
    x = torch.randn(64, 256, device=device)
    weight, weight_scale = quantize_rows.body(torch.randn(128, 256, device=device))
    decay, query = torch.rand(4, 300, 32, device=device), torch.randn(1, 2, 200, 64, device=device)

    def run() -> tuple[Tensor, ...]:
        values, scale = TRITON.quantize_rows(x)
        linear = TRITON.int8_linear(values, scale, weight, weight_scale.squeeze(-1), None, torch.float32)
        scanned = TRITON.linear_recurrence(decay, decay, None, 1, False)
        mixed = TRITON.block_sparse_attention(query, query, query, None, None, 64, 20, 20, 0.125)
        return linear, scanned, mixed, TRITON.bipartite_match(query[0, :, ::2], query[0, :, 1::2])[0]

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for value in (x, decay, query):
        value.copy_(torch.rand_like(value))
    graph.replay()
    for got, want in zip(captured, run(), strict=True):
        torch.testing.assert_close(got, want)


CHECKS: dict[str, Callable[[str, bool], None]] = {
    name.removeprefix("check_"): function for name, function in list(globals().items()) if name.startswith("check_")
}
