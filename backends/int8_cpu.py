"""int8 linear layers on CPU: oneDNN's integer product, in loops that Inductor fuses with their neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from ..passes.ops.int8 import int8_linear, multiplies_bytes, quantize_rows
from ..patterns.reasons import Reason
from .providers import provider

LARGE_WEIGHT = 2**22
FEW_ROWS = 128
"""oneDNN rearranges its second operand at every call. For a weight beyond the caches that costs more than the product
of a few rows, so there the weight comes first and the result is read transposed: 2.5x faster at 4096 x 4096 for up to
16 rows, even at 128."""


def _on_cpu(x: Tensor) -> Reason | None:
    if x.device.type != "cpu":
        return Reason("unsupported-device", f"written for CPU, not {x.device.type}")
    return None


@provider(quantize_rows, "row-at-a-time", priority=10, supports=_on_cpu)
def quantize_stored_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The operator's own arithmetic on rows that have been stored.

    A row is read twice, for its largest magnitude and to round it. Left alone, Inductor computes a cheap-looking
    producer twice instead (an exact GELU: two error functions for each element). Naming the strides makes it store the
    row, which is still in the first cache when it is read again: 3.7 instead of 6.0 ms for GELU and quantisation of
    1024 x 3072 elements on one core.
    """
    rows = x.contiguous()
    return quantize_rows.body(rows.as_strided(rows.shape, rows.stride()))


def _integer_product(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Reason | None:
    if x.device.type != "cpu":
        return Reason("unsupported-device", f"written for CPU, not {x.device.type}")
    if not multiplies_bytes():
        # Without them, oneDNN adds pairs of products in 16 bits, which saturate (pytorch/pytorch#136746).
        return Reason("unsupported-device", "this CPU has no exact 8-bit dot product instructions")
    if x.shape[-1] == 1:
        return Reason("unsupported-shape", "torch._int_mm is wrong for an inner size of 1")
    return None


@provider(int8_linear, "onednn", priority=10, supports=_integer_product)
def onednn_int8_linear(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """``torch._int_mm`` (oneDNN), then scales and bias in the loop of whatever reads the result."""
    inner = x.shape[-1]
    rows = x.numel() // inner
    # The product trusts the strides of axes of size 1, which Inductor sets to 0: a single row would give garbage
    # without a word (pytorch/pytorch#195066). So the strides are named.
    values = x.contiguous().as_strided((rows, inner), (inner, 1))
    if isinstance(rows, int) and 1 < rows <= FEW_ROWS and weight.numel() >= LARGE_WEIGHT:
        product = torch._int_mm(weight, values.t()).t()
    else:
        product = torch._int_mm(values, weight.t())
    result = product.to(torch.float32) * x_scale.reshape(-1, 1) * weight_scale
    if bias is not None:
        result = result + bias.to(torch.float32)
    return result.to(dtype).reshape(*x.shape[:-1], weight.shape[0])
