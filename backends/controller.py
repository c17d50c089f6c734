"""The run time of cached regions: on every call, find the state that belongs to it and let the policies decide.

It runs on the host between compiled pieces. Nothing in it is traced, so no decision can break a graph or recompile.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..passes.measure import relative_l2
from ..passes.plan import CachedRegion
from ..passes.report import GraphReport, RewriteRecord
from ..passes.reuse import CachePolicy, Moment, Tracker
from ..patterns.graph import NormalGraph
from ..patterns.reasons import Reason
from . import registry
from .agreement import agreed
from .cut_report import spelled
from .session import Strand, Trajectory, current
from .summary import Call

WHOLE = "whole graph"

_VERSION = operator.attrgetter("_version")


@dataclass(eq=False)
class Turn:
    """One call of one graph inside a session: where in the trajectory it is, and what was decided so far."""

    trajectory: Trajectory
    strand: Strand
    moment: Moment
    signature: Any
    calls: list[Call] = field(default_factory=list)


@dataclass(eq=False)
class Desk:
    """What the regions of one compiled graph share: which inputs say whose call this is, and what to report.

    ``statics`` are the graph's parameters and buffers and ``moving`` its other tensor inputs, both by position.
    """

    statics: tuple[int, ...]
    moving: tuple[int, ...]
    report: GraphReport
    origin: registry.Origin
    controllers: list[Controller] = field(default_factory=list)
    told: bool = False

    @classmethod
    def of(cls, graph: NormalGraph, report: GraphReport) -> Desk:
        """The desk of a graph being compiled."""
        prepared = {node for _, nodes in graph.facts.get("prepared", ()) for node in nodes}
        statics, moving = [], []
        for position, node in enumerate(graph.placeholders):
            if graph.is_static(node):
                statics.append(position)
            elif node not in prepared and isinstance(node.meta.get("val"), Tensor):
                moving.append(position)
        return cls(tuple(statics), tuple(moving), report, registry.current_origin())

    @contextmanager
    def turn(self, args: Sequence[Any]) -> Iterator[Turn | None]:
        """The turn of a call with the graph's inputs ``args``; None when everything is to be computed.

        Turns of one model's graph are taken one at a time. A call that raises is not counted and drops the state.
        """
        if all(controller.policy.identity for controller in self.controllers):
            yield None
            return
        statics = [args[position] for position in self.statics]
        identity = tuple(map(id, statics))
        trajectory = current(self.origin, identity)
        if trajectory is None:
            self._tell_no_session()
            yield None
            return
        # One compiled frame may have several graphs, one per shape: they continue each other's count.
        frame = self.origin.code if self.origin.code is not None else self.origin
        strand = trajectory.strand((frame, identity), f"graph {self.report.id}", statics)
        with strand.lock:
            weights = _contents(statics)
            if weights != strand.weights:
                strand.weights = weights
                strand.trackers.clear()
            # Another graph of the frame computes something else, even from inputs of the same shapes.
            shapes = tuple((args[position].shape, args[position].dtype) for position in self.moving)
            turn = Turn(trajectory, strand, trajectory.moment(strand), (self.report.id, shapes))
            if turn.moment.stream == 0:
                strand.decisions.clear()
            try:
                yield turn
            except BaseException:
                # Half-updated state must not be used; the call did not happen, so it is not counted either.
                strand.trackers.clear()
                raise
            strand.calls += 1
            trajectory.record(turn.calls, turn.moment, self.report)

    def _tell_no_session(self) -> None:
        if not self.told:
            self.told = True
            text = (
                "called outside laconic.session, so every call was computed; write with laconic.session(fast, steps=N)"
            )
            first = self.controllers[0]
            self.report.refuse(Reason("no-session", text), pass_name=first.pass_name, site=first.record.site)


class Controller:
    """Decides for one region of a graph whether a call computes or reuses; ``key`` tells the graph's regions apart."""

    def __init__(
        self, region: CachedRegion, key: str, report: GraphReport, record: RewriteRecord, error_budget: float | None
    ) -> None:
        assert isinstance(region.policy, CachePolicy)
        self.policy = region.policy
        self.pass_name = spelled(region.policy)[0]
        self.role = region.role
        self.key = key
        self.name = f"graph {report.id}" if key == WHOLE else f"graph {report.id} {key}"
        self.report = report
        self.record = record
        self.error_budget = error_budget

    def __call__(self, turn: Turn, entries: Sequence[Tensor], compute: Callable[[], Sequence[Any]]) -> Sequence[Any]:
        """The region's exits for one call: computed by ``compute()``, or what the policy predicts from ``entries``."""
        if self.policy.identity:
            return compute()
        strand, moment = turn.strand, turn.moment
        state = strand.state(self.key, moment.stream, turn.signature, self._tracker)
        tracker = state.tracker
        if moment.stream == 0:
            strand.decisions[self.key] = tracker.decide(moment, entries)
        limit = self.policy.longest_run
        reuse = (
            strand.decisions.get(self.key, False)
            and tracker.ready
            and not moment.beyond
            and (limit is None or state.run < limit)
            and self.record.status == "applied"
        )
        if self.policy.dynamic:
            reuse = agreed(reuse, turn.trajectory.group)
        if reuse and self.error_budget is not None and self.record.error is None:
            exits = self._judge(tracker, moment, entries, compute)
            reuse = False
        elif reuse:
            exits = tracker.predict(moment, entries)
        else:
            exits = compute()
            tracker.observe(moment, entries, exits)
        state.run = state.run + 1 if reuse else 0
        indicator = tracker.indicator if moment.stream == 0 else None
        turn.calls.append(Call(self.name, moment.step, moment.stream, reuse, indicator))
        return exits

    def _tracker(self) -> Tracker:
        return self.policy.tracker(self.role)

    def _judge(
        self, tracker: Tracker, moment: Moment, entries: Sequence[Tensor], compute: Callable[[], Sequence[Any]]
    ) -> Sequence[Any]:
        """The first reuse, with an error budget: computed as well, and held to the budget by the region's increment."""
        predicted = tracker.predict(moment, entries)
        exits = compute()
        error = max(
            relative_l2(guess - base, value - base) for guess, value, base in _increments(predicted, exits, entries)
        )
        self.record.error = error
        if not error <= (self.error_budget or 0.0):
            self.record.status = "fell_back"
            text = f"the first reused step's increment is off by {error:.2e}, budget {self.error_budget:.2e}"
            self.report.refuse(Reason("over-budget", text), pass_name=self.pass_name, site=self.record.site)
        tracker.observe(moment, entries, exits)
        return exits


def control(desk: Desk, region: CachedRegion, record: RewriteRecord, error_budget: float | None) -> Controller:
    """A controller for ``region``, whose line in the report is ``record``."""
    taken = {controller.key for controller in desk.controllers}
    key = name = region.role or (region.site.id if region.site is not None else WHOLE)
    for number in range(2, len(taken) + 2):
        key = key if key not in taken else f"{name} {number}"
    desk.controllers.append(Controller(region, key, desk.report, record, error_budget))
    return desk.controllers[-1]


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


def _contents(statics: Sequence[Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Changes whenever a parameter is written in place or given other storage; asked on every call: loops run in C."""
    try:
        versions = tuple(map(_VERSION, statics))
    except RuntimeError:  # a tensor made in inference mode counts no writes
        versions = tuple(-1 if value.is_inference() else value._version for value in statics)
    return versions, tuple(map(Tensor.data_ptr, statics))
