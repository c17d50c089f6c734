"""Static tables: which step computes what, fixed beforehand (by an interval, a trained router, a search)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..patterns.reasons import Reason
from .base import PlanContext, UserError, positive
from .cache_levels import check_level, regions_at
from .forecast import ForecastTracker
from .plan import Plan
from .reuse import CachePolicy, Moment, Tracker

Table = tuple[tuple[bool, ...], ...]


def interval_table(steps: int, interval: int, warmup: int = 1) -> tuple[tuple[bool, ...], ...]:
    """One column: the first ``warmup`` steps, then every ``interval``-th, and the last are computed.

    EfficientVLA's action-head cache (Yang et al. 2025, https://arxiv.org/abs/2506.10100) is this table at level
    "layers". ``interval`` 1 computes everything.

    Raises:
        ValueError, TypeError: a number below 1, or no integer.
    """
    for name, value in (("steps", steps), ("interval", interval), ("warmup", warmup)):
        positive(name, value, zero=False)
    return tuple((step < warmup or step == steps - 1 or (step - warmup + 1) % interval == 0,) for step in range(steps))


@dataclass(frozen=True)
class Static(CachePolicy):
    """A table says which steps compute and which reuse; nothing is decided at run time.

    The table of a HarmoniCa router (Huang et al. 2024, https://arxiv.org/abs/2410.01723; :func:`laconic.train_router`
    makes one) is replayed at level "layers".

    Args:
        table: a row for each step, of true (compute) or false: one value for everything, or one for each region of the
            level in graph order. Lists, tuples, tensors and arrays of numbers or bools are taken. The first row must
            be all true. A table without a false value is the identity.
        level: what is kept: the output of the "network", the increment of each stack of "blocks", or each attention's
            and feed-forward's output before its gate ("layers"). None is "network" for one column, else "layers".
        order: what a reused step gets: 0 the last value, 1 or 2 a polynomial through the last computed ones.
        repay: as for ``cache("taylor")``, at level "network" only.
        latent: the name of the argument that is the latent, where several inputs have the output's shape.

    Raises:
        ValueError, TypeError: not such a table, or a setting outside its range. When a model runs, UserError if the
            session has another number of steps than the table.
    """

    table: Any
    level: str | None = None
    order: int = 0
    repay: float = 0.0
    latent: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", as_table(self.table))
        if self.level is None:
            object.__setattr__(self, "level", "network" if len(self.table[0]) == 1 else "layers")
        check_level(self.level)
        positive("order", self.order)
        positive("repay", self.repay, kind=float)
        if self.order > 2:
            raise ValueError(f"order must be 0, 1 or 2, not {self.order}")
        if self.repay > 1 or (self.repay and self.level != "network"):
            raise ValueError(f'repay must be at most 1 and needs level="network", not {self.repay} at {self.level!r}')
        if self.latent is not None and not isinstance(self.latent, str):
            raise TypeError(f"latent must be the name of an argument, not {self.latent!r}")

    @property
    def identity(self) -> bool:
        return all(all(row) for row in self.table)

    @property
    def longest_run(self) -> int | None:
        return None

    @property
    def dynamic(self) -> bool:
        return False

    def tracker(self, role: str = "") -> Tracker:
        # Roles are "stack 3" or "layer 7"; the whole network has none.
        column = int(role.split()[-1]) if role and len(self.table[0]) > 1 else 0
        table = self.table

        def due(moment: Moment) -> bool:
            if moment.steps != len(table):
                raise UserError(f"the table has {len(table)} rows and the session {moment.steps} steps")
            return moment.beyond or bool(table[moment.step][column])

        return ForecastTracker(due, self.order, increments=self.level == "blocks", repay=self.repay)

    def plan(self, context: PlanContext) -> Plan:
        """The regions of the level; refused when the table has columns for another number of them."""
        assert self.level is not None
        plan = regions_at(self.level, context, self, self.latent)
        columns = len(self.table[0])
        if plan.regions and columns not in (1, len(plan.regions)):
            text = f"the table has {columns} columns, and there are {len(plan.regions)} regions at level {self.level!r}"
            return Plan(refusals=[(None, Reason("unsupported-shape", text))])
        return plan


def as_table(value: Any) -> Table:
    """Rows of bools from nested sequences, an array or a tensor. Raises ValueError or TypeError."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple) or not value:
        raise TypeError(f"table must be a sequence with a row for each step, not {value!r}")
    rows = [tuple(row) if isinstance(row, list | tuple) else (row,) for row in value]
    for row in rows:
        if not row or any(not isinstance(item, int | float) or item not in (0, 1) for item in row):
            raise TypeError(f"a row of the table must hold true and false values only, not {row!r}")
    if len({len(row) for row in rows}) != 1:
        raise ValueError("the rows of the table have different lengths")
    if not all(rows[0]):
        raise ValueError("the first row of the table must compute everything: there is nothing to reuse yet")
    return tuple(tuple(bool(item) for item in row) for row in rows)
