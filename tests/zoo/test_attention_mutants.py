"""No mutant of an attention that means something else is taken for it."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from tests.patterns import test_attention_spellings as zoo
from tests.patterns.graphs import attentions, normal
from tests.zoo.mutants import judge

# Every axis of one size: the mutants that exchange axes still run, and no check of shapes can tell them apart.
SQUARE = {"B": 3, "H": 3, "S": 3, "T": 3, "D": 3, "E": 3}


@pytest.mark.parametrize("spelling", zoo.PLAIN, ids=lambda f: f.__name__)
def test_mutants_are_told_apart(spelling: Any) -> None:
    with mock.patch.multiple(zoo, **SQUARE):
        tally = judge(normal(spelling, *zoo.tokens()), attentions)
    assert not tally.wrong, tally.wrong
    assert tally.changed >= 15
