"""One feed-forward layer, many ways to write it: equal sites; and look-alikes refused by name."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from laconic.patterns import proof
from laconic.patterns.describe import evaluated, shape_of
from laconic.patterns.detect import detect
from laconic.patterns.sites import Convolution, FeedForward, Sites
from tests.patterns.graphs import parametrised
from tests.zoo import feedforward as zoo
from tests.zoo.feedforward import B, H, K, S, Spelling


def name(item: Any) -> str | None:
    return getattr(item, "__name__", None)


def found_in(function: Spelling, *inputs: Tensor) -> tuple[Any, Sites]:
    graph = parametrised(function, zoo.weights(), *inputs)
    return graph, detect(graph)


def only_site(function: Spelling, *inputs: Tensor) -> FeedForward:
    graph, sites = found_in(function, *inputs)
    found = sites.of(FeedForward)
    assert len(found) == 1, [str(reason) for reason in sites.refusals]
    (site,) = found
    for cheap in (proof.CHEAP, 0):  # at its own sizes, and shrunk as if it were a large one
        with (
            mock.patch.object(proof, "CHEAP", cheap),
            mock.patch.object(proof, "AFFORDABLE", proof.CHEAP if cheap else 0),
        ):
            assert proof.prove(site, graph, verify="always") is None
    return site


def meaning_of(site: FeedForward) -> dict[str, Any]:
    """Everything a pass may depend on, comparable across graphs; rows may be one axis or several."""
    feature = 1 if isinstance(site.down, Convolution) else -1
    return {
        "features": shape_of(site.input)[feature],
        "rows": site.input.meta["val"].numel() // shape_of(site.input)[feature],
        "hidden": site.dimensions["H"],
        "gated": site.gate is not None,
        "halves": (site.up_half, site.gate_half),
        "activation": site.activation,
        "biases": [layer.bias is not None for layer in (site.up, site.down)],
        "channels": site.channels,
        "joined": [part is None for part in site.joined],
        "dropout": site.dropout,
        "flops": evaluated(site.flops, site.dimensions),
    }


def families() -> list[Any]:
    tokens, image = zoo.tokens, zoo.image
    rows = [(zoo.PLAIN, tokens), (zoo.BIASES, tokens), (zoo.GATED, tokens), (zoo.FUSED, tokens)]
    rows += [(zoo.CHANNELS, tokens), ([zoo.conv2d, zoo.conv1d, zoo.conv2d_residual], image)]
    return [pytest.param(one, family[0], make, id=one.__name__) for family, make in rows for one in family]


@pytest.mark.parametrize(("spelling", "first", "make"), families())
def test_spelling_gives_the_same_site(spelling: Spelling, first: Spelling, make: Any) -> None:
    site = only_site(spelling, make())
    assert meaning_of(site) == meaning_of(only_site(first, make()))
    assert site.dimensions["H"] == H and site.dimensions["K"] == K


@pytest.mark.parametrize(
    ("activation", "count", "spelling"), zoo.PARAMETRIC, ids=[spelling.__name__ for *_, spelling in zoo.PARAMETRIC]
)
def test_activations_with_numbers_of_their_own(activation: str, count: int, spelling: Spelling) -> None:
    site = only_site(spelling, zoo.tokens())
    assert site.activation == activation and len(set(site.parameters)) == count
    assert set(site.parameters) <= set(site.inputs)
    graph, _ = found_in(spelling, zoo.tokens())
    (site,) = detect(graph).of(FeedForward)
    changes: list[dict[str, Any]] = [{"activation": "relu", "parameters": ()}]
    changes += [{"parameters": site.parameters[::-1]}] if count > 1 else []
    for change in changes:
        reason = proof.prove(dataclasses.replace(site, **change), graph, verify="always")
        assert reason is not None and reason.code == "not-proven"


@pytest.mark.parametrize(
    ("activation", "constants", "spelling"), zoo.WRITTEN, ids=[spelling.__name__ for *_, spelling in zoo.WRITTEN]
)
def test_activations_with_numbers_written_in_the_graph(
    activation: str, constants: tuple[float, ...], spelling: Spelling
) -> None:
    site = only_site(spelling, zoo.tokens())
    assert (site.activation, site.parameters) == (activation, ())
    assert site.constants == pytest.approx(constants)


@pytest.mark.parametrize("spelled", zoo.ACTIVATIONS)
def test_activations_are_recognised_by_value(spelled: str) -> None:
    activation, function = zoo.ACTIVATIONS[spelled]
    site = only_site(zoo.between(function), zoo.tokens())
    assert (site.activation, site.gate, site.channels) == (activation, None, None)


def test_what_the_families_are() -> None:
    tokens, image = zoo.tokens(), zoo.image()
    assert meaning_of(only_site(zoo.functional, tokens))["activation"] == "gelu"
    assert only_site(zoo.functional_biases, tokens).up.bias is not None
    gated = only_site(zoo.gated, tokens)
    assert gated.gate is not None and gated.gate.weight is not gated.up.weight and gated.activation == "silu"
    fused = only_site(zoo.fused_chunk, tokens)
    assert fused.gate is fused.up and (fused.gate_half, fused.up_half) == (0, 1)
    second = only_site(zoo.fused_gate_second, tokens)
    assert (second.gate_half, second.up_half) == (1, 0)
    assert only_site(zoo.where_mask, tokens).channels == (0, zoo.D)
    assert isinstance(only_site(zoo.conv2d, image).down, Convolution)


@pytest.mark.parametrize("spelling", [zoo.interleaved, zoo.interleaved_unbind], ids=name)
def test_gate_and_up_interleaved(spelling: Spelling) -> None:
    site = only_site(spelling, zoo.tokens())
    assert site.gate is site.up and site.interleaved and (site.gate_half, site.up_half) == (0, 1)


def test_a_number_of_its_own_beside_channels() -> None:
    def star_relu(p: zoo.P, x: Tensor) -> Tensor:
        return F.conv2d(p["one"] * F.relu(F.conv2d(x, p["up_2"])) ** 2 + p["two"], p["down_2"])

    site = only_site(star_relu, zoo.image())
    assert isinstance(site.down, Convolution) and len(site.parameters) == 2


def test_channels_last() -> None:
    site = only_site(zoo.channels_last, zoo.image())
    assert shape_of(site.input)[-1] == K and not isinstance(site.down, Convolution)


def test_modulated_layer_ends_before_the_gate() -> None:
    site = only_site(zoo.modulated, zoo.tokens(), *(torch.randn(B, K) for _ in range(3)))
    assert meaning_of(site) == meaning_of(only_site(zoo.functional, zoo.tokens()))


def test_beside_an_attention() -> None:
    other = torch.randn(B, S, K)
    site = only_site(zoo.parallel, zoo.tokens(), other)
    assert [part is None for part in site.joined] == [True, False]
    assert only_site(zoo.parallel_sum, zoo.tokens(), other).joined == ()


@pytest.mark.parametrize(("spelling", "fields"), zoo.BESIDE, ids=name)
def test_features_of_one_layer_beside_those_of_an_attention(spelling: Spelling, fields: dict[str, Any]) -> None:
    site = only_site(spelling, zoo.tokens())
    assert {"run": site.run, "halves": (site.up_half, site.gate_half)} == fields
    assert site.dimensions["H"] == H and (site.run_bias is not None) == (spelling is zoo.biased_beside)
    graph, _ = found_in(spelling, zoo.tokens())
    (site,) = detect(graph).of(FeedForward)
    assert site.run is not None
    for change in (
        {"run": (site.run[0] - 1 if site.run[0] else 1, site.run[1] - (1 if site.run[0] else -1))},
        {"run": None},
    ):
        reason = proof.prove(dataclasses.replace(site, **change), graph, verify="always")
        assert reason is not None and reason.code == "not-proven"


def test_a_token_put_back_beside_the_others() -> None:
    def put_back(p: zoo.P, x: Tensor) -> Tensor:
        layer = F.linear(F.gelu(F.linear(x[:, :1], p["up"])), p["down"])
        return x + torch.cat([layer * p["scale"], x[:, 1:]], 1)

    def beside_others(p: zoo.P, x: Tensor, other: Tensor) -> Tensor:
        layer = F.linear(F.gelu(F.linear(x[:, :1], p["up"])), p["down"])
        return (x * torch.cat([layer, other[:, 1:]], 1)).sum()

    assert only_site(put_back, zoo.tokens()).dimensions["H"] == H
    _, sites = found_in(beside_others, zoo.tokens(), zoo.tokens())
    assert not sites.of(FeedForward)


def test_layers_added_to_each_other_before_the_stream() -> None:
    def both(p: zoo.P, x: Tensor) -> list[Tensor]:
        one = F.linear(F.gelu(F.linear(x, p["up"])), p["down"])
        return [one, F.linear(F.relu(F.linear(x, p["gate"])), p["down_t"].T)]

    def summed(p: zoo.P, x: Tensor) -> Tensor:
        return (sum(both(p, x)) + x).square()

    def stacked(p: zoo.P, x: Tensor) -> Tensor:
        return (x + torch.stack(both(p, x)).sum(0)).square()

    def over_tokens(p: zoo.P, x: Tensor) -> Tensor:
        return (x + torch.stack(both(p, x)).sum(2)[0, :, None]).square()

    for spelling in (summed, stacked):
        _, sites = found_in(spelling, zoo.tokens())
        assert sorted(site.activation for site in sites.of(FeedForward)) == ["gelu", "relu"]
    _, sites = found_in(over_tokens, zoo.tokens())
    assert not sites.of(FeedForward)


def test_a_stream_that_comes_from_another_graph() -> None:
    def resumed(p: zoo.P, x: Tensor, stream: Tensor) -> Tensor:
        return (stream + F.linear(F.gelu(F.linear(x, p["up"])), p["down"])).square()

    def conditioned(p: zoo.P, x: Tensor, stream: Tensor) -> Tensor:
        return (stream + F.linear(F.gelu(F.linear(x[:, :1], p["up"])), p["down"])).square()

    other = torch.randn(B, S, K)
    assert only_site(resumed, zoo.tokens(), other).dimensions["H"] == H
    _, sites = found_in(conditioned, zoo.tokens(), other)
    assert not sites.of(FeedForward), "one value for all tokens is a condition"


def test_one_row_one_batch_no_batch() -> None:
    for x in (torch.randn(1, 1, K), torch.randn(1, S, K), torch.randn(S, K), torch.randn(K)):
        assert only_site(zoo.gated, x).dimensions["H"] == H


def test_dropout_is_a_field() -> None:
    def dropped(p: zoo.P, x: Tensor) -> Tensor:
        return F.linear(F.dropout(F.gelu(F.linear(x, p["up"])), 0.25, True), p["down"])

    graph, sites = found_in(dropped, zoo.tokens())
    (site,) = sites.of(FeedForward)
    assert site.dropout == 0.25 and proof.prove(site, graph) is None


@pytest.mark.parametrize(("function", "code"), zoo.LOOKALIKES, ids=name)
def test_lookalike_is_refused(function: Spelling, code: str | None) -> None:
    graph, sites = found_in(function, zoo.tokens())
    assert not sites.of(FeedForward)
    names = {node.name for node in graph.module.graph.nodes}
    assert all(set(reason.nodes) <= names and reason.nodes for reason in sites.refusals)
    assert code is None or code in [reason.code for reason in sites.refusals]


def test_a_mask_that_is_an_input_is_not_read() -> None:
    _, sites = found_in(zoo.buffer_mask, zoo.tokens(), torch.arange(H) < zoo.D)
    assert not sites.of(FeedForward)
    _, sites = found_in(zoo.wide_convolution, zoo.image())
    assert not sites.of(FeedForward)
