"""The part each operand of a region plays in a recurrence, found and proven by running the region beside it.

No spelling is looked at: single elements of the operands are changed (``probing.py``), which says which axis is time
and which operand is a key, a query or a value; then the region must agree with the plain recurrence at a random point.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from .nodes import tensor
from .probing import MAXIMUM_RANK, Influence, Probe, canonical, gated
from .trial import CANNOT_BE_RUN, Region, agree, sample

_FIRST_STEPS = 6
_STRONGEST = 0.1
"""Logarithms of decays tried lie between minus this and 0: their products neither vanish nor grow."""

_WEAKER = 0.5
"""The other operands are made smaller by this, so that a state from which keys are erased does not grow either."""


@dataclass(frozen=True)
class Roles:
    """Positions in the region's inputs (a decay is input 0).

    ``logarithm``: the decay is ``exp`` of its operand; ``exponential``: the value is. ``gains`` multiply what is read.
    """

    logarithm: bool
    exponential: bool
    value: int
    key: int | None
    query: int | None
    erase: int | None
    gains: tuple[int, ...]
    time: tuple[int, ...]
    input: Influence
    gate: str

    @property
    def is_plain(self) -> bool:
        """Whether the states of a recurrence of vectors are the result, along one axis of time."""
        return self.key is None and not self.gains and len(self.time) == 1


def is_operand(node: Node) -> bool:
    """Whether a region may be given random numbers for ``node``."""
    made = tensor(node)
    return made is not None and made.is_floating_point() and 0 < made.dim() <= MAXIMUM_RANK


def find_roles(inputs: Sequence[Node], output: Node, gate: str, order: dict[Node, int]) -> Roles | None:
    """The roles in which ``inputs`` make ``output``; ``gate``: input 0 is a decay, its logarithm or (none) neither."""
    sizes = {int(size) for node in inputs for size in node.meta["val"].shape if isinstance(size, int)}
    if gate != "none":
        sizes = {int(size) for size in inputs[0].meta["val"].shape if isinstance(size, int)}
    region = Region(order, inputs, (output,), sizes, {})
    if tuple(region.inputs) != tuple(inputs) and any(not is_operand(node) for node in region.inputs):
        return None
    for shrunk in (True, False):
        generator = torch.Generator().manual_seed(7)
        try:
            values = region.samples(generator, shrunk=shrunk)
            for node in inputs:
                values[node] = values[node] * _WEAKER
            if gate != "none":
                values[inputs[0]] = _decays(values[inputs[0]].shape, generator, logarithm=gate == "logarithm")
            probe = Probe(region, output, values, shrunk=shrunk)
        except CANNOT_BE_RUN:
            continue
        if not torch.isfinite(probe.result).all():
            return None
        try:
            return _found(inputs, probe, gate)
        except CANNOT_BE_RUN:
            return None
    return None


def _decays(shape: Sequence[int], generator: torch.Generator, *, logarithm: bool) -> Tensor:
    value = -_STRONGEST * (sample(shape, generator).abs() + 0.01)
    return value if logarithm else value.exp()


def _found(inputs: Sequence[Node], probe: Probe, gate: str) -> Roles | None:
    influences = []
    for node in inputs:
        influence = probe.influence(node)
        if influence is None or len(influence.summed) > 1:
            return None
        influences.append(influence)
    decay = None if gate == "none" else influences[0]
    others = range(decay is not None, len(inputs))
    keyed = [place for place in others if influences[place].summed]
    plain = [place for place in others if not influences[place].summed]
    gains = [place for place in plain if not influences[place].clock]
    plain = [place for place in plain if influences[place].clock]
    if len(plain) != 1 or len(keyed) not in ((2,) if decay is None else (0, 2, 3)):
        return None
    (value,) = plain
    rank = probe.result.dim()
    time = (decay or influences[value]).clock
    if not 1 <= len(time) <= 2:
        return None
    if keyed:
        matched = {axis for place in (*keyed, *([] if decay is None else [0])) for axis in influences[place].axes}
        matched |= {axis for axis in range(rank) if probe.result.shape[axis] == 1}
    else:
        matched = set(range(rank))
    batch = tuple(axis for axis in range(rank) if axis in matched and axis not in time)
    wide = tuple(axis for axis in range(rank) if axis not in matched and axis not in time)
    like = probe.result

    def of(place: int) -> Tensor:
        influence = influences[place]
        own = influence.summed
        if place == value or place in gains:
            own = tuple(influence.axes.index(axis) for axis in wide if axis in influence.axes)
        return canonical(probe.values[inputs[place]], influence, batch, time, own, like)

    decays = None
    if decay is not None:
        probe.values[inputs[0]] = _from_the_first_step(probe.values[inputs[0]], decay, time, like, gate)
        decays = of(0).exp() if gate == "logarithm" else of(0)
    results = like.permute(*batch, *time, *wide).reshape(of(value).shape)
    for query, key, erase in _assignments(keyed):
        parts = [None if place is None else of(place) for place in (key, query, erase)]
        for exponential in (False, True):
            values = of(value).exp() if exponential else of(value)
            # The first few steps tell most wrong assignments.
            for steps in (_FIRST_STEPS, values.shape[1]):
                cut = [None if part is None else part[:, :steps] for part in (decays, values, *parts)]
                expected = gated(*cut)  # type: ignore[arg-type]
                for place in gains:
                    expected = expected * of(place)[:, :steps]
                if not agree(results[:, :steps], expected):
                    break
            else:
                return Roles(
                    gate == "logarithm",
                    exponential,
                    value,
                    key,
                    query,
                    erase,
                    tuple(gains),
                    time,
                    influences[value],
                    _gate(decay, keyed, batch) if erase is None else "delta",
                )
    return None


def _from_the_first_step(decay: Tensor, influence: Influence, time: Sequence[int], like: Tensor, gate: str) -> Tensor:
    """``decay`` for every step: what the first step does to a state that is not there yet may be left out."""
    axis = influence.axes.index(time[0])
    if len(time) > 1 or decay.shape[axis] != like.shape[time[0]] - 1:
        return decay
    amounts = [0, 0] * (decay.dim() - 1 - axis)
    return F.pad(decay, [*amounts, 1, 0], value=0.0 if gate == "logarithm" else 1.0)


def _assignments(keyed: Sequence[int]) -> Iterator[tuple[int | None, int | None, int | None]]:
    """Which keyed operand is the query, which the key and which erases."""
    if not keyed:
        yield None, None, None
    for places in itertools.permutations(keyed):
        yield (places[0], places[1], places[2] if len(places) > 2 else None)


def _gate(decay: Influence | None, keyed: Sequence[int], batch: Sequence[int]) -> str:
    if decay is None:
        return "none"
    if keyed:
        return "diagonal" if decay.summed else "scalar"
    return "diagonal" if batch and max(batch) in decay.axes else "scalar"
