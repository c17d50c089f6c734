"""What reuse across steps is made of: settings that plan a region, and a tracker that decides while a model runs.

A cache policy has two halves. Its frozen settings (:class:`CachePolicy`) take part in planning and in Dynamo's cache
key. Its :class:`Tracker`, one per trajectory, model and stream, holds tensors and numbers, runs on the host between
compiled pieces and never appears in a graph. Write both to add a policy of your own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..patterns.graph import NormalGraph
from ..patterns.reasons import Reason
from .base import Policy
from .preconditions import differentiated


@dataclass(frozen=True)
class Moment:
    """Where in a trajectory a call is: ``step`` of ``steps``, and which of the step's calls (``stream``) it is.

    Guidance that calls a model twice per step makes two streams: 0 decides, the others follow.
    """

    step: int
    steps: int
    stream: int = 0

    @property
    def last(self) -> bool:
        """Whether this is the trajectory's last step, which shows in the result and is always computed."""
        return self.step == self.steps - 1

    @property
    def beyond(self) -> bool:
        """Whether the caller went on after the last step; such calls are always computed."""
        return self.step >= self.steps


class Tracker:
    """What a policy remembers of one region in one stream of one trajectory, and what it makes of it.

    Entries and exits are the tensors of the region's :class:`~laconic.passes.plan.CachedRegion` nodes, by position.
    Both may be changed in place by the caller later, and what :meth:`predict` returned too, so whatever is kept is a
    copy: :meth:`keep` makes it, in memory that stays where it is. A decision to reuse may be
    overruled (by another rank, an error budget or ``longest_run``): what a computed call resets belongs in
    :meth:`observe`, which runs after every call that was computed.
    """

    ready = False
    """Whether :meth:`predict` has something to predict from."""

    indicator: float | None = None
    """The number the last decision rested on, for the summary."""

    def decide(self, moment: Moment, entries: Sequence[Tensor]) -> bool:
        """Whether this call may be predicted instead of computed. Called in stream 0, whenever the region is reached.

        A region inside another one is not reached while that one is reused: steps are in ``moment``, not counted.
        """
        return False

    def predict(self, moment: Moment, entries: Sequence[Tensor]) -> tuple[Any, ...]:
        """The exits of a call that is not computed: fresh tensors, one per exit."""
        raise NotImplementedError(f"{type(self).__name__} decides to reuse but does not say what")

    def observe(self, moment: Moment, entries: Sequence[Tensor], exits: Sequence[Tensor]) -> None:
        """Learn from a call that was computed."""

    def tensors(self) -> Sequence[Tensor]:
        """Every tensor held, for the memory account: what :meth:`keep` holds, unless a tracker says more."""
        return list(self.buffers().values())

    def keep(self, name: str, value: Tensor) -> Tensor:
        """A copy of ``value`` in the buffer called ``name``, which is returned; what it held before is overwritten.

        A buffer is allocated once, at its first use, and has the same address as long as the tracker lives: a step
        allocates nothing for state, and what reads it may remember where it is. Another shape, dtype or device makes
        a new one.
        """
        buffers = self.buffers()
        kept = buffers.get(name)
        with torch.no_grad():
            if kept is None or (kept.shape, kept.dtype, kept.device) != (value.shape, value.dtype, value.device):
                # Made in inference mode it could not be written outside of it.
                with torch.inference_mode(False):
                    kept = buffers[name] = torch.empty_like(value, requires_grad=False)
            return kept.copy_(value)

    def buffers(self) -> dict[str, Tensor]:
        """The buffers of :meth:`keep` by name."""
        found: dict[str, Tensor] = self.__dict__.setdefault("_buffers", {})
        return found


@dataclass(frozen=True)
class CachePolicy(Policy):
    """Settings of a policy that reuses results across steps."""

    @property
    def identity(self) -> bool:
        """Whether these settings never reuse anything: the compiled pieces then run without any bookkeeping."""
        return False

    @property
    def longest_run(self) -> int | None:
        """How many calls in a row may be reused before one is computed whatever the tracker decides; None: no limit.

        A guard against a tracker that never refreshes. A policy that is told its steps by the user returns None.
        """
        return 10

    @property
    def dynamic(self) -> bool:
        """Whether decisions follow from values, so that ranks have to agree; False: from the step alone."""
        return True

    def tracker(self, role: str = "") -> Tracker:
        """A new tracker at the beginning of a trajectory, for the region of this policy with this role."""
        raise TypeError(f"{type(self).__name__} has no tracker")


def unfit(graph: NormalGraph) -> Reason | None:
    """Why no call of this graph may be skipped: it is differentiated, or it writes into its inputs."""
    reached = differentiated(graph)
    if any(node in reached for node in graph.output.all_input_nodes):
        text = "a reused step has no gradient; call under torch.no_grad or torch.inference_mode"
        return Reason("requires-grad", text)
    writes = written_inputs(graph)
    if writes:
        return Reason("mutation", "the graph writes into its inputs, which a skipped call would not do", writes)
    return None


def written_inputs(graph: NormalGraph) -> tuple[str, ...]:
    """Names of the in-place operations that write into a graph input or a view of one."""
    views: set[Node] = set(graph.placeholders)
    found = []
    for node in graph.module.graph.nodes:
        if node.op == "get_attr":
            views.add(node)
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None:
            continue
        for argument, value in _bound(schema, node):
            if argument.alias_info is None:
                continue
            touched = {item for item in (value if isinstance(value, list | tuple) else (value,))} & views
            if touched:
                views.add(node)
                if argument.alias_info.is_write:
                    found.append(node.name)
    return tuple(found)


def _bound(schema: torch.FunctionSchema, node: Node) -> list[tuple[Any, Any]]:
    given = []
    for index, argument in enumerate(schema.arguments):
        if index < len(node.args):
            value = node.args[index]
        else:
            value = node.kwargs.get(argument.name)
        if isinstance(value, Node) or (isinstance(value, list | tuple) and any(isinstance(v, Node) for v in value)):
            given.append((argument, value))
    return given
