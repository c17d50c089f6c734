"""Operators that are a whole layer of a model, written out: part of making the normal form.

In evaluation torch's own encoder layer calls one operator for all it does. No compiler looks into it, so nothing in the
layer could be found, shared or fused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def encoder_layer(
    x: Tensor,
    width: int,
    heads: int,
    packed_weight: Tensor,
    packed_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Tensor:
    """``aten::_transformer_encoder_layer_fwd`` on tokens ``x [B, S, width]`` of a floating-point dtype.

    What is not zero in ``mask`` hides keys: ``[S, S]`` for all (``mask_type`` 0), ``[B, S]`` (1) or ``[B, H, S, S]``.
    Source: the native operator of that name in torch 2.13.
    """

    def norm(value: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(value, (width,), weight, bias, eps)

    read = norm(x, norm_weight_1, norm_bias_1) if norm_first else x
    parts = F.linear(read, packed_weight, packed_bias).chunk(3, dim=-1)
    query, key, value = (part.unflatten(-1, (heads, width // heads)).transpose(1, 2) for part in parts)
    if mask is None:
        mixed = F.scaled_dot_product_attention(query, key, value)
    else:
        # A row that sees no key is not a number, as it is in the operator; the fused attention would make it zero.
        hidden = mask.to(torch.bool)
        hidden = hidden[:, None, None] if mask_type == 1 else hidden
        scores = query @ key.mT * (width // heads) ** -0.5
        mixed = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value
    x = x + F.linear(mixed.transpose(1, 2).flatten(2), output_weight, output_bias)
    x = x if norm_first else norm(x, norm_weight_1, norm_bias_1)
    read = norm(x, norm_weight_2, norm_bias_2) if norm_first else x
    inner = F.linear(read, up_weight, up_bias)
    x = x + F.linear(F.gelu(inner) if gelu else F.relu(inner), down_weight, down_bias)
    return x if norm_first else norm(x, norm_weight_2, norm_bias_2)


WRITTEN_OUT: dict[Any, Callable[..., Any]] = {torch._transformer_encoder_layer_fwd: encoder_layer}
"""By the function a Dynamo graph calls."""
