"""The run time of a cached region: on every call, find the state that belongs to it and let its policy decide.

It runs on the host between compiled pieces. Nothing in it is traced, so no decision can break a graph or recompile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..passes.measure import relative_l2
from ..passes.report import GraphReport, RewriteRecord
from ..passes.reuse import CachePolicy, Moment, Tracker
from ..patterns.reasons import Reason
from . import registry
from .session import Strand, Trajectory, current


class Controller:
    """Decides for one region of one compiled graph whether a call computes or reuses.

    ``statics`` are the graph's parameters and buffers and ``moving`` its other tensor inputs, both by position.
    ``number`` tells the regions of a graph apart. ``record`` is the region's line in the report.
    """

    def __init__(
        self,
        policy: CachePolicy,
        number: int,
        statics: Sequence[int],
        moving: Sequence[int],
        report: GraphReport,
        record: RewriteRecord,
        error_budget: float | None = None,
    ) -> None:
        self.policy = policy
        self.number = number
        self.statics = tuple(statics)
        self.moving = tuple(moving)
        self.report = report
        self.record = record
        self.error_budget = error_budget
        self.origin = registry.current_origin()
        self.name = f"graph {report.id}" if number == 0 else f"graph {report.id} region {number}"
        self._told = False

    def __call__(
        self, args: Sequence[Any], entries: Sequence[Tensor], compute: Callable[[], Sequence[Any]]
    ) -> Sequence[Any]:
        """The region's exits for one call: computed by ``compute()``, or what the policy predicts from ``entries``.

        ``args`` are the graph's inputs.
        """
        if self.policy.identity:
            return compute()
        statics = [args[position] for position in self.statics]
        identity = tuple(map(id, statics))
        trajectory = current(self.origin, identity)
        if trajectory is None:
            self._tell_no_session()
            return compute()
        # One compiled frame may have several graphs, one per shape: they continue each other's count.
        frame = self.origin.code if self.origin.code is not None else self.origin
        key = (frame, self.number, identity)
        strand = trajectory.strand(key, self.policy, self.name, statics)
        with strand.lock:
            return self._step(trajectory, strand, statics, args, entries, compute)

    def _step(
        self,
        trajectory: Trajectory,
        strand: Strand,
        statics: Sequence[Any],
        args: Sequence[Any],
        entries: Sequence[Tensor],
        compute: Callable[[], Sequence[Any]],
    ) -> Sequence[Any]:
        weights = _contents(statics)
        if weights != strand.weights:
            strand.weights = weights
            strand.trackers.clear()
        moment = trajectory.moment(strand)
        signature = tuple((args[position].shape, args[position].dtype) for position in self.moving)
        tracker = strand.tracker(moment.stream, signature)
        try:
            if moment.stream == 0:
                strand.decision = tracker.decide(moment, entries)
            reuse = strand.decision and tracker.ready and not moment.beyond
            if reuse and self.error_budget is not None and self.record.error is None:
                exits = self._judge(tracker, moment, entries, compute)
                reuse = False
            elif reuse and self.record.status == "applied":
                exits = tracker.predict(moment, entries)
            else:
                reuse = False
                exits = compute()
                tracker.observe(moment, entries, exits)
        except BaseException:
            # Half-updated state must not be used; the call did not happen, so it is not counted either.
            strand.trackers.clear()
            raise
        strand.calls += 1
        trajectory.record(strand, moment, reuse, tracker.indicator if moment.stream == 0 else None)
        return exits

    def _judge(
        self, tracker: Tracker, moment: Moment, entries: Sequence[Tensor], compute: Callable[[], Sequence[Any]]
    ) -> Sequence[Any]:
        """The first reuse, with an error budget: computed as well, and held to the budget by the region's increment."""
        predicted = tracker.predict(moment, entries)
        exits = compute()
        self.record.error = max(
            relative_l2(guess - base, value - base) for guess, value, base in _increments(predicted, exits, entries)
        )
        if not self.record.error <= (self.error_budget or 0.0):
            self.record.status = "fell_back"
            text = (
                f"the first reused step's increment is off by {self.record.error:.2e}, budget {self.error_budget:.2e}"
            )
            self.report.refuse(Reason("over-budget", text), pass_name="cache", site=self.record.site)
        tracker.observe(moment, entries, exits)
        return exits

    def _tell_no_session(self) -> None:
        if not self._told:
            self._told = True
            text = (
                "called outside laconic.session, so every call was computed; write with laconic.session(fast, steps=N)"
            )
            self.report.refuse(Reason("no-session", text), pass_name="cache", site=self.record.site)


def _increments(
    predicted: Sequence[Any], exits: Sequence[Any], entries: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor, Tensor | float]]:
    """Pairs to compare: what the region adds to an entry of the same shape, else the exit itself."""
    rows: list[tuple[Tensor, Tensor, Tensor | float]] = []
    for guess, value in zip(predicted, exits, strict=True):
        if value.dtype.is_floating_point:
            base = next((entry for entry in entries if entry.shape == value.shape), 0.0)
            rows.append((guess, value, base))
    return rows


def _contents(statics: Sequence[Any]) -> tuple[tuple[int, int], ...]:
    """Changes whenever a parameter is written in place or given other storage."""
    return tuple((-1 if value.is_inference() else value._version, value.data_ptr()) for value in statics)
