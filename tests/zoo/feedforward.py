"""The feed-forward zoo: one layer, many ways to write it; and what looks like one and is none.

Every function takes its parameters by name and the input ``x``; the graph is made by
:func:`tests.patterns.graphs.parametrised`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

B, S, K, H = 3, 5, 8, 10

P = dict[str, Tensor]
Spelling = Callable[..., Any]


def make(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def weights() -> P:
    """Every parameter any spelling reads, in one place."""
    return {
        "up": make(H, K, seed=1),
        "up_bias": make(H, seed=2),
        "gate": make(H, K, seed=3),
        "gate_bias": make(H, seed=4),
        "down": make(K, H, seed=5),
        "down_bias": make(K, seed=6),
        "both": make(2 * H, K, seed=7),
        "both_bias": make(2 * H, seed=8),
        "up_t": make(K, H, seed=9),
        "down_t": make(H, K, seed=10),
        "up_1": make(H, K, 1, seed=11),
        "down_1": make(K, H, 1, seed=12),
        "up_2": make(H, K, 1, 1, seed=13),
        "down_2": make(K, H, 1, 1, seed=14),
        "scale": make(K, seed=15),
        "wide": make(K, H + K, seed=16),
        "third": make(H, H, seed=17),
        "odd": make(K + 1, H, seed=18),
        "one": make(1, seed=22),
        "two": make(1, seed=23),
        "three": torch.tensor(0.3),
        "four": torch.tensor([-1e-6]),
        "each": make(H, seed=24),
        "packed": make(3 * K + H, K, seed=25),
        "packed_gated": make(3 * K + 2 * H, K, seed=26),
        "narrow": make(K, K + H, seed=27),
    }


def tokens() -> Tensor:
    return make(B, S, K, seed=20)


def image() -> Tensor:
    return make(B, K, 2, 3, seed=21)


# --- one hidden value: down(gelu(up(x))) ---------------------------------------------------------------------------


def functional(p: P, x: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, p["up"])), p["down"])


def matmul(p: P, x: Tensor) -> Tensor:
    return torch.matmul(F.gelu(torch.matmul(x, p["up"].t())), p["down"].T)


def stored_transposed(p: P, x: Tensor) -> Tensor:
    return F.gelu(x @ p["up_t"]) @ p["down_t"]


def mm(p: P, x: Tensor) -> Tensor:
    rows = x.reshape(-1, K)
    return torch.mm(F.gelu(torch.mm(rows, p["up_t"])), p["down_t"]).view(B, S, K)


def einsum(p: P, x: Tensor) -> Tensor:
    hidden = F.gelu(torch.einsum("bsk,hk->bsh", x, p["up"]))
    return torch.einsum("bsh,kh->bsk", hidden, p["down"])


def einsum_dots(p: P, x: Tensor) -> Tensor:
    return torch.einsum("...h,hk->...k", F.gelu(torch.einsum("...k,kh->...h", x, p["up_t"])), p["down_t"])


def views_between(p: P, x: Tensor) -> Tensor:
    hidden = F.linear(x.view(-1, K), p["up"]).view(B, S, H)
    return F.linear(F.gelu(hidden).reshape(B * S, H), p["down"]).view(B, S, K)


def casts_between(p: P, x: Tensor) -> Tensor:
    hidden = F.gelu(F.linear(x, p["up"]).double()).to(x.dtype)
    return F.linear(hidden.contiguous(), p["down"])


def erf_by_hand(p: P, x: Tensor) -> Tensor:
    h = F.linear(x, p["up"])
    return F.linear(h * 0.5 * (1.0 + torch.erf(h / math.sqrt(2.0))), p["down"])


def erf_by_hand_with_factor(p: P, x: Tensor) -> Tensor:
    h = F.linear(x, p["up"])
    return F.linear((1 + torch.erf(h * 0.7071067811865476)).mul(h).div(2), p["down"])


def erfc_by_hand(p: P, x: Tensor) -> Tensor:
    h = F.linear(x, p["up"])
    return F.linear(h * torch.erfc(-h * math.sqrt(0.5)) / 2, p["down"])


def dropout_off(p: P, x: Tensor) -> Tensor:
    return F.dropout(F.linear(F.dropout(F.gelu(F.linear(x, p["up"])), 0.5, False), p["down"]), 0.5, False)


def residual(p: P, x: Tensor) -> Tensor:
    return x + F.linear(F.gelu(F.linear(F.layer_norm(x, (K,)), p["up"])), p["down"])


def residual_second(p: P, x: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, p["up"])), p["down"]).add(x)


def layer_scale_after(p: P, x: Tensor) -> Tensor:
    return x + p["scale"] * F.linear(F.gelu(F.linear(x, p["up"])), p["down"])


def modulated(p: P, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    y = F.layer_norm(x, (K,)) * (1 + scale[:, None]) + shift[:, None]
    return x + gate.unsqueeze(1) * F.linear(F.gelu(F.linear(y, p["up"])), p["down"])


def in_place_on_its_own(p: P, x: Tensor) -> Tensor:
    hidden = F.linear(x, p["up"])
    hidden.copy_(F.gelu(hidden))
    return F.linear(hidden, p["down"])


PLAIN: list[Spelling] = [
    functional,
    matmul,
    stored_transposed,
    mm,
    einsum,
    einsum_dots,
    views_between,
    casts_between,
    erf_by_hand,
    erf_by_hand_with_factor,
    erfc_by_hand,
    dropout_off,
    residual,
    residual_second,
    layer_scale_after,
    in_place_on_its_own,
]


# --- with biases ---------------------------------------------------------------------------------------------------


def functional_biases(p: P, x: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, p["up"], p["up_bias"])), p["down"], p["down_bias"])


def addmm(p: P, x: Tensor) -> Tensor:
    hidden = F.gelu(torch.addmm(p["up_bias"], x.view(-1, K), p["up_t"]))
    return torch.addmm(p["down_bias"], hidden, p["down_t"]).view(B, S, K)


def added_biases(p: P, x: Tensor) -> Tensor:
    return p["down_bias"] + F.gelu(x @ p["up_t"] + p["up_bias"]) @ p["down_t"]


def einsum_biases(p: P, x: Tensor) -> Tensor:
    hidden = F.gelu(torch.einsum("bsk,hk->bsh", x, p["up"]) + p["up_bias"])
    return torch.einsum("bsh,kh->bsk", hidden, p["down"]) + p["down_bias"]


BIASES: list[Spelling] = [functional_biases, addmm, added_biases, einsum_biases]


# --- other activations ---------------------------------------------------------------------------------------------


def between(function: Callable[[Tensor], Tensor]) -> Spelling:
    return lambda p, x: F.linear(function(F.linear(x, p["up"])), p["down"])


def gelu_tanh_cubed(h: Tensor) -> Tensor:
    return 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * torch.pow(h, 3))))


def gelu_tanh_constant(h: Tensor) -> Tensor:
    return h * 0.5 * (1.0 + torch.tanh(h * 0.7978845608 * (1.0 + 0.044715 * h * h)))


def gelu_tanh_sigmoid(h: Tensor) -> Tensor:
    return h * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))


ACTIVATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "gelu_tanh": ("gelu_tanh", lambda h: F.gelu(h, approximate="tanh")),
    "gelu_tanh_cubed": ("gelu_tanh", gelu_tanh_cubed),
    "gelu_tanh_constant": ("gelu_tanh", gelu_tanh_constant),
    "gelu_tanh_sigmoid": ("gelu_tanh", gelu_tanh_sigmoid),
    "quick_gelu": ("quick_gelu", lambda h: h * torch.sigmoid(1.702 * h)),
    "quick_gelu_turned": ("quick_gelu", lambda h: (h * 1.702).sigmoid() * h),
    "relu": ("relu", F.relu),
    "relu_clamp": ("relu", lambda h: h.clamp(min=0)),
    "relu_maximum": ("relu", lambda h: torch.maximum(h, torch.tensor(0.0))),
    "relu_in_place": ("relu", lambda h: F.relu(h, inplace=True)),
    "relu_where": ("relu", lambda h: torch.where(h > 0, h, 0.0)),
    "relu_times_mask": ("relu", lambda h: h * (h > 0)),
    "relu_squared": ("relu_squared", lambda h: F.relu(h).square()),
    "relu_squared_pow": ("relu_squared", lambda h: torch.pow(F.relu(h), 2)),
    "relu_squared_product": ("relu_squared", lambda h: F.relu(h) * F.relu(h)),
    "relu_squared_clamp": ("relu_squared", lambda h: h.clamp_min(0) ** 2),
    "silu": ("silu", F.silu),
    "silu_by_sigmoid": ("silu", lambda h: h * torch.sigmoid(h)),
    "silu_by_exp": ("silu", lambda h: h / (1 + torch.exp(-h))),
    "silu_by_tanh": ("silu", lambda h: 0.5 * h * (1 + torch.tanh(h / 2))),
    "silu_in_place": ("silu", lambda h: F.silu(h, inplace=True)),
    "mish_by_hand": ("mish", lambda h: h * torch.tanh(F.softplus(h))),
    "hardswish_by_hand": ("hardswish", lambda h: h * F.relu6(h + 3) / 6),
    "leaky_relu": ("leaky_relu", F.leaky_relu),
    "leaky_relu_maximum": ("leaky_relu", lambda h: torch.maximum(h, 0.01 * h)),
    "elu": ("elu", F.elu),
    "tanh": ("tanh", torch.tanh),
    "sigmoid": ("sigmoid", torch.sigmoid),
    "softsign_by_hand": ("softsign", lambda h: h / (1 + h.abs())),
}


# --- activations with stored numbers of their own --------------------------------------------------------------------


def star_relu(p: P, x: Tensor) -> Tensor:
    return F.linear(p["one"] * F.relu(F.linear(x, p["up"])) ** 2 + p["two"], p["down"])


def star_relu_turned(p: P, x: Tensor) -> Tensor:
    hidden = F.linear(x, p["up"]).clamp(min=0)
    return F.linear(torch.addcmul(p["two"], hidden * hidden, p["one"]), p["down"])


def xielu(p: P, x: Tensor) -> Tensor:
    h, slope = F.linear(x, p["up"]), p["three"]
    above, below = F.softplus(p["one"]), slope + F.softplus(p["two"])
    low = (torch.expm1(torch.min(h, p["four"])) - h) * below + slope * h
    return F.linear(torch.where(h > 0, above * h * h + slope * h, low), p["down"])


def prelu(p: P, x: Tensor) -> Tensor:
    return F.linear(F.prelu(F.linear(x, p["up"]), p["one"]), p["down"])


def prelu_by_hand(p: P, x: Tensor) -> Tensor:
    h = F.linear(x, p["up"])
    return F.linear(F.relu(h) - p["one"] * F.relu(-h), p["down"])


def prelu_gated(p: P, x: Tensor) -> Tensor:
    return F.linear(F.prelu(F.linear(x, p["gate"]), p["one"]) * F.linear(x, p["up"]), p["down"])


PARAMETRIC: list[tuple[str, int, Spelling]] = [
    *(("star_relu", 2, spelling) for spelling in (star_relu, star_relu_turned)),
    ("xielu", 4, xielu),
    *(("prelu", 1, spelling) for spelling in (prelu, prelu_by_hand, prelu_gated)),
]


# --- activations with numbers written in the graph -------------------------------------------------------------------


def clamped(p: P, x: Tensor) -> Tensor:
    gate, up = F.linear(x, p["both"]).chunk(2, -1)
    return F.linear(F.silu(gate.clamp(max=4.5)) * up.clamp(min=-4.5, max=4.5), p["down"])


def clamped_and_moved(p: P, x: Tensor) -> Tensor:
    gate = torch.minimum(F.linear(x, p["gate"]), torch.tensor(11.0))
    bent = gate * torch.sigmoid(1.5 * gate)
    return F.linear((F.hardtanh(F.linear(x, p["up"]), -11.0, 11.0) + 1) * bent, p["down"])


def capped_after(p: P, x: Tensor) -> Tensor:
    gate, up = F.silu(F.linear(x, p["gate"])), F.linear(x, p["up"])
    return F.linear(gate.clamp_max(3.0) * up.clamp(-3.0, 3.0), p["down"])


def leaky(p: P, x: Tensor) -> Tensor:
    return F.linear(F.leaky_relu(F.linear(x, p["up"]), 0.2), p["down"])


def leaky_gated(p: P, x: Tensor) -> Tensor:
    gate = F.linear(x, p["gate"])
    return F.linear(torch.maximum(gate, 0.2 * gate) * F.linear(x, p["up"]), p["down"])


def swish(p: P, x: Tensor) -> Tensor:
    h = F.linear(x, p["up"])
    return F.linear(h * torch.sigmoid(1.7 * h), p["down"])


def capped_far_out(p: P, x: Tensor) -> Tensor:
    return F.linear(F.relu(F.linear(x, p["up"])).clamp(max=200.0), p["down"])


def one_side_far_out(p: P, x: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, p["gate"]).clamp(max=200.0)) * F.linear(x, p["up"]), p["down"])


def two_limits(p: P, x: Tensor) -> Tensor:
    gate, up = F.linear(x, p["both"]).chunk(2, -1)
    return F.linear(F.silu(gate.clamp(max=4.5)) * up.clamp(min=-4.5, max=4.0), p["down"])


def threshold_near_zero(p: P, x: Tensor) -> Tensor:
    h = F.linear(x, p["up"])
    return F.linear(torch.where(h > 0.05, h, 0.0), p["down"])


WRITTEN: list[tuple[str, tuple[float, ...], Spelling]] = [
    ("clamped_swiglu", (4.5, 1.0, 0.0), clamped),
    ("clamped_swiglu", (11.0, 1.5, 1.0), clamped_and_moved),
    ("capped_swiglu", (3.0,), capped_after),
    *(("leaky_relu", (0.2,), spelling) for spelling in (leaky, leaky_gated)),
    ("swish", (1.7,), swish),
    ("capped_relu", (200.0,), capped_far_out),
]


def learned_scale(p: P, x: Tensor) -> Tensor:
    return F.linear(p["one"] * F.gelu(F.linear(x, p["up"])), p["down"])


def slope_of_each_channel(p: P, x: Tensor) -> Tensor:
    h = F.linear(x, p["up"])
    return F.linear(torch.where(h > 0, h, p["each"] * h), p["down"])


# --- gated ---------------------------------------------------------------------------------------------------------


def gated(p: P, x: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, p["gate"])) * F.linear(x, p["up"]), p["down"])


def gated_second(p: P, x: Tensor) -> Tensor:
    return F.linear(F.linear(x, p["up"]) * F.silu(F.linear(x, p["gate"])), p["down"])


def gated_by_hand(p: P, x: Tensor) -> Tensor:
    gate, up = F.linear(x, p["gate"]), F.linear(x, p["up"])
    return F.linear(gate * up * torch.sigmoid(gate), p["down"])


def gated_operators(p: P, x: Tensor) -> Tensor:
    up = x @ p["up"].T
    return (up * F.silu(x @ p["gate"].T)) @ p["down"].T


def gated_views(p: P, x: Tensor) -> Tensor:
    rows = x.reshape(-1, K)
    gate, up = F.silu(F.linear(rows, p["gate"])).view(B, S, H), F.linear(x, p["up"])
    return F.linear(gate * up, p["down"])


GATED: list[Spelling] = [gated, gated_second, gated_by_hand, gated_operators, gated_views]


def fused_chunk(p: P, x: Tensor) -> Tensor:
    gate, up = F.linear(x, p["both"]).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, p["down"])


def fused_split(p: P, x: Tensor) -> Tensor:
    gate, up = torch.split(F.linear(x, p["both"]), H, dim=-1)
    return F.linear(up * F.silu(gate), p["down"])


def fused_split_sizes(p: P, x: Tensor) -> Tensor:
    gate, up = F.linear(x, p["both"]).split([H, H], 2)
    return F.linear(F.silu(gate) * up, p["down"])


def fused_tensor_split(p: P, x: Tensor) -> Tensor:
    gate, up = torch.tensor_split(F.linear(x, p["both"]), 2, dim=-1)
    return F.linear(F.silu(gate) * up, p["down"])


def fused_slices(p: P, x: Tensor) -> Tensor:
    hidden = F.linear(x, p["both"])
    return F.linear(F.silu(hidden[..., :H]) * hidden[..., H:], p["down"])


def fused_slices_written_twice(p: P, x: Tensor) -> Tensor:
    hidden = F.linear(x, p["both"])
    return F.linear(hidden[..., :H] * torch.sigmoid(hidden[..., :H]) * hidden[..., -H:], p["down"])


def fused_narrow(p: P, x: Tensor) -> Tensor:
    hidden = F.linear(x, p["both"])
    return F.linear(F.silu(hidden.narrow(-1, 0, H)) * hidden.narrow(-1, H, H), p["down"])


def fused_unbind(p: P, x: Tensor) -> Tensor:
    gate, up = F.linear(x, p["both"]).view(B, S, 2, H).unbind(2)
    return F.linear(F.silu(gate) * up, p["down"])


def fused_select(p: P, x: Tensor) -> Tensor:
    hidden = F.linear(x, p["both"]).reshape(B, S, 2, H)
    return F.linear(F.silu(hidden[:, :, 0]) * hidden[:, :, 1], p["down"])


def fused_unflatten(p: P, x: Tensor) -> Tensor:
    gate, up = F.linear(x, p["both"]).unflatten(-1, (2, H)).unbind(-2)
    return F.linear(F.silu(gate) * up, p["down"])


FUSED: list[Spelling] = [
    fused_chunk,
    fused_split,
    fused_split_sizes,
    fused_tensor_split,
    fused_slices,
    fused_slices_written_twice,
    fused_narrow,
    fused_unbind,
    fused_select,
    fused_unflatten,
]


def fused_gate_second(p: P, x: Tensor) -> Tensor:
    up, gate = F.linear(x, p["both"]).chunk(2, dim=-1)
    return F.linear(up * F.silu(gate), p["down"])


def interleaved(p: P, x: Tensor) -> Tensor:
    hidden = F.linear(x, p["both"])
    return F.linear(F.silu(hidden[..., ::2]) * hidden[..., 1::2], p["down"])


def interleaved_unbind(p: P, x: Tensor) -> Tensor:
    gate, up = F.linear(x, p["both"]).view(B, S, H, 2).unbind(-1)
    return F.linear(F.silu(gate) * up, p["down"])


# --- convolutions --------------------------------------------------------------------------------------------------


def conv2d(p: P, x: Tensor) -> Tensor:
    return F.conv2d(F.gelu(F.conv2d(x, p["up_2"])), p["down_2"])


def conv1d(p: P, x: Tensor) -> Tensor:
    return F.conv1d(F.gelu(F.conv1d(x.flatten(2), p["up_1"])), p["down_1"]).view(B, K, 2, 3)


def conv2d_residual(p: P, x: Tensor) -> Tensor:
    return x + F.conv2d(F.gelu(F.conv2d(x, p["up_2"])), p["down_2"])


def channels_last(p: P, x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1)
    return F.linear(F.gelu(F.linear(y, p["up"])), p["down"]).permute(0, 3, 1, 2)


def channels_last_between(p: P, x: Tensor) -> Tensor:
    hidden = F.gelu(F.conv2d(x, p["up_2"])).permute(0, 2, 3, 1)
    return F.linear(hidden, p["down"]).permute(0, 3, 1, 2)


# --- some of the channels ------------------------------------------------------------------------------------------

D = 6


def where_mask(p: P, x: Tensor) -> Tensor:
    hidden = F.linear(x, p["up"])
    return F.linear(torch.where(torch.arange(H) < D, F.gelu(hidden), hidden), p["down"])


def where_written_mask(p: P, x: Tensor) -> Tensor:
    hidden = F.linear(x, p["up"])
    mask = torch.zeros_like(hidden, dtype=torch.bool)
    mask[:, :, :D] = True
    return F.linear(torch.where(mask, F.gelu(hidden), hidden), p["down"])


def cat_of_slices(p: P, x: Tensor) -> Tensor:
    hidden = F.linear(x, p["up"])
    return F.linear(torch.cat([F.gelu(hidden[..., :D]), hidden[..., D:]], dim=-1), p["down"])


def cat_of_split(p: P, x: Tensor) -> Tensor:
    active, idle = F.linear(x, p["up"]).split([D, H - D], dim=-1)
    return F.linear(torch.cat((F.gelu(active), idle), -1), p["down"])


def scattered(p: P, x: Tensor) -> Tensor:
    hidden = F.linear(x, p["up"])
    return F.linear(torch.slice_scatter(hidden, F.gelu(hidden[:, :, :D]), 2, 0, D), p["down"])


def slice_written(p: P, x: Tensor) -> Tensor:
    hidden = F.linear(x, p["up"])
    hidden[..., :D] = F.gelu(hidden[..., :D])
    return F.linear(hidden, p["down"])


def blended(p: P, x: Tensor) -> Tensor:
    hidden = F.linear(x, p["up"])
    active = (torch.arange(H) < D).float()
    return F.linear(active * F.gelu(hidden) + (1 - active) * hidden, p["down"])


CHANNELS: list[Spelling] = [
    where_mask,
    where_written_mask,
    cat_of_slices,
    cat_of_split,
    scattered,
    slice_written,
    blended,
]


# --- beside an attention -------------------------------------------------------------------------------------------


def parallel(p: P, x: Tensor, other: Tensor) -> Tensor:
    return F.linear(torch.cat([F.gelu(F.linear(x, p["up"])), other], -1), p["wide"])


def parallel_sum(p: P, x: Tensor, other: Tensor) -> Tensor:
    return x + other + F.linear(F.gelu(F.linear(x, p["up"])), p["down"])


def _mixed(value: Tensor) -> Tensor:
    """Something an attention might make of its part of the features."""
    return value.mean(1, keepdim=True).expand_as(value)


def one_layer_for_both(p: P, x: Tensor) -> Tensor:
    qkv, hidden = F.linear(x, p["packed"]).split([3 * K, H], -1)
    mixed = _mixed(qkv[..., :K] * qkv[..., K : 2 * K] + qkv.chunk(3, -1)[2])
    return F.linear(torch.cat([mixed, F.gelu(hidden)], -1), p["narrow"])


def one_layer_for_both_cut(p: P, x: Tensor) -> Tensor:
    packed = F.linear(x, p["packed"])
    hidden = packed[..., 3 * K :]
    mixed = _mixed(packed[..., :K] * packed[..., K : 2 * K] + packed.narrow(-1, 2 * K, K))
    return F.linear(torch.cat([mixed, F.gelu(hidden)], -1), p["narrow"])


def gated_beside(p: P, x: Tensor) -> Tensor:
    qkv, hidden = F.linear(x, p["packed_gated"]).split([3 * K, 2 * H], -1)
    gate, up = hidden.chunk(2, -1)
    return F.linear(torch.cat([_mixed(qkv[..., :K]), F.silu(gate) * up], -1), p["narrow"])


def gated_beside_in_one_cut(p: P, x: Tensor) -> Tensor:
    q, _, _, gate, up = F.linear(x, p["packed_gated"]).split([K, K, K, H, H], -1)
    return F.linear(torch.cat([_mixed(q), F.silu(gate) * up], -1), p["narrow"])


def biased_beside(p: P, x: Tensor) -> Tensor:
    hidden, q, _, _ = F.linear(x, p["packed"]).split([H, K, K, K], -1)
    return _mixed(q) + F.linear(F.gelu(hidden + p["up_bias"]), p["down"])


BESIDE: list[tuple[Spelling, dict[str, Any]]] = [
    (one_layer_for_both, {"run": (3 * K, 3 * K + H), "halves": (None, None)}),
    (one_layer_for_both_cut, {"run": (3 * K, 3 * K + H), "halves": (None, None)}),
    (gated_beside, {"run": (3 * K, 3 * K + 2 * H), "halves": (1, 0)}),
    (gated_beside_in_one_cut, {"run": (3 * K, 3 * K + 2 * H), "halves": (1, 0)}),
    (biased_beside, {"run": (0, H), "halves": (None, None)}),
]
"""One layer computes the hidden features and what an attention beside it reads."""


# --- look-alikes ---------------------------------------------------------------------------------------------------


def hidden_returned(p: P, x: Tensor) -> Any:
    hidden = F.gelu(F.linear(x, p["up"]))
    return F.linear(hidden, p["down"]), hidden


def up_read_elsewhere(p: P, x: Tensor) -> Any:
    up = F.linear(x, p["up"])
    return F.linear(F.gelu(up), p["down"]), up.sum()


def run_read_elsewhere(p: P, x: Tensor) -> Tensor:
    packed = F.linear(x, p["packed"])
    return F.linear(F.gelu(packed[..., 3 * K :]), p["down"]) + packed[..., -K:]


def run_of_two_layers(p: P, x: Tensor) -> Tensor:
    gate, up = F.linear(x, p["packed"])[..., :H], F.linear(x, p["packed_gated"])[..., :H]
    return F.linear(F.silu(gate) * up, p["down"])


def runs_apart(p: P, x: Tensor) -> Tensor:
    packed = F.linear(x, p["packed_gated"])
    return F.linear(F.silu(packed[..., :H]) * packed[..., -H:], p["down"])


def gate_read_elsewhere(p: P, x: Tensor) -> Any:
    gate = F.silu(F.linear(x, p["gate"]))
    return F.linear(gate * F.linear(x, p["up"]), p["down"]), gate.mean()


def norm_between(p: P, x: Tensor) -> Tensor:
    return F.linear(F.layer_norm(F.gelu(F.linear(x, p["up"])), (H,)), p["down"])


def rms_norm_between(p: P, x: Tensor) -> Tensor:
    return F.linear(F.rms_norm(F.relu(F.linear(x, p["up"])), (H,)), p["down"])


def softmax_between(p: P, x: Tensor) -> Tensor:
    return F.linear(torch.softmax(F.linear(x, p["up"]), -1), p["down"])


def sum_over_rows_between(p: P, x: Tensor) -> Tensor:
    hidden = F.gelu(F.linear(x, p["up"]))
    return F.linear(hidden - hidden.mean(1, keepdim=True), p["down"])


def two_activations(p: P, x: Tensor) -> Tensor:
    h = F.linear(x, p["up"])
    return F.linear(torch.cat([F.gelu(h[..., :D]), F.silu(h[..., D:])], -1), p["down"])


def every_other_channel(p: P, x: Tensor) -> Tensor:
    h = F.linear(x, p["up"])
    return F.linear(torch.where(torch.arange(H) % 2 == 0, F.gelu(h), h), p["down"])


def both_bent(p: P, x: Tensor) -> Tensor:
    return F.linear(torch.tanh(F.linear(x, p["gate"])) * F.silu(F.linear(x, p["up"])), p["down"])


def sum_of_both(p: P, x: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, p["gate"])) + F.linear(x, p["up"]), p["down"])


def unknown_function(p: P, x: Tensor) -> Tensor:
    return F.linear(torch.exp(-F.linear(x, p["up"]).square()), p["down"])


def nearly_quick_gelu(p: P, x: Tensor) -> Tensor:
    h = F.linear(x, p["up"])
    return F.linear(h * torch.sigmoid(1.702 * h + 0.01), p["down"])


def scaled_hidden(p: P, x: Tensor) -> Tensor:
    return F.linear(2.0 * F.gelu(F.linear(x, p["up"])), p["down"])


def hidden_overwritten(p: P, x: Tensor) -> Any:
    hidden = F.linear(x, p["up"])
    kept = hidden.view(-1)
    hidden.relu_()
    return F.linear(hidden, p["down"]), kept


def input_overwritten(p: P, x: Tensor) -> Tensor:
    hidden = F.gelu(F.linear(x, p["up"]))
    x.zero_()
    return F.linear(hidden, p["down"])


def gate_overwrites_input(p: P, x: Tensor) -> Tensor:
    gate = F.silu(F.linear(x, p["gate"]))
    x.mul_(2)
    return F.linear(gate * F.linear(x, p["up"]), p["down"])


def different_inputs(p: P, x: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, p["gate"])) * F.linear(x.flip(1), p["up"]), p["down"])


def three_layers(p: P, x: Tensor) -> Tensor:
    return F.linear(F.relu(F.linear(F.relu(F.linear(x, p["up_t"].T)), p["third"])), p["down"])


def rows_taken(p: P, x: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, p["up"]))[:, :1], p["down"])


def rows_exchanged(p: P, x: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, p["up"])).flip(1), p["down"])


def uneven_halves(p: P, x: Tensor) -> Tensor:
    hidden = F.linear(x, p["both"])
    return F.linear(F.silu(hidden[..., 1 : H + 1]) * hidden[..., H:], p["down"])


def buffer_mask(p: P, x: Tensor, mask: Tensor) -> Tensor:
    hidden = F.linear(x, p["up"])
    return F.linear(torch.where(mask, F.gelu(hidden), hidden), p["down"])


def no_activation(p: P, x: Tensor) -> Tensor:
    return F.linear(F.linear(x, p["up"]), p["down"])


def another_width(p: P, x: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, p["up"])), p["odd"])


def wide_convolution(p: P, x: Tensor) -> Tensor:
    hidden = F.gelu(F.conv2d(x, p["up_2"]))
    return F.conv2d(hidden, p["down_2"], padding=1)[:, :, 1:-1, 1:-1]


LOOKALIKES: list[tuple[Spelling, str | None]] = [
    (hidden_returned, "weights-escape"),
    (up_read_elsewhere, "weights-escape"),
    (gate_read_elsewhere, "weights-escape"),
    (run_read_elsewhere, "weights-escape"),
    (run_of_two_layers, "unsupported-op"),
    (runs_apart, "unsupported-op"),
    (norm_between, "unsupported-op"),
    (rms_norm_between, "unsupported-op"),
    (softmax_between, "unsupported-op"),
    (sum_over_rows_between, "unsupported-op"),
    (two_activations, "unsupported-op"),
    (every_other_channel, "unsupported-op"),
    (both_bent, "unsupported-op"),
    (sum_of_both, "unsupported-op"),
    (unknown_function, "unsupported-op"),
    (nearly_quick_gelu, "unsupported-op"),
    (one_side_far_out, "unsupported-op"),
    (two_limits, "unsupported-op"),
    (threshold_near_zero, "unsupported-op"),
    (scaled_hidden, "unsupported-op"),
    (learned_scale, "unsupported-op"),
    (slope_of_each_channel, None),
    (hidden_overwritten, "mutation"),
    (input_overwritten, "mutation"),
    (gate_overwrites_input, "unsupported-op"),
    (different_inputs, "unsupported-op"),
    (three_layers, None),
    (rows_taken, "unsupported-shape"),
    (rows_exchanged, "unsupported-op"),
    (uneven_halves, "unsupported-op"),
    (no_activation, None),
    (another_width, None),
]
"""With the code each is refused under; None: too ordinary to be a near miss."""
