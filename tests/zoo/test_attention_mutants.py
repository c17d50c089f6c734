"""No mutant of an attention that means something else is taken for it."""

from __future__ import annotations

import pytest

from tests.patterns.graphs import attentions, normal
from tests.zoo.attention import Family, Spelling, square
from tests.zoo.mutants import Tally, judge
from tests.zoo.test_attention_spellings import FAMILIES, ROWS

_seen: dict[str, Tally] = {}


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[f"{f.name}-{s.__name__}" for f, s in ROWS])
def test_mutants_are_told_apart(number: int) -> None:
    """A share of the mutants of each spelling; every axis has one size, so that exchanged axes still run."""
    family, spelling = ROWS[number]
    tally = mutated(family, spelling, start=number)
    _seen[spelling.__name__] = tally
    assert not tally.wrong, tally.wrong
    assert tally.mutants


def mutated(family: Family, spelling: Spelling, *, start: int, step: int = 6) -> Tally:
    with square(4 if family.name in ("rotary", "windows") else 3):
        return judge(normal(spelling, *family.inputs()), attentions, start=start, step=step)


def test_enough_was_looked_at() -> None:
    if len(_seen) < len(ROWS):
        pytest.skip("only a part of the zoo was run in this process")
    total = sum(_seen.values(), Tally())
    assert total.mutants >= 500 and total.changed >= 400 and total.accepted >= 150, total
    assert len(FAMILIES) >= 15
