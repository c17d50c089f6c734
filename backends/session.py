"""Sessions: who says where a trajectory begins and ends, so that state across calls can never outlive it.

Dynamo shares one compiled graph between all instances of a class, so a graph cannot own state. A session does: per
model (the identity of the parameters that came in), per stream and per thread, from entering the ``with`` block to
leaving it.
"""

from __future__ import annotations

import contextvars
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..passes.report import GraphReport
from ..passes.reuse import Moment, Tracker
from . import registry
from .debug import write_session
from .summary import Call, Summary

Identity = tuple[int, ...]

_active: contextvars.ContextVar[tuple[Trajectory, ...]] = contextvars.ContextVar("laconic_sessions", default=())


class session:
    """``with laconic.session(compiled, ..., steps=50): ...``: the calls inside are one trajectory of each model.

    Caches start empty at the beginning of the block and are dropped at its end, also when it ends by an exception.
    Call number // ``calls_per_step`` is the step; a model called twice per step (guidance) has two streams that do not
    mix. Entering again begins a new trajectory; of nested sessions on one model the inner one holds. A session is
    seen by the thread (or task) that entered it, may be made before the model first runs, and never causes a
    recompile.

    Args:
        compiled: what ``torch.compile(..., backend="laconic")`` returned, or modules compiled in place.
        steps: how many steps the trajectory has. Further calls are computed, with one warning; fewer calls get one at
            the end, because the last step, which is always computed, never came.
        calls_per_step: how often each model is called per step.
        group: the process group whose ranks decide alike, when torch.distributed is initialised. None is the default
            group; False lets this rank decide alone (ranks that run different trajectories).

    Raises:
        TypeError: nothing given, something laconic did not compile, or a count that is no integer.
        ValueError: a count below 1.
    """

    def __init__(self, *compiled: Any, steps: int, calls_per_step: int = 1, group: Any = None) -> None:
        if not compiled:
            raise TypeError("laconic.session needs at least one compiled model: laconic.session(fast, steps=50)")
        for name, value in (("steps", steps), ("calls_per_step", calls_per_step)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, not {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.steps = steps
        self.calls_per_step = calls_per_step
        self.group = group
        self._members = tuple(_Member.of(item) for item in compiled)
        self._last: Summary | None = None

    def __enter__(self) -> session:
        trajectory = Trajectory(self)
        self._last = trajectory.summary
        _active.set((*_active.get(), trajectory))
        return self

    def __exit__(self, *exception: Any) -> None:
        stack = list(_active.get())
        for index in range(len(stack) - 1, -1, -1):
            if stack[index].owner is self:
                trajectory = stack.pop(index)
                _active.set(tuple(stack))
                unfinished = trajectory.unfinished() if not any(exception) else None
                trajectory.drop()
                write_session(trajectory.summary, trajectory.reports.values())
                if unfinished is not None:
                    warnings.warn(unfinished, stacklevel=2)
                break

    def __reduce__(self) -> Any:
        raise TypeError("a session cannot be copied or pickled; make a new one: laconic.session(compiled, steps=...)")

    def summary(self) -> Summary:
        """What was computed and what was reused, step by step, in the latest trajectory; empty before the first."""
        return self._last or Summary(self.steps, self.calls_per_step)


@dataclass(eq=False)
class _Member:
    """One compiled object of a session, by what its graphs can be recognised by. Modules are held weakly."""

    wrapper: Any
    codes: frozenset[Any]
    module: weakref.ref[torch.nn.Module] | None

    @classmethod
    def of(cls, compiled: Any) -> _Member:
        wrapper = registry.wrapper_of(compiled)
        if not registry.is_laconic(wrapper):
            raise TypeError(
                f"laconic.session takes what torch.compile(..., backend='laconic') returned, not {_named(compiled)}"
            )
        original = registry.original_of(compiled)
        module = weakref.ref(original) if isinstance(original, torch.nn.Module) else None
        return cls(wrapper, frozenset(registry.codes_of(compiled)), module)

    def owns(self, origin: registry.Origin, statics: Identity) -> bool:
        """Whether a graph compiled for ``origin`` and called with parameters ``statics`` is a call of this object.

        A module is recognised by its parameters, because instances share compiled code. A function, and a graph
        without parameters, is recognised by the ``torch.compile`` call it comes from.
        """
        same_wrapper = origin.wrapper is self.wrapper or (origin.wrapper == self.wrapper and origin.code in self.codes)
        if self.module is None:
            return same_wrapper
        module = self.module()
        if module is None:
            return False
        own = {id(value) for value in (*module.parameters(), *module.buffers())}
        if statics and own:
            shared = sum(value in own for value in statics)
            return shared == len(statics) or (same_wrapper and shared > 0)
        return same_wrapper


@dataclass(eq=False)
class State:
    """A region's tracker in one stream, the inputs it was made for, and how many calls in a row were reused."""

    signature: Any
    tracker: Tracker
    run: int = 0


@dataclass(eq=False)
class Strand:
    """The calls of one graph of one model in one trajectory: how many there were, and what its regions remember.

    ``trackers`` has a state for each region and stream, ``decisions`` what stream 0 decided for each region this step.
    """

    name: str
    lock: threading.RLock = field(default_factory=threading.RLock)
    calls: int = 0
    decisions: dict[str, bool] = field(default_factory=dict)
    trackers: dict[tuple[str, int], State] = field(default_factory=dict)
    weights: Any = None
    guards: tuple[weakref.ref[Any], ...] = ()

    def state(self, region: str, stream: int, signature: Any, make: Callable[[], Tracker]) -> State:
        """The region's state in a stream; a new one if ``signature`` (shapes, dtypes, graph) is not the last call's."""
        known = self.trackers.get((region, stream))
        if known is None or known.signature != signature:
            known = self.trackers[region, stream] = State(signature, make())
        return known

    def held(self) -> int:
        """Bytes of tensors held."""
        kept = [value for state in list(self.trackers.values()) for value in state.tracker.tensors()]
        return sum({id(value.untyped_storage()): value.untyped_storage().nbytes() for value in kept}.values())


class Trajectory:
    """What one entered session remembers."""

    def __init__(self, owner: session) -> None:
        self.owner = owner
        self.group = owner.group
        self.summary = Summary(owner.steps, owner.calls_per_step)
        self.reports: dict[int, GraphReport] = {}
        self._strands: dict[Any, Strand] = {}
        self._owned: dict[Any, bool] = {}
        self._lock = threading.RLock()
        self._warned = False

    def owns(self, origin: registry.Origin, statics: Identity) -> bool:
        """Whether the calls of this graph with these parameters belong to the session; remembered per pair."""
        key = (origin, statics)
        if key not in self._owned:
            # Weights replaced inside the block make a new identity, which is looked up against the module of now.
            self._owned[key] = any(member.owns(origin, statics) for member in self.owner._members)
        return self._owned[key]

    def strand(self, key: Any, name: str, statics: Sequence[Any]) -> Strand:
        """The strand under ``key``, made at its first call and forgotten when one of its parameters is freed."""
        with self._lock:
            strand = self._strands.get(key)
            if strand is None:
                strand = self._strands[key] = Strand(name)
                mine = weakref.ref(self)

                def forget(_: Any) -> None:
                    here = mine()
                    if here is not None:
                        here._forget(key)

                strand.guards = tuple(weakref.ref(value, forget) for value in statics)
            return strand

    def moment(self, strand: Strand) -> Moment:
        """Where the strand's next call is."""
        step, stream = divmod(strand.calls, self.owner.calls_per_step)
        if step >= self.owner.steps and not self._warned:
            self._warned = True
            warnings.warn(
                f"laconic.session: {strand.name} was called more than {self.owner.steps} steps x "
                f"{self.owner.calls_per_step} calls; further calls are computed",
                stacklevel=2,
            )
        return Moment(step, self.owner.steps, stream)

    def record(self, calls: Sequence[Call], moment: Moment, report: GraphReport) -> None:
        """Note one finished call of a graph, and in its report: what became of each of its regions."""
        self.summary.add(calls, moment.step, self._held())
        report.session = self.summary
        self.reports[report.id] = report

    def unfinished(self) -> str | None:
        """What is odd about the number of calls at the end, if they were fewer than announced."""
        announced = self.owner.steps * self.owner.calls_per_step
        for strand in list(self._strands.values()):
            if strand.calls < announced:
                return (
                    f"laconic.session: {strand.name} was called {strand.calls} times, {self.owner.steps} steps x "
                    f"{self.owner.calls_per_step} calls were announced; its last call was not known to be the last"
                )
        return None

    def drop(self) -> None:
        """Forget all state; the summary stays."""
        with self._lock:
            self._strands.clear()

    def _held(self) -> int:
        return sum(strand.held() for strand in list(self._strands.values()))

    def _forget(self, key: Any) -> None:
        # Called by the garbage collector, at any moment and in any thread: no lock, and identities may come again.
        self._strands.pop(key, None)
        self._owned.clear()


def current(origin: registry.Origin, statics: Identity) -> Trajectory | None:
    """The innermost entered session of this thread that a graph's call belongs to."""
    for trajectory in reversed(_active.get()):
        if trajectory.owns(origin, statics):
            return trajectory
    return None


def _named(value: Any) -> str:
    if isinstance(value, torch.nn.Module | type) or callable(value):
        return f"{getattr(value, '__qualname__', type(value).__name__)} (not compiled by laconic)"
    return repr(value)
