"""Attention whose queries and keys are turned or normalised first: all of that is before the site."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.attention import Family, heads, n, tokens


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * n.scale).softmax(-1) @ v


def angles(x: Tensor) -> Tensor:
    """``[N, D / 2]`` for the axis before the last of ``x``."""
    frequencies = 100.0 ** -(torch.arange(0, n.D, 2) / n.D)
    return torch.outer(torch.arange(x.shape[-2]).float(), frequencies)


def by_halves(x: Tensor) -> Tensor:
    angle = torch.cat([angles(x)] * 2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * angle.cos() + torch.cat([-second, first], dim=-1) * angle.sin()


def by_slices(x: Tensor) -> Tensor:
    cos, sin = angles(x).cos(), angles(x).sin()
    first, second = x[..., : n.D // 2], x[..., n.D // 2 :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def by_pairs(x: Tensor) -> Tensor:
    cos, sin = angles(x).cos(), angles(x).sin()
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def by_complex_numbers(x: Tensor) -> Tensor:
    turned = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * torch.polar(torch.ones(()), angles(x))
    return torch.view_as_real(turned).flatten(-2)


def normalised(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def layer_normalised(x: Tensor) -> Tensor:
    return F.layer_norm(x, (n.D,))


def root_mean_square(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def _spelling(name: str, prepare: Callable[[Tensor], Tensor], fused: bool = False) -> Callable[..., Tensor]:
    def spelling(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = heads(q, k, v)
        return F.scaled_dot_product_attention(prepare(q), prepare(k), v) if fused else attend(prepare(q), prepare(k), v)

    spelling.__name__ = name
    return spelling


FAMILIES = [
    Family(
        "rotary",
        (
            _spelling("fused_halves", by_halves, fused=True),
            _spelling("halves", by_halves),
            _spelling("slices", by_slices),
            _spelling("pairs", by_pairs),
            _spelling("complex_numbers", by_complex_numbers),
        ),
        tokens,
    ),
    Family(
        "normalised",
        (
            _spelling("fused_layer_norm", layer_normalised, fused=True),
            _spelling("layer_norm", layer_normalised),
            _spelling("rms_norm", root_mean_square),
            _spelling("unit_length", normalised),
        ),
        tokens,
    ),
]
