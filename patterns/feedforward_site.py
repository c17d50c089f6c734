"""From a recognised hidden value to a feed-forward site: its fields, the names of its axes, its cost and checks."""

from __future__ import annotations

import math

from torch.fx import Node

from .describe import description, element_bytes, named_dimensions, same, shape_of
from .effects import Effects
from .feedforward_axes import FEATURES, name_axes
from .halves import run_of
from .hidden import Candidate, Hidden, Layer, Layers, Refused, unwrapped, wrapper
from .nodes import readers
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
    run, halves = _run(candidate)
    apart = _apart(candidate, run, Layers.feature_axis(down)) if run is not None else frozenset()
    reason = effects.mutation(inputs, interior, own=True) or effects.escape(interior | apart, (output, *apart))
    if reason is not None:
        raise Refused.because(reason)
    axes, sizes = name_axes(candidate, x, interior)
    axes |= {node: tuple(() for _ in shape_of(node)) for node in hidden.parameters}
    axes |= {up.bias: (("H",),)} if up.bias is not None else {}
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
        if hidden.joined or run is not None
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
        up_half=halves[0],
        gate_half=halves[1],
        interleaved=up.interleaved,
        joined=hidden.joined,
        dropout=hidden.dropout,
        channels=hidden.channels,
        parameters=hidden.parameters,
        constants=hidden.constants,
        run=run,
        run_bias=up.bias,
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


def _run(candidate: Candidate) -> tuple[tuple[int, int] | None, tuple[int | None, int | None]]:
    """The features of the first layer that are the site's, and which half of them up and gate are.

    Raises Refused when gate and up are no two halves of one run.
    """
    up, gate = candidate.up, candidate.gate
    if gate is None:
        return up.run, (up.half, None)
    if gate.layer is up.layer and up.bias is None and gate.bias is None:
        if up.run == gate.run:
            return up.run, (up.half, gate.half)
        if up.run is not None and gate.run is not None and up.half is None and gate.half is None:
            first, second = sorted((up.run, gate.run))
            if first[1] == second[0] and first[1] - first[0] == second[1] - second[0]:
                return (first[0], second[1]), (int(up.run is second), int(gate.run is second))
    elif up.run is None and gate.run is None and up.bias is None and gate.bias is None:
        return None, (up.half, gate.half)
    raise Refused("unsupported-op", "gate and up are cut from their layer in different ways", candidate.down.output)


def _apart(candidate: Candidate, run: tuple[int, int], axis: int) -> frozenset[Node]:
    """What is cut out of the first layer beside the site's own features: it may be read by anything."""
    found: set[Node] = set()
    pending = [candidate.up.layer.output]
    while pending:
        for user in readers(pending.pop()):
            part = run_of(user, axis)
            if part is not None:
                if part.stop <= run[0] or part.start >= run[1]:
                    found.add(user)
            elif wrapper(user, axis) is not None or isinstance(user.meta.get("val"), list | tuple):
                pending.append(user)
    return frozenset(found)


def _same_rows(left: Node, right: Node, axis: int) -> bool:
    one, other = list(shape_of(left)), list(shape_of(right))
    del one[axis], other[axis]
    return len(one) == len(other) and all(map(same, one, other))


def _inputs(x: Node, layers: list[Layer], hidden: Hidden) -> tuple[Node, ...]:
    inputs = [x, *(part for part in hidden.joined if part is not None), *hidden.parameters]
    inputs += [leaf.bias for leaf in hidden.leaves if leaf.bias is not None]
    for layer in layers:
        inputs += [layer.weight, *([layer.bias] if layer.bias is not None else [])]
    return tuple(dict.fromkeys(inputs))
