"""Passes that leave keys out or merge them want weights that are a softmax and nothing else."""

from __future__ import annotations

import pytest

from laconic.passes.preconditions import plain_softmax
from laconic.patterns.sites import Attention
from tests.patterns.graphs import attentions, normal
from tests.zoo import attention_scores
from tests.zoo.attention import Family, tokens
from tests.zoo.attention_plain import FAMILIES as PLAIN


@pytest.mark.parametrize("family", attention_scores.FAMILIES, ids=[family.name for family in attention_scores.FAMILIES])
def test_bent_scores_and_mixed_weights_are_none(family: Family) -> None:
    (site,) = attentions(normal(family.spellings[0], *family.inputs())).of(Attention)
    reason = plain_softmax(site)
    assert reason is not None and reason.code == "unsupported-softmax"


def test_a_plain_one_is() -> None:
    assert PLAIN[0].inputs is tokens
    (site,) = attentions(normal(PLAIN[0].spellings[0], *tokens())).of(Attention)
    assert plain_softmax(site) is None
