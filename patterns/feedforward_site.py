"""From a recognised hidden value to a feed-forward site: its fields, the names of its axes, its cost and checks."""

from __future__ import annotations

import math

from torch.fx import Node

from .axes import same
from .describe import description, element_bytes, named_dimensions, shape_of
from .effects import Effects
from .feedforward_axes import FEATURES, name_axes
from .hidden import Candidate, Hidden, Layer, Layers, Refused, unwrapped
from .provenance import with_writers
from .sites import FeedForward


def build(candidate: Candidate, effects: Effects) -> FeedForward:
    """The site (numbered by the caller). Raises Refused."""
    down, hidden, up, gate = candidate.down, candidate.hidden, candidate.up, candidate.gate
    output = down.output
    x = _input(candidate)
    if not _same_rows(x, output, Layers.feature_axis(down)):
        raise Refused("unsupported-shape", "input and output do not have the same rows", output)
    inputs = _inputs(x, [*candidate.firsts, down], hidden)
    interior = with_writers(x, inputs, output, effects)
    reason = effects.mutation(inputs, interior, own=True) or effects.escape(interior, (output,))
    if reason is not None:
        raise Refused.because(reason)
    axes, sizes = name_axes(candidate, x, interior)
    axes |= {node: tuple(() for _ in shape_of(node)) for node in hidden.parameters}
    symbols, dimensions = named_dimensions(**sizes)
    rows = math.prod(symbols[name] for name in sizes if name not in FEATURES)
    beside = sum(symbols[name] for name in sizes if name.startswith("C"))
    k, h = symbols["K"], symbols["H"]
    weights = k * h * (2 if gate is not None else 1) + (h + beside) * k
    fused = gate is not None and gate.layer is up.layer
    if gate is not None and gate.interleaved != up.interleaved:
        raise Refused("unsupported-op", "gate and up are cut from their layer in different ways", output)
    if hidden.channels == (0, sizes["H"]):
        hidden.channels = None
    form = (
        "parallel"
        if hidden.joined
        else "channels"
        if hidden.channels
        else "fused"
        if fused
        else "gated"
        if gate is not None
        else "plain"
    )
    return FeedForward(
        id="feedforward",
        input=x,
        up=up.layer,
        down=down,
        activation=hidden.activation,
        gate=gate.layer if gate is not None else None,
        up_half=up.half,
        gate_half=gate.half if gate is not None else None,
        interleaved=up.interleaved,
        joined=hidden.joined,
        dropout=hidden.dropout,
        channels=hidden.channels,
        parameters=hidden.parameters,
        form=form,
        flops=2 * rows * weights,
        bytes=(rows * (2 * k + beside) + weights) * element_bytes(output),
        dimensions=dimensions,
        axes=axes,
        **description(output, interior, inputs, (output,)),
    )


def _input(candidate: Candidate) -> Node:
    """What the first layers read. Raises Refused when they read different values."""
    first, *others = (layer.input for layer in candidate.firsts)
    if all(other is first for other in others):
        return first
    axis = Layers.feature_axis(candidate.down)
    roots = {unwrapped(node, axis) for node in (first, *others)}
    if len(roots) != 1:
        raise Refused("unsupported-op", "gate and up read different values", candidate.down.output)
    return roots.pop()


def _same_rows(left: Node, right: Node, axis: int) -> bool:
    one, other = list(shape_of(left)), list(shape_of(right))
    del one[axis], other[axis]
    return len(one) == len(other) and all(map(same, one, other))


def _inputs(x: Node, layers: list[Layer], hidden: Hidden) -> tuple[Node, ...]:
    inputs = [x, *(part for part in hidden.joined if part is not None), *hidden.parameters]
    for layer in layers:
        inputs += [layer.weight, *([layer.bias] if layer.bias is not None else [])]
    return tuple(dict.fromkeys(inputs))
