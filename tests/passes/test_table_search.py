"""A searched table drifts less than even gaps, and its rule is the tracker's."""

from __future__ import annotations

import pytest
import torch

from laconic.passes.cache_static import Static
from laconic.passes.reuse import Moment
from laconic.passes.table_search import _returned, search_table


def outputs(steps: int = 24) -> torch.Tensor:
    """Quick changes at the end, slow ones before."""
    time = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    return torch.cat([time**8 * 5, torch.sin(3 * time), torch.ones_like(time)], 1)


@pytest.mark.parametrize(("order", "repay"), [(0, 0.0), (1, 0.0), (1, 0.5), (2, 1.0)])
def test_the_rule_is_the_trackers(order: int, repay: float) -> None:
    rows = outputs()
    table = [step % 3 == 0 or step in (7, 23) for step in range(24)]
    tracker = Static(table, order=order, repay=repay).tracker()
    for step, expected in enumerate(_returned(table, order, repay) @ rows):
        moment = Moment(step, 24)
        if tracker.decide(moment, [rows[step]]):
            torch.testing.assert_close(tracker.predict(moment, [rows[step]])[0], expected)
        else:
            tracker.observe(moment, [rows[step]], [rows[step]])
            assert torch.equal(rows[step], expected)


def test_a_searched_table_drifts_less() -> None:
    rows = outputs()
    table = search_table(rows, 9)
    assert sum(value for (value,) in table) == 9 and table[0] == table[-1] == (True,)
    even = [(step in {round(index * 23 / 8) for index in range(9)},) for step in range(24)]

    def drift(chosen):  # type: ignore[no-untyped-def]
        return float(((_returned([value for (value,) in chosen], 1, 0.0) @ rows - rows).sum(0)).norm())

    assert drift(table) < 0.5 * drift(even)
    assert search_table(rows, 24) == tuple((True,) for _ in range(24))
    assert Static(search_table(rows, 9), order=1).identity is False


def test_what_cannot_be_searched() -> None:
    with pytest.raises(ValueError, match="between 2 and the 24"):
        search_table(outputs(), 25)
    with pytest.raises(TypeError, match="computed must be an integer"):
        search_table(outputs(), 2.5)  # type: ignore[arg-type]
