"""No mutant of a mixture of experts that means something else is taken for it."""

from __future__ import annotations

from typing import Any

import pytest

from laconic.patterns.experts import find_experts
from laconic.patterns.graph import NormalGraph
from laconic.patterns.linear import find_linear
from laconic.patterns.sites import Sites
from tests.patterns.graphs import parametrised
from tests.zoo import experts as zoo
from tests.zoo.mutants import judge

FORMS = [
    zoo.layer(zoo.choose_then_softmax, zoo.gathered_bmm),
    zoo.layer(zoo.softmax_then_choose, zoo.dense_einsum),
    zoo.layer(zoo.sigmoid_scaled, zoo.one_hot_dispatch),
    zoo.layer(zoo.normalised_in_place, zoo.sorted_by_expert),
    zoo.scaled_inputs,
    zoo.clamped,
    zoo.plain_with_biases,
    zoo.stored_transposed,
]


def experts(graph: NormalGraph) -> Sites:
    """What the detector of mixtures alone finds."""
    sites = Sites()
    sites.sites += find_linear(graph, sites)
    return Sites(find_experts(graph, sites), sites.refusals)


@pytest.mark.parametrize("spelling", FORMS, ids=lambda f: f.__name__)
def test_mutants_are_told_apart(spelling: Any) -> None:
    check(spelling)


def test_mutants_of_a_contested_choice_are_told_apart() -> None:
    check(zoo.layer(zoo.contested, zoo.dense_bmm), step=5)  # many operations: a share of its mutants


def check(spelling: Any, step: int = 1) -> None:
    tally = judge(parametrised(spelling, zoo.weights(), zoo.tokens()), experts, step=step)
    assert not tally.wrong, tally.wrong
    assert tally.changed >= 10
