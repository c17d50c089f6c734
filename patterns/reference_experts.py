"""What a mixture of experts means: every expert on every token, weighted by the router."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from .activations import activate, gate_with
from .families import written
from .reference import MEANINGS, Read, meaning
from .sites import MixtureOfExperts, Stack

FEATURES = frozenset("KHUEF")
"""Names of axes that are no rows: features outside, hidden, hidden of a shared expert, experts, the two halves."""


def stacked(layer: Stack, read: Read) -> tuple[Tensor, Tensor | None]:
    """Weights ``[experts, out, in]`` and biases ``[experts, out]``."""
    weights, biases = ([read(node) for node in nodes] for nodes in (layer.weights, layer.biases))
    weight = weights[0] if weights[0].dim() == 3 else torch.stack(weights)
    bias = (biases[0] if biases[0].dim() == 2 else torch.stack(biases)) if biases else None
    return weight.mT if layer.transposed else weight, bias


def apply(layer: tuple[Tensor, Tensor | None], x: Tensor) -> Tensor:
    """``x [tokens, (experts,) in]`` to ``[tokens, experts, out]``."""
    weight, bias = layer
    made = torch.einsum("ni,eoi->neo" if x.dim() == 2 else "nei,eoi->neo", x, weight)
    return made if bias is None else made + bias


def half_of_hidden(made: Tensor, half: int | None, interleaved: bool) -> Tensor:
    """All of the last axis, or one of its halves."""
    if half is None:
        return made
    return made.unflatten(-1, (-1, 2)).select(-1, half) if interleaved else made.chunk(2, -1)[half]


def _small(site: MixtureOfExperts) -> dict[str, int]:
    """Few tokens and narrow features; equal sizes stay equal, and what is not a size of the layer keeps its own."""
    resize = scale_down(site)
    return {name: resize(size) for name, size in site.dimensions.items()}


def scale_down(site: MixtureOfExperts) -> Callable[[int], int]:
    """A function from sizes at the site's own dimensions to small ones that keeps products and equalities.

    The number of experts and what is chosen keep theirs. The identity where no such function exists.
    """
    own, routing = site.dimensions, site.routing
    fixed = {*range(9), site.experts, routing.top_k, routing.groups, site.experts // routing.groups}
    known = {size: size for size in fixed}
    agreed = True

    def take(size: int, value: int, *, given: bool = False) -> int:
        """``value`` for ``size``, or what it has already; where it is ``given`` by others they must agree."""
        nonlocal agreed
        known.setdefault(size, value)
        agreed = agreed and (not given or known[size] == value)
        return known[size]

    total = small = 1
    rows = [size for name, size in own.items() if name not in FEATURES]
    for size, prime in zip(rows, (3, 2, 2, 2, 2), strict=False):
        total, small = total * size, small * take(size, prime)
    take(total, small, given=True)
    take(total * routing.top_k, small * routing.top_k, given=True)
    for name, prime in (("H", 7), ("U", 11), ("K", 5)):
        value = take(own[name], prime) if name in own else 0
        if value and name != "K" and "F" in own:
            take(2 * own[name], 2 * value, given=True)
    if not agreed:
        return lambda size: size
    return lambda size: known.get(size, size)


def _resize(site: MixtureOfExperts, sizes: Mapping[str, int]) -> Callable[[int], int]:
    return scale_down(site)


def _variants(site: MixtureOfExperts, values: dict[Node, Any]) -> list[dict[Node, Any]]:
    """Tokens as they come; all alike, so that they go to the same experts; large ones, which limits would cut.

    Where a number limits a value, the first tokens are so large that hidden values lie on both sides of it.
    And more of them with a weaker bias of the choice, so that every rule of choosing comes to matter. The router's
    outputs stay moderate: where scores vanish, a tiny number added to their sum would count.
    """
    x, router = values[site.input], site.router.weight
    values = {**values, router: values[router] * (2 / math.sqrt(x.shape[-1]))}
    generator = torch.Generator().manual_seed(1)
    alike = x.reshape(-1, x.shape[-1])[:1] + 1e-3 * x
    large = {**values, site.input: 4 * x, router: values[router] / 4}
    made = [values, {**values, site.input: alike.reshape(x.shape)}, large]
    far = max(written(site.interior)["limit"], default=1.0) / math.sqrt(x.shape[-1])
    if far > 1:
        made.insert(0, {**values, site.input: far * x, router: values[router] / far})
    for strength in (0.01, 0.1, 0.5):
        other = {**values, site.input: torch.randn(x.shape, generator=generator, dtype=x.dtype)}
        if site.selection_bias is not None:
            other[site.selection_bias] = strength * values[site.selection_bias]
        made.append(other)
    return made


@meaning(MixtureOfExperts, small=_small, resize=_resize, variants=_variants)
def mixture(site: MixtureOfExperts, read: Read) -> Tensor:
    """Shazeer et al. 2017, equation 1, with gated experts (Shazeer 2020) and a shared one (Dai et al. 2024)."""
    x = read(site.input)
    rows = x.reshape(-1, x.shape[-1])
    compute = MEANINGS[type(site.router)].compute
    known = {node: read(node) for node in site.inputs if node is not site.input}
    outputs = compute(site.router, {**known, site.router.input: rows}.__getitem__)
    bias = read(site.selection_bias) if site.selection_bias is not None else None
    weights = site.routing.weights(outputs, bias)
    given = weights[..., None] * rows[:, None] if site.scaled_inputs else rows
    up = half_of_hidden(apply(stacked(site.up, read), given), site.up_half, site.interleaved)
    if site.gate is None:
        hidden = activate(site.activation, up, (), site.constants)
    else:
        gate = half_of_hidden(apply(stacked(site.gate, read), given), site.gate_half, site.interleaved)
        hidden = gate_with(site.activation, gate, up, (), site.constants)
    summed = (weights != 0).to(x.dtype) if site.scaled_inputs else weights
    made = torch.einsum("ne,nek->nk", summed, apply(stacked(site.down, read), hidden))
    if site.shared is not None:
        beside = MEANINGS[type(site.shared)].compute(site.shared, {**known, site.shared.input: rows}.__getitem__)
        if site.shared_gate is not None:
            gate = compute(site.shared_gate, {**known, site.shared_gate.input: rows}.__getitem__)
            beside = torch.sigmoid(gate) * beside
        made = made + beside
    return made if site.flat else made.reshape(x.shape)
