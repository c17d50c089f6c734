"""Triton kernels of the int8 linear layer: rounding rows to int8, and the product with its scales and bias."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (the arguments of jitted functions are pointers and tiles, which have no Python types)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...passes.ops.int8 import LEVELS, SMALLEST, int8_linear, quantize_rows
from ...patterns.reasons import Reason
from ..providers import provider
from .launch import Case, Device, Launch, ceil_div, device_of, no_triton_on, opaque, power_of_two

LONGEST_IN_REGISTERS = 8192
"""Rows up to here are read once and kept; longer ones are read twice, the second time from L2."""


@triton.jit
def _round(x):
    # Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even, as torch.round does. The launch
    # forbids fusing it with the multiplication before it, which would round once where the meaning rounds twice.
    return ((x + 12582912.0) - 12582912.0).to(tl.int8)


@triton.jit
def quantize_rows_kernel(
    x, values, scale, rows, columns, stride, levels, smallest,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ONE_PASS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = row < rows
    source = x + row[:, None] * stride
    target = values + row[:, None] * columns
    if ONE_PASS:
        mask = inside[:, None] & (column < columns)[None, :]
        tile = tl.load(source + column[None, :], mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
        largest = tl.max(tl.abs(tile), 1)
        finite = tl.min((tl.abs(tile) < float("inf")).to(tl.int32), 1)
    else:
        largest = tl.zeros([ROWS], tl.float32)
        finite = tl.full([ROWS], 1, tl.int32)
        for start in range(0, columns, BLOCK):
            mask = inside[:, None] & (start + column < columns)[None, :]
            tile = tl.load(source + start + column[None, :], mask, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.max(tl.abs(tile), 1))
            finite = tl.minimum(finite, tl.min((tl.abs(tile) < float("inf")).to(tl.int32), 1))
    # A maximum may lose a NaN, so finiteness is counted beside it.
    bounded = tl.where(finite == 1, tl.maximum(largest, smallest), 1.0)
    # The meaning's quotient of a number and a tensor is a reciprocal and a product: two roundings, decisive at a tie.
    factor = tl.div_rn(1.0, bounded) * levels
    tl.store(scale + row, tl.where(finite == 1, tl.div_rn(bounded, levels), float("nan")), inside)
    if ONE_PASS:
        safe = tl.where((finite == 1)[:, None], tile, 0.0)
        tl.store(target + column[None, :], _round(safe * factor[:, None]), mask)
    else:
        for start in range(0, columns, BLOCK):
            mask = inside[:, None] & (start + column < columns)[None, :]
            tile = tl.load(source + start + column[None, :], mask, other=0.0, eviction_policy="evict_first")
            safe = tl.where((finite == 1)[:, None], tile.to(tl.float32), 0.0)
            tl.store(target + start + column[None, :], _round(safe * factor[:, None]), mask)


@triton.jit
def int8_linear_kernel(
    x, weight, x_scale, weight_scale, bias, out, rows, columns, depth, stride_x, stride_weight,
    HAS_BIAS: tl.constexpr, EVEN_DEPTH: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Programs in flight together share rows and columns: GROUP row tiles are walked for every column tile.
    program = tl.program_id(0)
    row_tiles = tl.cdiv(rows, BLOCK_M)
    per_group = GROUP * tl.cdiv(columns, BLOCK_N)
    first_row_tile = program // per_group * GROUP
    group = tl.minimum(row_tiles - first_row_tile, GROUP)
    row_tile = first_row_tile + program % per_group % group
    column_tile = program % per_group // group

    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    # Rows and columns past the end are read from the beginning and never stored, so these loads need no mask.
    x_tile = x + (row % rows).to(tl.int64)[:, None] * stride_x + inner[None, :]
    weight_tile = weight + (column % columns).to(tl.int64)[None, :] * stride_weight + inner[:, None]
    product = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, depth, BLOCK_K):
        if EVEN_DEPTH:
            left = tl.load(x_tile)
            right = tl.load(weight_tile)
        else:
            left = tl.load(x_tile, (inner < depth - start)[None, :], other=0)
            right = tl.load(weight_tile, (inner < depth - start)[:, None], other=0)
        product = tl.dot(left, right, product, out_dtype=tl.int32)
        x_tile += BLOCK_K
        weight_tile += BLOCK_K

    row_inside, column_inside = row < rows, column < columns
    row_scale = tl.load(x_scale + row, row_inside, other=0.0)
    column_scale = tl.load(weight_scale + column, column_inside, other=0.0)
    result = product.to(tl.float32) * row_scale[:, None] * column_scale[None, :]
    if HAS_BIAS:
        result += tl.load(bias + column, column_inside, other=0.0).to(tl.float32)[None, :]
    target = out + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(target, result.to(out.dtype.element_ty), row_inside[:, None] & column_inside[None, :])


@dataclass(frozen=True)
class Tile:
    """A block of the product and the warps that compute it."""

    rows: int
    columns: int
    depth: int
    warps: int


_HOPPER = (Tile(128, 256, 128, 8), Tile(128, 128, 128, 8), Tile(64, 128, 128, 4), Tile(64, 64, 128, 4))
_AMPERE = (Tile(128, 256, 64, 8), Tile(128, 128, 64, 4), Tile(64, 128, 64, 4), Tile(64, 64, 128, 4))
_FEW_ROWS = (Tile(16, 64, 256, 4), Tile(32, 64, 128, 4))
_UNALIGNED = (Tile(32, 32, 64, 4),)
"""Rows that begin anywhere are loaded byte by byte, and every byte in flight takes registers."""


def choose_tile(rows: int, columns: int, depth: int, device: Device) -> tuple[Tile, int]:
    """The largest tile that still gives every multiprocessor one, and how many loads are kept in flight."""
    few = [tile for tile in _FEW_ROWS if rows <= tile.rows]
    choices: tuple[Tile, ...] | list[Tile] = few or (_HOPPER if device.capability >= 90 else _AMPERE)
    if depth % 16:
        few, choices = [], _UNALIGNED
    filling = [t for t in choices if ceil_div(rows, t.rows) * ceil_div(columns, t.columns) >= device.processors]
    tile = filling[0] if filling else choices[-1] if not few else few[0]
    in_shared = (tile.rows + tile.columns) * tile.depth
    stages = min(2 if device.is_amd else 4, device.shared_memory // in_shared)
    return tile, max(1, stages)


def plan_int8_linear(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, out: Tensor, device: Device
) -> Launch:
    """``x [M, K]`` and ``weight [N, K]`` with unit stride along K, ``out [M, N]`` contiguous."""
    rows, depth = x.shape
    columns = weight.shape[0]
    tile, stages = choose_tile(rows, columns, depth, device)
    return Launch(
        int8_linear_kernel,
        ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns),
        {
            "x": x, "weight": weight, "x_scale": x_scale, "weight_scale": weight_scale, "bias": bias, "out": out,
            "rows": rows, "columns": columns, "depth": depth, "stride_x": x.stride(0),
            "stride_weight": weight.stride(0), "HAS_BIAS": bias is not None, "EVEN_DEPTH": depth % tile.depth == 0,
            "GROUP": 8, "BLOCK_M": tile.rows, "BLOCK_N": tile.columns, "BLOCK_K": tile.depth,
        },
        tile.warps,
        stages,
    )  # fmt: skip


def plan_quantize_rows(x: Tensor, values: Tensor, scale: Tensor, device: Device) -> Launch:
    """``x [M, K]`` with unit stride along K; ``values [M, K]`` and ``scale [M]`` contiguous."""
    rows, columns = x.shape
    block = power_of_two(columns, 16, LONGEST_IN_REGISTERS)
    together = max(1, min(8, 2048 // block))
    return Launch(
        quantize_rows_kernel,
        ceil_div(rows, together),
        {
            "x": x, "values": values, "scale": scale, "rows": rows, "columns": columns, "stride": x.stride(0),
            "levels": LEVELS, "smallest": SMALLEST, "ROWS": together, "BLOCK": block, "ONE_PASS": columns <= block,
        },
        4 if block <= 4096 else 8,
        options={"enable_fp_fusion": False},
    )  # fmt: skip


def _rows_of(x: Tensor) -> Tensor:
    """``[..., K]`` as ``[M, K]`` with unit stride along K; a view where the layout allows."""
    flat = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    return flat if flat.shape[-1] <= 1 or flat.stride(-1) == 1 else flat.contiguous()


def _rounded_shapes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


def _product_shape(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


@opaque("quantize_rows", _rounded_shapes)
def _quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    values = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    if x.numel():
        plan_quantize_rows(_rows_of(x), values, scale, device_of(x)).run()
    return values, scale


@opaque("int8_linear", _product_shape)
def _int8_linear(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    out = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=dtype, device=x.device)
    if out.numel():
        plan_int8_linear(
            _rows_of(x), x_scale.contiguous(), _rows_of(weight), weight_scale.contiguous(),
            None if bias is None else bias.contiguous(), out, device_of(x),
        ).run()  # fmt: skip
    return out


@provider(quantize_rows, "triton", priority=100, supports=no_triton_on)
def quantize_rows_in_triton(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row read once, its maximum and its rounding in one kernel."""
    return _quantize_rows(x)


def _supports_linear(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Reason | None:
    return no_triton_on(x)


@provider(int8_linear, "triton", priority=100, supports=_supports_linear)
def int8_linear_in_triton(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """One integer product on tensor cores; scales, bias and the cast happen before the result leaves registers."""
    return _int8_linear(x, x_scale, weight, weight_scale, bias, dtype)


def _linear_case(rows: int, columns: int, depth: int, dtype: torch.dtype) -> Case:
    def plan(device: Device) -> list[Launch]:
        def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        x, weight = meta(rows, depth, dtype=torch.int8), meta(columns, depth, dtype=torch.int8)
        bias, out = meta(columns, dtype=dtype), meta(rows, columns, dtype=dtype)
        return [plan_int8_linear(x, meta(rows), weight, meta(columns), bias, out, device)]

    return Case(f"{rows} x {depth} -> {columns}, {str(dtype).removeprefix('torch.')}", plan)


def _round_case(rows: int, columns: int, dtype: torch.dtype) -> Case:
    def plan(device: Device) -> list[Launch]:
        x = torch.empty(rows, columns, dtype=dtype, device="meta")
        values, scale = torch.empty_like(x, dtype=torch.int8), x.new_empty(rows, dtype=torch.float32)
        return [plan_quantize_rows(x, values, scale, device)]

    return Case(f"{rows} x {columns}, {str(dtype).removeprefix('torch.')}", plan)


CASES = [
    _linear_case(16384, 12288, 3072, torch.bfloat16),
    _linear_case(1024, 3072, 768, torch.float16),
    _linear_case(256, 768, 768, torch.float32),
    _linear_case(77, 333, 101, torch.float16),
    _linear_case(8, 4096, 4096, torch.bfloat16),
    _round_case(1024, 768, torch.float16),
    _round_case(4096, 8192, torch.bfloat16),
    _round_case(100, 20000, torch.float32),
]
