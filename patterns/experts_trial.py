"""Which fields make a mixture of experts out of a region: each possible reading is tried against what it computes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from . import proof
from .activations import ACTIVATIONS, activate, gate_with
from .describe import shape_of
from .evaluate import concretely
from .families import FAMILIES, GATED, Numbers, with_numbers, written
from .reference import MEANINGS
from .reference_experts import apply, half_of_hidden, stacked
from .routing import Routing
from .sites import Linear, MixtureOfExperts, Stack

Fields = dict[str, Any]

# A router's factor is read off the first sample; everything is then proven on all of them.
_CLOSE = 1e-8


def stacks(nodes: list[Node], layers: list[Linear], experts: int) -> list[tuple[Node, ...]] | None:
    """The weights of each layer of the experts, in order of first use: one node with all experts, or one for each."""
    whole: list[tuple[Node, ...]] = [
        (node,) for node in nodes if len(shape_of(node)) == 3 and shape_of(node)[0] == experts
    ]
    if whole:
        return whole if 2 <= len(whole) <= 3 else None
    each, rest = divmod(len(layers), experts)
    if rest or each not in (2, 3):
        return None
    kinds = [layers[index::each] for index in range(each)]
    if any(len({tuple(shape_of(layer.weight)) for layer in kind}) != 1 for kind in kinds):
        return None
    return [tuple(layer.weight for layer in kind) for kind in kinds]


def readings(
    found: list[tuple[Node, ...]], nodes: list[Node], layers: list[Linear], experts: int, width: int
) -> Iterator[Fields]:
    """Every way to read those weights as up, gate and down, as far as shapes allow."""
    of = {layer.weight: layer for layer in layers}
    flat = [node for node in nodes if len(shape_of(node)) == 2 and shape_of(node)[0] == experts and node not in of]

    def stack(weights: tuple[Node, ...], made: int, read: int) -> Iterator[Stack]:
        *_, first, second = shape_of(weights[0])
        if weights[0] in of:
            biases = tuple(of[node].bias for node in weights if of[node].bias is not None)
            transposed = of[weights[0]].transposed
            if (first, second) == ((read, made) if transposed else (made, read)):
                yield Stack(weights, biases, transposed)  # type: ignore[arg-type]
            return
        fitting: list[tuple[Node, ...]] = [(node,) for node in flat if shape_of(node)[1] == made] or [()]
        for biases in fitting:
            if (first, second) == (made, read):
                yield Stack(weights, biases)
            if (first, second) == (read, made):
                yield Stack(weights, biases, True)

    for order in itertools.permutations(found):
        *ups, down = order
        for made in {*shape_of(ups[0][0])[-2:]}:
            for hidden in {made, made // 2} if len(ups) == 1 else {made}:
                halves: list[tuple[int | None, int | None, bool]] = [(None, None, False)]
                if hidden != made:
                    halves = [(0, 1, False), (1, 0, False), (0, 1, True), (1, 0, True)]
                for up in stack(ups[-1], made, width):
                    gates = stack(ups[0], made, width) if len(ups) == 2 else [None if hidden == made else up]
                    for gate, lower in itertools.product(gates, stack(down, width, hidden)):
                        for gate_half, up_half, interleaved in halves:
                            yield {
                                "up": up,
                                "gate": gate,
                                "down": lower,
                                "gate_half": gate_half,
                                "up_half": up_half,
                                "interleaved": interleaved,
                                "hidden": hidden,
                            }


def routings(
    top_k: int, grouped: tuple[int, int, int] | None, thresholds: Sequence[float] = (), epsilons: Sequence[float] = ()
) -> Iterator[Routing]:
    """Every way to choose ``top_k`` experts; ``grouped`` says how many groups, kept groups and best of each.

    ``thresholds`` are the numbers that scores may be compared with, ``epsilons`` those that may be added to their sum.
    """
    sums = [(True, 0.0), (False, 0.0), *((True, epsilon) for epsilon in epsilons)]
    # Without a bias the order of the outputs is that of the scores: both ways agree, and the plain one comes first.
    for by_outputs, scores, (normalised, epsilon) in itertools.product((False, True), ("softmax", "sigmoid"), sums):
        plain = Routing(top_k, scores, normalised, epsilon=epsilon, by_outputs=by_outputs)
        if grouped is None:
            yield plain
        else:
            groups, kept, best = grouped
            yield dataclasses.replace(plain, groups=groups, top_groups=kept, group_best=best)
    for threshold in thresholds:
        yield Routing(top_k, "contested", threshold=threshold)


def fitted(site: MixtureOfExperts, ways: list[Routing], possible: list[Fields]) -> MixtureOfExperts | None:
    """``site`` with the fields among ``ways`` and ``possible`` that reproduce its region; None when none do."""
    key = f"{proof.structure(site)} {ways}"
    if key not in _FITTED:
        _FITTED[key] = _search(site, ways, possible)
    found = _FITTED[key]
    if found is None:
        return None
    index, (activation, constants), routing, scaled = found
    fields = {name: value for name, value in possible[index].items() if name != "hidden"}
    return dataclasses.replace(
        site, **fields, activation=activation, constants=constants, routing=routing, scaled_inputs=scaled
    )


# A function and the numbers it takes.
Function = tuple[str, tuple[float, ...]]
# Which reading, the activation, the routing, and whether the weights multiply what experts read.
Fit = tuple[int, Function, Routing, bool]

# By structure: equal layers are searched once.
_FITTED: dict[str, Fit | None] = {}


def _search(site: MixtureOfExperts, ways: list[Routing], possible: list[Fields]) -> Fit | None:
    with concretely():
        try:
            values, computed = next(iter(proof.observed(site, proof.sizes_to_try(site)[0])))
        except Exception:
            return None  # some operation cannot be run here: not a region that can be proven
        got = computed[0].reshape(-1, computed[0].shape[-1])
        chosen = list(_weights(site, ways, values))
        numbers = written(site.interior)
        rows = values[site.input].reshape(-1, values[site.input].shape[-1])
        if not chosen:
            return None
        # All ways of choosing at once: there are many, and each alone is little work.
        every = torch.stack([weights for _, weights in chosen])
        for index, fields in enumerate(possible):
            for activation, made in _outputs(fields, rows, values, numbers):
                wants = torch.einsum("wne,nek->wnk", every, made)
                if wants.shape[1:] != got.shape:
                    continue
                scales = (got * wants).sum((1, 2)) / wants.square().sum((1, 2))
                way = _first_close(got, scales[:, None, None] * wants)
                if way is not None:
                    scale = float(scales[way])
                    scale = round(scale, 9) if abs(scale - round(scale, 9)) < 1e-10 else scale
                    return index, activation, dataclasses.replace(chosen[way][0], scale=scale), False
        scaled = (every[..., None] * rows[:, None]).flatten(0, 1)
        for index, fields in enumerate(possible):
            for activation, made in _outputs(fields, scaled, values, numbers):
                wants = torch.einsum("wne,wnek->wnk", (every != 0).to(made.dtype), made.unflatten(0, every.shape[:2]))
                way = _first_close(got, wants) if wants.shape[1:] == got.shape else None
                if way is not None:
                    return index, activation, chosen[way][0], True
    return None


def _weights(
    site: MixtureOfExperts, ways: list[Routing], values: Mapping[Node, Tensor]
) -> Iterator[tuple[Routing, Tensor]]:
    x = values[site.input]
    rows = x.reshape(-1, x.shape[-1])
    router = MEANINGS[Linear].compute(site.router, {**values, site.router.input: rows}.__getitem__)
    bias = values[site.selection_bias] if site.selection_bias is not None else None
    for routing in ways:
        yield routing, routing.weights(router, bias)


def _outputs(
    fields: Fields, rows: Tensor, values: Mapping[Node, Tensor], numbers: Numbers
) -> Iterator[tuple[Function, Tensor]]:
    """What every expert makes of every token ``[tokens, experts, features]``, for each activation.

    ``rows`` are the tokens ``[tokens, features]``, or what each expert reads of them ``[tokens, experts, features]``.
    """
    read = values.__getitem__
    plain: list[Function] = [(name, ()) for name in ACTIVATIONS]
    try:
        up = half_of_hidden(apply(stacked(fields["up"], read), rows), fields["up_half"], fields["interleaved"])
        down = stacked(fields["down"], read)
        if fields["gate"] is None:
            for name, constants in (*plain, *with_numbers(FAMILIES, numbers)):
                yield (name, constants), apply(down, activate(name, up, (), constants))
            return
        gate = apply(stacked(fields["gate"], read), rows)
        gate = half_of_hidden(gate, fields["gate_half"], fields["interleaved"])
        for name, constants in (*plain, *with_numbers(FAMILIES | GATED, numbers)):
            yield (name, constants), apply(down, gate_with(name, gate, up, (), constants))
    except RuntimeError:
        return  # shapes that agree at the site's own sizes by accident only


def _first_close(got: Tensor, wants: Tensor) -> int | None:
    """The first of ``wants [ways, tokens, features]`` that ``got`` equals but for rounding."""
    close = (got - wants).abs().amax((1, 2)) <= _CLOSE * wants.abs().amax((1, 2))
    return int(close.nonzero()[0]) if bool(close.any()) else None
