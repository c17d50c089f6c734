"""No mutant of a rotary embedding that means something else is taken for it."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from laconic.patterns.graph import NormalGraph
from laconic.patterns.rope import find_rope
from laconic.patterns.sites import Sites
from tests.patterns import test_rope as spelled
from tests.patterns.graphs import normal
from tests.zoo.mutants import judge


def rotations(graph: NormalGraph) -> Sites:
    """What the detector of rotations alone finds."""
    sites = Sites()
    return Sites(find_rope(graph, sites), sites.refusals)


@pytest.mark.parametrize("spelling", [turn for turn, *_ in spelled.SPELLINGS], ids=lambda turn: turn.__name__)
def test_mutants_are_told_apart(spelling: Any) -> None:
    # Rows and features of one size: exchanged axes still run, and no check of shapes tells them apart.
    with mock.patch.multiple(spelled, S=8, H=2):
        graph = normal(spelled.inside(spelling), spelled.tokens(), writes=False)
        tally = judge(graph, rotations, step=4)
    assert not tally.wrong, tally.wrong
    assert tally.changed >= 3
