"""Linear layers in 8-bit integers: rows of activations and rows of weights each have one scale, products are exact.

Both scales are symmetric, so ``x W^T`` is approximated by ``(x_scale w_scale) * (x_int8 W_int8^T)``: one integer matrix
product between two cheap elementwise steps. Source: Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for
Transformers at Scale" (2022), section 2, vector-wise quantization.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dialect import operator

LEVELS = 127.0
"""Integers run from -127 to 127; -128 is unused, so the grid is symmetric."""

SMALLEST = 1e-30
"""Rows whose largest magnitude is below this become zeros: its reciprocal, times 127, still fits float32."""


def _rows_shape(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


@operator(version=1, fake=_rows_shape)
def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round every row of ``x [..., K]`` to int8 on a grid of its own.

    Returns ``values`` (int8, the shape of ``x``) and ``scale`` (float32, ``[..., 1]``), both contiguous, with
    ``x ~ values * scale`` and an error of at most half a ``scale``. A row with a NaN or an infinity gets the scale NaN,
    so whatever is computed from it shows; its values are unspecified. ``x`` is of any real floating type; K is at least
    1 (``amax`` raises IndexError on an empty row).
    """
    wide = x.to(torch.float32).contiguous()
    largest = wide.abs().amax(-1, keepdim=True)
    bounded = largest.clamp(min=SMALLEST)
    values = torch.round(wide * (LEVELS / bounded)).to(torch.int8)
    scale = torch.where(largest < float("inf"), bounded / LEVELS, float("nan"))
    return values, scale


def _linear_shape(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


@operator(version=1, fake=_linear_shape)
def int8_linear(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """``dtype((x W^T) * x_scale * weight_scale + bias)`` with the product in exact integers, the rest in float32.

    ``x`` int8 ``[..., K]``, ``x_scale`` float32 ``[..., 1]`` (one per row), ``weight`` int8 ``[N, K]`` of any strides,
    ``weight_scale`` float32 ``[N]``, ``bias [N]`` of any floating type or None; the result ``[..., N]`` is contiguous
    and has the floating type ``dtype``. The integer product is bounded by ``127 * 127 * K``: it fits int32 up to
    K = 133,000.
    """
    # Doubles hold these integers exactly on every device; providers use integer units.
    product = torch.matmul(x.to(torch.float64), weight.to(torch.float64).t()).to(torch.float32)
    result = product * x_scale * weight_scale
    if bias is not None:
        result = result + bias.to(torch.float32)
    return result.to(dtype)


def multiplies_bytes() -> bool:
    """Whether this CPU sums products of bytes in 32 bits at once (VNNI or AMX), exactly and faster than floats."""
    return any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
