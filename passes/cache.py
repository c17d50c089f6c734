"""Reuse across steps: the same network run many times on inputs that hardly move need not be run every time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..patterns.graph import NormalGraph
from ..patterns.reasons import Reason
from .base import PlanContext, positive, register
from .plan import CachedRegion, Plan
from .reuse import CachePolicy, Moment, Tracker, unfit


@dataclass(frozen=True)
class EasyCache(CachePolicy):
    """EasyCache: skip whole calls while the accumulated estimate of the output's change stays below a threshold.

    Zhou et al. 2025, "Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching"
    (https://arxiv.org/abs/2507.02860). One graph input, the latent, has the shape of a graph output; a skipped call
    returns latent + (output - latent) of the last computed call, other outputs as they were then. An output with more
    channels than the latent (a learned variance) is treated in that way on the latent's channels only.

    Args:
        threshold: how large the accumulated relative change may grow before the network runs again. 0 never skips.
        warmup: how many steps are computed at the beginning. The last step is always computed too.
        order: what a skipped call returns. None is the paper's latent + offset; 0 the last computed output; 1 the line
            through the last two computed outputs, over the step number (forecasting, as in TaylorSeer, Liu et al. 2025,
            https://arxiv.org/abs/2503.06923, here of the network's output). Decisions are the same.
        latent: the name of the argument that is the latent, where several inputs have the output's shape.

    Raises:
        ValueError, TypeError: a setting outside its range or of the wrong type.
    """

    threshold: float = 0.05
    warmup: int = 7
    order: int | None = None
    latent: str | None = None

    def __post_init__(self) -> None:
        positive("threshold", self.threshold, kind=float)
        positive("warmup", self.warmup)
        if self.order is not None:
            positive("order", self.order)
            if self.order > 1:
                raise ValueError(f"order must be None, 0 or 1, not {self.order}")
        if self.latent is not None and not isinstance(self.latent, str):
            raise TypeError(f"latent must be the name of an argument, not {self.latent!r}")

    @property
    def identity(self) -> bool:
        return self.threshold == 0

    def tracker(self, role: str = "") -> Tracker:
        return EasyCacheTracker(self.threshold, self.warmup, self.order)

    def plan(self, context: PlanContext) -> Plan:
        """One region, the whole graph from the latent to every computed output, or the reason there is none."""
        graph = context.graph
        found = unfit(graph) or find_latent(graph, self.latent)
        if isinstance(found, Reason):
            return Plan(refusals=[(None, found)])
        latent, output = found
        computed = [node for node in _results(graph) if node.op == "call_function"]
        others = [node for node in dict.fromkeys(computed) if node is not output]
        for node in others:
            if not isinstance(node.meta.get("val"), Tensor):
                text = f"output {node.name} is a computed {type(node.meta.get('val')).__name__}, which cannot be kept"
                return Plan(refusals=[(None, Reason("unsupported-op", text, (node.name,)))])
        return Plan(regions=[CachedRegion(entries=(latent,), exits=(output, *others), policy=self)])


class EasyCacheTracker(Tracker):
    """The state of EasyCache. |.| is the mean absolute value, x the latent, y the output's part of the latent's shape.

    ``rate`` (k in the paper) is |y - y_full| / |x - x_full| between the last two computed calls; ``drift`` is the sum
    of rate * |x - x_previous| / |y_full| over the calls since the last computed one. ``full`` is x and y of that call,
    ``step`` its step, and ``trend`` what predictions add: y - x (order None), or the change of y per step (order 1).
    """

    def __init__(self, threshold: float, warmup: int, order: int | None = None) -> None:
        self.threshold = threshold
        self.warmup = warmup
        self.order = order
        self.step = 0
        self.trend: Tensor | None = None
        self.drift = 0.0
        self.rate: Tensor | None = None
        self.previous: Tensor | None = None
        self.full: tuple[Tensor, Tensor] | None = None
        self.exits: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def decide(self, moment: Moment, entries: Sequence[Tensor]) -> bool:
        (x,) = entries
        before, self.previous = self.previous, x.clone()
        self.indicator = None
        if moment.step < self.warmup or moment.last:
            self.drift = 0.0
            return False
        if self.rate is None or before is None or self.full is None:
            return False
        self.drift += float(self.rate * _mean_abs(x - before) / _mean_abs(self.full[1]))
        self.indicator = self.drift
        # A NaN (0 / 0: the latent stood still) compares false, so it computes.
        if self.drift < self.threshold:
            return True
        self.drift = 0.0
        return False

    @torch.no_grad()
    def observe(self, moment: Moment, entries: Sequence[Tensor], exits: Sequence[Tensor]) -> None:
        self.drift = 0.0  # also when the decision to reuse was overruled
        # For the deciding stream decide() has just copied this latent; a following stream copies its own.
        x = self.previous if self.previous is not None else entries[0].clone()
        self.exits = tuple(value.clone() for value in exits)
        y = _part(self.exits[0], x)
        if self.full is not None:
            change = y - self.full[1]
            self.rate = _mean_abs(change) / _mean_abs(x - self.full[0])
            if self.order == 1:
                self.trend = change / (moment.step - self.step)
        if self.order is None:
            self.trend = y - x
        self.full, self.step = (x, y), moment.step
        self.ready = True

    @torch.no_grad()
    def predict(self, moment: Moment, entries: Sequence[Tensor]) -> tuple[Any, ...]:
        assert self.full is not None, "predict needs a computed call"
        x, (kept, *others) = entries[0], self.exits
        if self.trend is None:
            moved = self.full[1].clone()
        elif self.order is None:
            moved = x + self.trend
        else:
            moved = self.full[1] + (moment.step - self.step) * self.trend
        moved = moved.to(kept.dtype)
        if kept.shape != x.shape:
            whole = kept.clone()
            _part(whole, x).copy_(moved)
            moved = whole
        return (moved, *(value.clone() for value in others))

    def tensors(self) -> Sequence[Tensor]:
        # The output's part of the latent's shape is a view of the first exit.
        held = [self.previous, self.trend, *self.exits, *(self.full or ())[:1]]
        return list({id(value): value for value in held if value is not None}.values())


def find_latent(graph: NormalGraph, name: str | None = None) -> tuple[Node, Node] | Reason:
    """The graph input that moves along a trajectory, and the output of its shape; a ``no-latent`` reason otherwise.

    Parameters, buffers and prepared tensors are no candidates, nor are inputs the output does not depend on. An output
    of exactly the input's shape and dtype wins over one of another floating-point dtype, and that over one with twice
    the channels; then the first output and the first input. ``name`` picks the input by its argument name instead.
    """
    inputs = [node for node in moving_inputs(graph) if _is_floating(node)]
    if name is not None:
        names = [argument_name(node) for node in inputs]
        if name not in names:
            return Reason("no-latent", f"no tensor argument is named {name!r}; there are {', '.join(names) or 'none'}")
        inputs = [node for node in inputs if argument_name(node) == name]
    best: tuple[int, Node, Node] | None = None
    for output in _results(graph):
        if output.op != "call_function" or not _is_floating(output):
            continue
        near = [
            (cost, node) for node in inputs if (cost := _distance(node.meta["val"], output.meta["val"])) is not None
        ]
        if not near or (best is not None and best[0] <= min(cost for cost, _ in near)):
            continue
        sources = _ancestors(output)
        for cost, node in near:
            if node in sources and (best is None or cost < best[0]):
                best = (cost, node, output)
    if best is None:
        return Reason("no-latent", "no floating-point output has the shape of an input it is computed from")
    return best[1], best[2]


def moving_inputs(graph: NormalGraph) -> list[Node]:
    """The tensor inputs that may differ from call to call: neither parameters and buffers nor prepared from them."""
    prepared = {node for _, nodes in graph.facts.get("prepared", ()) for node in nodes}
    return [
        node
        for node in graph.placeholders
        if node not in prepared and not graph.is_static(node) and isinstance(node.meta.get("val"), Tensor)
    ]


def argument_name(node: Node) -> str:
    """What the user calls a graph input: the argument's name where Dynamo recorded it, else the placeholder's."""
    source = getattr(node, "_dynamo_source", None)
    while source is not None and getattr(source, "local_name", None) is None:
        index = getattr(source, "index", None)
        if isinstance(index, str):
            return index
        source = getattr(source, "base", None)
    return str(source.local_name) if source is not None else str(node.meta.get("laconic.name", node.name))


def _results(graph: NormalGraph) -> list[Node]:
    """The nodes among the graph's outputs, in order."""
    return list(graph.output.all_input_nodes)


def _is_floating(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype.is_floating_point and value.dim() > 0


def _distance(value: Tensor, result: Tensor) -> int | None:
    """0 for the same shape and dtype, 1 for another dtype, 2 for twice the channels, None for no match."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    if value.dim() != result.dim():
        return None
    pairs = enumerate(zip(value.shape, result.shape, strict=True))
    longer = [axis for axis, (size, other) in pairs if not (size is other or statically_known_true(size == other))]
    if not longer:
        return int(value.dtype != result.dtype)
    # A learned variance doubles the channels: axis 1 of images and videos, the last of token sequences.
    channels = value.dim() - 1 if value.dim() <= 3 else 1
    if longer == [channels] and statically_known_true(result.shape[channels] == 2 * value.shape[channels]):
        return 2
    return None


def _ancestors(node: Node) -> set[Node]:
    seen = {node}
    queue = [node]
    while queue:
        for operand in queue.pop().all_input_nodes:
            if operand not in seen:
                seen.add(operand)
                queue.append(operand)
    return seen


def _part(value: Tensor, like: Tensor) -> Tensor:
    """The leading part of ``value`` that has the shape of ``like``: a view, and ``value`` itself for equal shapes."""
    for axis, (size, wanted) in enumerate(zip(value.shape, like.shape, strict=True)):
        if size != wanted:
            return value.narrow(axis, 0, wanted)
    return value


def _mean_abs(value: Tensor) -> Tensor:
    # Half-precision sums overflow or stall, so the mean is taken in fp32.
    return value.abs().mean(dtype=torch.float32 if value.dtype != torch.float64 else None)


cache = register("cache", {"easycache": EasyCache})
