"""No mutant of a feed-forward layer that means something else is taken for it."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from laconic.patterns.convolution import find_convolution
from laconic.patterns.feedforward import find_feedforward
from laconic.patterns.graph import NormalGraph
from laconic.patterns.linear import find_linear
from laconic.patterns.sites import FeedForward, Sites
from tests.patterns.graphs import parametrised
from tests.zoo import feedforward as zoo
from tests.zoo.mutants import judge

# Every axis of one size (the run of channels two): exchanged axes still run, and no check of shapes tells them apart.
SQUARE = {"B": 4, "S": 4, "K": 4, "H": 4, "D": 2}

FORMS = [
    *(zoo.functional_biases, zoo.stored_transposed, zoo.einsum, zoo.erf_by_hand, zoo.views_between, zoo.added_biases),
    *(zoo.gated_second, zoo.gated_by_hand, zoo.layer_scale_after, zoo.in_place_on_its_own),
    *(zoo.fused_chunk, zoo.fused_slices, zoo.fused_unbind, zoo.interleaved, zoo.fused_narrow),
    *(zoo.star_relu, zoo.prelu_gated, zoo.one_layer_for_both_cut, zoo.gated_beside, zoo.biased_beside),
    *(zoo.clamped, zoo.capped_after, zoo.leaky_gated, zoo.swish),
    *(zoo.where_mask, zoo.where_written_mask, zoo.cat_of_slices, zoo.slice_written, zoo.blended),
]


def feedforwards(graph: NormalGraph) -> Sites:
    """What the feed-forward detector alone finds."""
    sites = Sites()
    sites.sites += [*find_linear(graph, sites), *find_convolution(graph, sites)]
    return Sites([site for site in find_feedforward(graph, sites) if isinstance(site, FeedForward)], sites.refusals)


@pytest.mark.parametrize("spelling", FORMS, ids=lambda f: f.__name__)
def test_mutants_are_told_apart(spelling: Any) -> None:
    with mock.patch.multiple(zoo, **SQUARE):
        tally = judge(parametrised(spelling, zoo.weights(), zoo.tokens()), feedforwards)
    assert not tally.wrong, tally.wrong
    assert tally.changed >= 3


@pytest.mark.parametrize("activation", ["gelu_tanh_cubed", "quick_gelu", "silu_by_exp", "relu_squared_clamp"])
def test_mutants_of_activations_are_told_apart(activation: str) -> None:
    spelling = zoo.between(zoo.ACTIVATIONS[activation][1])
    with mock.patch.multiple(zoo, **SQUARE):
        tally = judge(parametrised(spelling, zoo.weights(), zoo.tokens()), feedforwards)
    assert not tally.wrong, tally.wrong
    assert tally.changed >= 3
