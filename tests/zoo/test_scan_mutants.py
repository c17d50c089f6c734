"""No mutant of a recurrence that means something else is taken for it."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from laconic.patterns.graph import NormalGraph
from laconic.patterns.scan import find_scan
from laconic.patterns.sites import Sites
from tests.patterns import test_scan_spellings as zoo
from tests.patterns.graphs import normal
from tests.zoo.mutants import judge


def scans(graph: NormalGraph) -> Sites:
    """What the scan detector alone finds."""
    return Sites(*find_scan(graph, Sites()))


@pytest.mark.parametrize(
    "spelling",
    [zoo.convex, zoo.doubling, zoo.sums_of_logarithms, zoo.sums_of_exponentials],
    ids=lambda f: f.__name__,
)
def test_mutants_are_told_apart(spelling: Any) -> None:
    with mock.patch.multiple(zoo, B=4, L=4, D=4):
        tally = judge(normal(spelling, *zoo.vectors()), scans)
    assert not tally.wrong, tally.wrong
    assert tally.changed >= 10
