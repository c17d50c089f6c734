"""One attention, many ways to write it: every spelling of a family gives the same site."""

from __future__ import annotations

import pytest

from tests.zoo import attention_heads, attention_masks, attention_plain, attention_rotary, attention_scores
from tests.zoo.attention import Family, Spelling, meaning_of, only_site

FAMILIES = [
    family
    for zoo in (attention_plain, attention_masks, attention_heads, attention_scores, attention_rotary)
    for family in zoo.FAMILIES
]
ROWS = [(family, spelling) for family in FAMILIES for spelling in family.spellings]


@pytest.mark.parametrize(
    ("family", "spelling"), ROWS, ids=[f"{family.name}-{spelling.__name__}" for family, spelling in ROWS]
)
def test_spelling_gives_the_same_site(family: Family, spelling: Spelling) -> None:
    site = only_site(spelling, *family.inputs())
    assert meaning_of(site) == meaning_of(only_site(family.spellings[0], *family.inputs()))


def test_there_are_many() -> None:
    assert len(ROWS) == len({spelling for _, spelling in ROWS}) >= 60
