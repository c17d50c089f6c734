"""The fast slice of the zoo: detection finds what eager execution does, no less and no more, and proves every site."""

from __future__ import annotations

import pytest

from .compiled import error_of
from .exceptions import EXCEPTIONS
from .measure import measure
from .report import LARGEST_ERROR
from .rows import ROWS

FAST = sorted(name for name, row in ROWS.items() if row.fast)


@pytest.mark.parametrize("name", FAST)
def test_found_is_what_eager_does(name: str) -> None:
    result = measure(ROWS[name])
    assert {kind: number for kind, number in result.missing.items() if number} == {}, result.refusals
    assert {kind: number for kind, number in result.false.items() if number} == {}, result.false_blocks
    assert not result.unproven and not result.given_up


@pytest.mark.parametrize("name", FAST)
def test_compiling_changes_nothing_but_rounding(name: str) -> None:
    assert error_of(ROWS[name]) <= LARGEST_ERROR


def test_the_zoo_is_large_and_the_slice_has_every_kind() -> None:
    assert len(ROWS) >= 80
    assert {row.library for row in ROWS.values()} == {"transformers", "diffusers", "timm", "written"}
    assert {ROWS[name].kind for name in FAST} >= {row.kind for row in ROWS.values()}
    assert set(EXCEPTIONS) <= set(ROWS) - set(FAST)
