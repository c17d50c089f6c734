"""One mixture of experts, many ways to route and dispatch: equal sites; and look-alikes refused."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from laconic.patterns import proof
from laconic.patterns.describe import evaluated
from laconic.patterns.detect import detect
from laconic.patterns.graph import NormalGraph
from laconic.patterns.sites import FeedForward, MixtureOfExperts, Sites
from tests.patterns.graphs import parametrised
from tests.zoo import experts as zoo
from tests.zoo.experts import TOP, E, H, K, N
from tests.zoo.feedforward import Spelling


def found_in(function: Spelling, *inputs: Tensor) -> tuple[NormalGraph, Sites]:
    graph = parametrised(function, zoo.weights(), *inputs)
    return graph, detect(graph)


def only_site(function: Spelling, *inputs: Tensor) -> MixtureOfExperts:
    graph, sites = found_in(function, *inputs)
    found = sites.of(MixtureOfExperts)
    assert len(found) == 1, [str(reason) for reason in sites.refusals]
    (site,) = found
    assert proof.prove(site, graph, verify="always") is None
    with mock.patch.object(proof, "CHEAP", 0), mock.patch.object(proof, "AFFORDABLE", 0):
        assert proof.prove(site, graph, verify="always") is None  # shrunk, as if it were a large one
    return site


def meaning_of(site: MixtureOfExperts) -> dict[str, Any]:
    """Everything a pass may depend on, comparable across graphs."""
    return {
        "routing": dataclasses.replace(site.routing, scale=round(site.routing.scale, 9)),
        "sizes": {name: site.dimensions[name] for name in "KHE"},
        "activation": site.activation,
        "gated": site.gate is not None,
        "biases": (bool(site.up.biases), bool(site.down.biases)),
        "selection": site.selection_bias is not None,
        "shared": (site.shared is not None, site.shared_gate is not None),
        "flops": evaluated(site.flops, site.dimensions),
    }


@pytest.mark.parametrize("dispatch", zoo.DISPATCHES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("route", zoo.ROUTERS, ids=lambda f: f.__name__)
def test_spelling_gives_the_same_site(route: Any, dispatch: Any) -> None:
    site = only_site(zoo.layer(route, dispatch), zoo.tokens())
    first = only_site(zoo.layer(zoo.ROUTERS[0], zoo.DISPATCHES[0]), zoo.tokens())
    assert meaning_of(site) == meaning_of(first)
    assert (site.routing.top_k, site.routing.normalised, site.activation) == (TOP, True, "silu")
    assert site.gate is not None and (site.gate_half, site.up_half, site.interleaved) == (0, 1, False)
    assert {name: site.dimensions[name] for name in "KHE"} == {"K": K, "H": H, "E": E}


def test_routings_are_told_apart() -> None:
    plain = only_site(zoo.layer(zoo.unnormalised, zoo.dense_bmm), zoo.tokens())
    assert (plain.routing.scores, plain.routing.normalised) == ("softmax", False)
    scaled = only_site(zoo.layer(zoo.sigmoid_scaled, zoo.gathered_bmm), zoo.tokens())
    assert (scaled.routing.scores, scaled.routing.normalised, scaled.routing.scale) == ("sigmoid", True, 1.5)
    assert scaled.selection_bias is not None and not scaled.routing.by_outputs
    by_outputs = only_site(zoo.layer(zoo.chosen_by_outputs, zoo.gathered_bmm), zoo.tokens())
    assert by_outputs.routing.by_outputs and by_outputs.selection_bias is not None
    assert only_site(zoo.layer(zoo.one_expert, zoo.loop_of_masks), zoo.tokens()).routing.top_k == 1
    fought = only_site(zoo.layer(zoo.contested, zoo.gathered_bmm), zoo.tokens()).routing
    assert (fought.scores, fought.top_k, fought.threshold) == ("contested", TOP, 0.5)


def test_experts_of_other_forms() -> None:
    lists = only_site(zoo.lists_of_experts, zoo.tokens())
    assert len(lists.up.weights) == len(lists.down.weights) == E and lists.gate is not None
    biases = only_site(zoo.plain_with_biases, zoo.tokens())
    assert biases.gate is None and biases.activation == "gelu" and biases.up.biases and biases.down.biases
    three = only_site(zoo.three_stacks, zoo.tokens())
    assert three.gate is not None and three.gate.weights != three.up.weights and three.up_half is None
    turned = only_site(zoo.stored_transposed, zoo.tokens())
    assert turned.up.transposed and turned.down.transposed and (turned.gate_half, turned.up_half) == (1, 0)
    clamped = only_site(zoo.clamped, zoo.tokens())
    assert (clamped.activation, clamped.constants) == ("clamped_swiglu", (12.0, 1.0, 0.0))
    before = only_site(zoo.scaled_inputs, zoo.tokens())
    assert before.scaled_inputs and before.routing.scores == "sigmoid" and not turned.scaled_inputs


def test_shared_experts() -> None:
    assert only_site(zoo.shared, zoo.tokens()).shared_gate is None
    assert only_site(zoo.shared_reading_a_view, zoo.tokens()).shared_gate is None
    site = only_site(zoo.shared_gated, zoo.tokens())
    assert site.shared is not None and site.shared.activation == "relu" and site.shared_gate is not None


@pytest.mark.parametrize(("function", "code"), zoo.LOOKALIKES, ids=lambda item: getattr(item, "__name__", None))
def test_lookalike_is_refused(function: Spelling, code: str | None) -> None:
    _, sites = found_in(function, zoo.tokens())
    assert not sites.of(MixtureOfExperts)
    assert code is None or code in [reason.code for reason in sites.refusals]


def test_a_limit_that_few_tokens_do_not_reach_is_not_believed() -> None:
    small = mock.patch.multiple(proof, CHEAP=0, AFFORDABLE=0)
    with small, mock.patch.object(zoo, "LIMIT", N - 1):
        _, sites = found_in(zoo.layer(zoo.limited_capacity, zoo.gathered_bmm), zoo.tokens())
    assert not sites.of(MixtureOfExperts)
    assert any("limit" in reason.text for reason in sites.refusals)


def test_experts_that_read_something_else_are_refused() -> None:
    _, sites = found_in(zoo.other_tokens, zoo.tokens(), torch.randn(N, K))
    assert not sites.of(MixtureOfExperts)


CHANGES: dict[str, Any] = {
    "top_k": lambda site: {"routing": dataclasses.replace(site.routing, top_k=1)},
    "scores": lambda site: {"routing": dataclasses.replace(site.routing, scores="softmax")},
    "normalised": lambda site: {"routing": dataclasses.replace(site.routing, normalised=False)},
    "contested": lambda site: {"routing": dataclasses.replace(site.routing, scores="contested", threshold=0.5)},
    "scaled inputs": lambda site: {"scaled_inputs": True},
    "scale": lambda site: {"routing": dataclasses.replace(site.routing, scale=1.0)},
    "selection bias": lambda site: {"selection_bias": None},
    "activation": lambda site: {"activation": "gelu"},
    "halves": lambda site: {"up_half": 0, "gate_half": 1},
    "interleaved": lambda site: {"interleaved": True},
    "gate": lambda site: {"gate": None},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_field_is_not_believed(change: Any) -> None:
    graph, sites = found_in(zoo.layer(zoo.sigmoid_scaled, zoo.gathered_bmm), zoo.tokens())
    (site,) = sites.of(MixtureOfExperts)
    reason = proof.prove(dataclasses.replace(site, **change(site)), graph, verify="always")
    assert reason is not None and reason.code == "not-proven"


def test_experts_with_lists_are_feed_forward_layers_too() -> None:
    _, sites = found_in(zoo.lists_of_experts, zoo.tokens())
    assert len(sites.of(FeedForward)) in (0, E)
