"""What each kind of site means, in plain PyTorch, reading only the site's fields. Proofs and tests compare with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from .activations import ACTIVATIONS, activate, gate_with
from .describe import size_hint
from .evaluate import before, run, without_dropout
from .operands import permuted
from .sites import (
    Attention,
    Bias,
    Convolution,
    FeedForward,
    GatheredAttention,
    Linear,
    LinearAttention,
    MappedAttention,
    Norm,
    Operand,
    Site,
    Skip,
)

Read = Callable[[Node], Tensor]
Reference = Callable[[Any, Read], Any]
Kind = TypeVar("Kind", bound=Site)


@dataclass(frozen=True, eq=False)
class Meaning:
    """The reference of one kind of site, and sizes (by dimension name) small enough to compare it on.

    ``resize(site, sizes)`` gives a function from a size written in an argument to the one it becomes at small sizes,
    for kinds whose interior has no named axes. ``variants(site, values)`` gives further inputs to compare on.
    """

    compute: Reference
    small: Callable[[Any], dict[str, int]]
    resize: Callable[[Any, Mapping[str, int]], Callable[[int], int]] | None = None
    variants: Callable[[Any, dict[Node, Any]], list[dict[Node, Any]]] = lambda site, values: [values]


MEANINGS: dict[type[Site], Meaning] = {}


def meaning(
    kind: type[Kind],
    *,
    small: Callable[[Kind], dict[str, int]] | None = None,
    resize: Callable[[Kind, Mapping[str, int]], Callable[[int], int]] | None = None,
    variants: Callable[[Kind, dict[Node, Any]], list[dict[Node, Any]]] | None = None,
) -> Callable[[Reference], Reference]:
    """Register ``compute(site, read)`` as the meaning of ``kind``; ``read(node)`` is the value of one of its inputs.

    It returns the output, or one tensor per output. ``small(site)`` gives sizes for the names in ``site.axes`` at
    which a proof of a large site may run; without it sites are proven at their own sizes.
    """

    def register(compute: Reference) -> Reference:
        MEANINGS[kind] = Meaning(
            compute, small or (lambda site: {}), resize, variants or (lambda site, values: [values])
        )
        return compute

    return register


def reference(site: Site, values: Mapping[Node, Tensor]) -> tuple[Tensor, ...]:
    """The outputs of ``site`` computed from its fields, given the values of its inputs.

    Raises:
        KeyError: the kind has no registered meaning, or an input has no value.
    """
    result = MEANINGS[type(site)].compute(site, values.__getitem__)
    return (result,) if isinstance(result, Tensor) else tuple(result)


def read_operand(operand: Operand, read: Read) -> Tensor:
    """The tensor of ``operand`` in its canonical axis order."""
    value = read(operand.node)
    return permuted(value, operand.permutation)


def _small_attention(site: Attention) -> dict[str, int]:
    # Distinct primes, so that axes taken for one another do not agree by accident. The head width is part of the
    # scale, and the heads that share a key are counted by the site: both keep their size.
    query, key = ({name for axis in site.axes[item.node] for name in axis} for item in (site.query, site.key))
    fixed = {"D", *(query - key - {"S"})}
    small = {"S": 5, "T": 7, "E": 3}
    chosen = {name: size if name in fixed else min(size, small.get(name, 2)) for name, size in site.dimensions.items()}
    for name in ("S", "T"):
        if f"{name}0" in chosen:
            # An axis whose parts have their own biases is as long as they make it: the parts are of different sizes.
            pieces = [piece for piece in chosen if piece[0] == name and piece != name]
            chosen |= {piece: min(site.dimensions[piece], index + 2) for index, piece in enumerate(pieces)}
            chosen[name] = math.prod(chosen[piece] for piece in pieces)
    return chosen


@meaning(Attention, small=_small_attention)
def attention(site: Attention, read: Read) -> Tensor:
    """``softmax(scale * q k^T + biases) v`` (Vaswani et al. 2017, equation 1), with key heads shared by ``groups``.

    Soft cap: Gemma Team, Gemma 2 (2024), section 2. Sinks: OpenAI, gpt-oss-120b and gpt-oss-20b (2025), section 2.3.
    Mixed weights: d'Ascoli et al., ConViT (2021), gated positional self-attention.
    """
    query, key, value = (read_operand(item, read) for item in (site.query, site.key, site.value))
    if site.groups > 1:
        key, value = (item.repeat_interleave(site.groups, dim=-3) for item in (key, value))
    scores = query @ key.transpose(-2, -1) * site.scale
    if site.factor is not None:
        scores = scores * read(site.factor)
    if site.soft_cap is not None:
        scores = torch.tanh(scores / site.soft_cap) * site.soft_cap
    for bias in site.biases:
        scores = biased(scores, bias, read)
    if site.sinks is None:
        weights = torch.softmax(scores, dim=-1)
    else:
        sinks = read(site.sinks).expand(*scores.shape[:-1], 1)
        weights = torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]
    if site.hidden_rows == "zero":
        blind = (scores == float("-inf")).all(dim=-1, keepdim=True)
        weights = weights.masked_fill(blind, 0.0)
    if site.added is not None:
        weights = weights * (1 if site.share is None else read(site.share)) + read(site.added)
        weights = weights / weights.sum(-1, keepdim=True)
    output = weights @ value
    return output if site.output_permutation is None else output.permute(site.output_permutation)


def _small_linear_attention(site: LinearAttention) -> dict[str, int]:
    query, key = ({name for axis in site.axes[item.node] for name in axis} for item in (site.query, site.key))
    small = {"S": 5, "T": 7, "D": 2, "E": 3, "E1": 4}
    shared = query - key - {"S"}  # heads that share a key are counted by the site
    return {name: size if name in shared else min(size, small.get(name, 2)) for name, size in site.dimensions.items()}


@meaning(LinearAttention, small=_small_linear_attention)
def linear_attention(site: LinearAttention, read: Read) -> Tensor:
    """Katharopoulos et al. 2020, equation 5; without the normaliser Shen et al. 2021, equation 2."""
    query, key, value = (read_operand(item, read) for item in (site.query, site.key, site.value))
    if site.groups > 1:
        key, value = (item.repeat_interleave(site.groups, dim=-3) for item in (key, value))
    output = site.scale * query @ (key.transpose(-2, -1) @ value)
    if site.normalised:
        output = output / (query @ key.sum(-2).unsqueeze(-1) + site.epsilon)
    return output if site.output_permutation is None else output.permute(site.output_permutation)


def biased(scores: Tensor, bias: Bias, read: Read) -> Tensor:
    """``scores [*batch, S, T]`` with one bias applied."""
    if bias.kind == "floor":
        return scores.clamp(min=bias.fill)
    if bias.kind == "causal":
        rows, columns = scores.shape[-2:]
        visible = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril()
        return scores.masked_fill(~visible, bias.fill)
    assert bias.value is not None
    value, shape = read(bias.value), scores.shape
    if bias.cut is not None:
        value = value[(None,) * (sum(bias.cut) - value.dim())]
        scores = scores.reshape(_finer(shape, bias.cut, value.shape))
    if bias.kind == "boolean":
        scores = scores.masked_fill(~value, bias.fill)
    elif bias.kind == "hidden":
        scores = scores.masked_fill(value, bias.fill)
    else:
        scores = scores + value * bias.factor
    return scores.reshape(shape) if bias.cut is not None else scores


def _finer(batch: Sequence[int], cut: Sequence[int], given: Sequence[int]) -> list[int]:
    """Sizes cut into as many parts as ``cut`` says: those of ``given``, and what is left where it says 1."""
    sizes: list[int] = []
    for size, count in zip(batch, cut, strict=True):
        parts = list(given[len(sizes) : len(sizes) + count])
        rest = size // max(1, math.prod(parts))
        if 1 in parts:
            parts[parts.index(1)] = rest
        sizes += parts
    return sizes


@meaning(GatheredAttention)
def gathered_attention(site: GatheredAttention, read: Read) -> Tensor:
    """Vaswani et al. 2017, equation 1, over the keys of each query; windows: Beltagy et al. 2020, section 3.1."""
    query, key, value = (read_operand(item, read) for item in (site.query, site.key, site.value))
    scores = query @ key.transpose(-2, -1) * site.scale
    keys = site.keys.clamp(min=0).expand(*scores.shape[:-1], -1)
    slots = scores.gather(-1, keys).masked_fill(site.keys < 0, float("-inf")).permute(site.slots)
    for bias in site.biases:
        slots = slots + read(bias)
    weights = torch.softmax(slots, site.slots.index(len(site.slots) - 1))
    for hidden in site.hidden:
        weights = weights.masked_fill(read(hidden), 0.0)
    back = sorted(range(len(site.slots)), key=site.slots.__getitem__)
    output = torch.zeros_like(scores).scatter_add(-1, keys, weights.permute(back)) @ value
    return output if site.output_permutation is None else output.permute(site.output_permutation)


@meaning(MappedAttention)
def mapped_attention(site: MappedAttention, read: Read) -> tuple[Tensor, ...]:
    """Vaswani et al. 2017, equation 1, with another function in place of the softmax (Shazeer et al. 2020, talking
    heads). Each query's weights are computed again with other scores for some of the other queries: none may matter.
    """
    query, key, value = (read_operand(item, read) for item in (site.query, site.key, site.value))
    scores = query @ key.transpose(-2, -1) * site.scale
    nodes = before([site.weights.node, *site.outputs[1:]], (site.scores.node, *site.inputs))
    given: dict[Node, Any] = {node: read(node) for node in site.inputs}
    given |= {node: size_hint(node.meta["val"]) for node in nodes if isinstance(node.meta.get("val"), torch.SymInt)}
    order = site.scores.permutation or tuple(range(scores.dim()))
    back = [order.index(axis) for axis in range(len(order))]

    def computed(scores: Tensor) -> dict[Node, Tensor]:
        return run(nodes, {**given, site.scores.node: scores.permute(back)}, without_dropout, double=True)

    def weights(scores: Tensor) -> Tensor:
        return permuted(computed(scores)[site.weights.node], site.weights.permutation)

    made, other = weights(scores), scores.roll(1, -2) + 1
    if not made.isfinite().any():
        raise ValueError("no weight is a number")
    places = torch.arange(scores.shape[-2]).unsqueeze(-1)
    for chosen in (places % 2 == 0, places < scores.shape[-2] // 2):
        own = weights(scores.where(chosen, other)).where(chosen, weights(other.where(chosen, scores)))
        made = made.where(made.isclose(own, rtol=1e-9, atol=1e-12, equal_nan=True), float("inf"))
    output, known = made @ value, computed(scores)
    output = output if site.output_permutation is None else output.permute(site.output_permutation)
    return (output, *(known[node] for node in site.outputs[1:]))


@meaning(Linear, small=lambda site: _smaller(site, K=7, N=5))
def linear(site: Linear, read: Read) -> Tensor:
    """``x W^T + b``; ``x W + b`` when the weight is stored transposed."""
    weight = read(site.weight).T if site.transposed else read(site.weight)
    return functional.linear(read(site.input), weight, read(site.bias) if site.bias is not None else None)


@meaning(Convolution)
def convolution(site: Convolution, read: Read) -> Tensor:
    """A convolution (cross-correlation), or its transpose, over every axis after the channels."""
    input, weight = read(site.input), read(site.weight)
    bias = read(site.bias) if site.bias is not None else None
    rank = input.dim() - 2
    if site.transposed:
        widen: Any = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
        return widen(input, weight, bias, site.stride, site.padding, site.output_padding, site.groups, site.dilation)
    slide: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    return slide(input, weight, bias, site.stride, site.padding, site.dilation, site.groups)


def _small_feedforward(site: FeedForward) -> dict[str, int]:
    # A run of channels or features is written in numbers, so they keep their size.
    own = {name: size for name, size in site.dimensions.items() if name in "HF"}
    sizes = _smaller(site, K=5, C=3, **(own if site.channels or site.run else {"H": 7}))
    if "J" in sizes:
        sizes["J"] = sum(size for name, size in sizes.items() if name[0] in "HC")
    return sizes


@meaning(FeedForward, small=_small_feedforward)
def feedforward(site: FeedForward, read: Read) -> Tensor:
    """``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` without a gate; parts joined before ``down``.

    With ``channels`` only those pass through the activation; with ``run`` only those features of the first layer count.
    """
    feature = 1 if isinstance(site.down, Convolution) else -1

    def project(layer: Linear | Convolution, x: Tensor, half: int | None) -> Tensor:
        made = MEANINGS[type(layer)].compute(layer, {**known, layer.input: x}.__getitem__)
        if site.run is not None and layer is not site.down:
            made = made.narrow(feature, site.run[0], site.run[1] - site.run[0])
            made = made if site.run_bias is None else made + read(site.run_bias)
        if half is None:
            return made
        return made.unflatten(feature, (-1, 2)).select(-1, half) if site.interleaved else made.chunk(2, feature)[half]

    layers = [layer for layer in (site.up, site.gate, site.down) if layer is not None]
    stored = [node for layer in layers for node in (layer.weight, layer.bias) if node is not None]
    known = {node: read(node) for node in stored}
    x = read(site.input)
    hidden = project(site.up, x, site.up_half)
    own = [read(node) for node in site.parameters]
    if site.channels is not None:
        start, stop = site.channels
        bent = ACTIVATIONS[site.activation](hidden.narrow(feature, start, stop - start))
        hidden = torch.slice_scatter(hidden, bent, feature, start, stop)
    elif site.gate is None:
        hidden = activate(site.activation, hidden, own, site.constants)
    else:
        gate = project(site.gate, x, site.gate_half)
        hidden = gate_with(site.activation, gate, hidden, own, site.constants)
    if site.joined:
        hidden = torch.cat([hidden if part is None else read(part) for part in site.joined], feature)
    return project(site.down, hidden, None)


def default_epsilon(dtype: torch.dtype) -> float:
    """What ``aten.rms_norm`` adds when no epsilon is given: that of the type it computes in, float32 for halves."""
    return torch.finfo(torch.float64 if dtype is torch.float64 else torch.float32).eps


@meaning(Norm, small=lambda site: _fewer_rows(site))
def norm(site: Norm, read: Read) -> Tensor:
    """Ba et al. 2016 (layer), Zhang and Sennrich 2019 (rms), Wu and He 2018 (group), Ioffe and Szegedy 2015 (batch)."""
    x = read(site.input)
    weight, bias, mean, variance = (
        read(node) if node is not None else None for node in (site.weight, site.bias, site.mean, site.variance)
    )
    if site.norm == "group":
        return functional.group_norm(x, site.groups, weight, bias, site.epsilon)
    if site.norm == "batch":
        return functional.batch_norm(x, mean, variance, weight, bias, mean is None, 0.0, site.epsilon)
    if site.norm == "layer":
        x = x - x.mean(site.dims, keepdim=True)
    x = x * torch.rsqrt(x.square().mean(site.dims, keepdim=True) + site.epsilon)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


@meaning(Skip)
def skip(site: Skip, read: Read) -> Tensor:
    """The kept value beside what it became (Ronneberger et al. 2015), or added to it."""
    operands = [read(node) for node in site.consumer.all_input_nodes]
    return operands[0] + operands[1] if site.axis is None else torch.cat(operands, site.axis)


def _smaller(site: Site, **features: int) -> dict[str, int]:
    """Distinct primes for the features and few rows; never above the site's own sizes."""
    rows = iter((2, 3, 2, 3, 2, 3))
    return {name: min(size, features.get(name) or next(rows)) for name, size in site.dimensions.items()}


def _fewer_rows(site: Site) -> dict[str, int]:
    """Few rows; what is normalised over (D) and channels (C) are arguments of operators and stay."""
    rows = iter((2, 3, 2, 3, 2, 3))
    return {name: size if name[0] in "DC" else min(size, next(rows)) for name, size in site.dimensions.items()}
