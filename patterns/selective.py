"""Selective scans: a linear recurrence whose decay is an exponential of an outer product and whose states are read out.

Anchored on the operator that the scan pass leaves behind, so every spelling of the recurrence arrives here as one.
Operands are taken apart into factors, each a tensor and the axes it varies along; which factor plays which part follows
from those axes alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from . import batched
from .chains import unwrap
from .describe import description
from .recurrence import arranged, product, selective, selective_operands
from .sites import SelectiveScan
from .trial import subgraph

aten = torch.ops.aten

_ANCHOR = "laconic::linear_recurrence"
Axes = tuple[int | None, ...]


@dataclass(frozen=True)
class Factor:
    """A tensor (or a number) and, for each axis of the recurrence, its own axis there (None: it does not vary)."""

    node: Any
    axes: Axes

    @property
    def varying(self) -> frozenset[int]:
        return frozenset(place for place, axis in enumerate(self.axes) if axis is not None)


def selective_sites(graph: Graph) -> Iterator[SelectiveScan]:
    """The sites of the graph, unproven."""
    for node in graph.nodes:
        if node.op == "call_function" and getattr(node.target, "_name", "") == f"{_ANCHOR}":
            site = _site(node)
            if site is not None:
                yield site


def _site(anchor: Node) -> SelectiveScan | None:
    decay, input, initial, dim, reverse = anchor.args
    value: Tensor = anchor.meta["val"]
    if initial is not None or reverse or value.dim() != 4 or not isinstance(dim, int):
        return None
    time = dim % 4
    reading = _reading(anchor)
    if reading is None:
        return None
    output, coefficient, order, channel, state = reading
    batch = ({0, 1, 2, 3} - {time, channel, state}).pop()
    if time in (channel, state):
        return None
    exponential = _peel(Factor(decay, (0, 1, 2, 3)))
    if not isinstance(exponential.node, Node) or exponential.node.target is not aten.exp.default:
        return None
    sorted_decay = _sorted_factors(
        Factor(exponential.node.args[0], exponential.axes), [{batch, time, channel}, {channel, state}]
    )
    sorted_input = _sorted_factors(Factor(input, (0, 1, 2, 3)), [{batch, time, channel}, {batch, time, state}])
    read = _peel(coefficient)
    if sorted_decay is None or sorted_input is None or not read.varying <= {batch, time, state}:
        return None
    delta, rate = sorted_decay
    inner, expand = sorted_input
    if not delta or not rate or not inner or not expand:
        return None
    program = Graph()
    copies: dict[Node, Node] = {}
    groups = (delta, rate, inner, expand, [read])
    for factor in (item for group in groups for item in group):
        if isinstance(factor.node, Node) and factor.node not in copies:
            copies[factor.node] = program.placeholder(factor.node.name)
    inner_axes, state_axes = (batch, time, channel), (batch, time, state)
    places = (inner_axes, (channel, state), inner_axes, state_axes, state_axes)
    operands = [_product(program, copies, group, place) for group, place in zip(groups, places, strict=True)]
    ready = program.call_function(selective_operands, (*operands, value.dtype))
    parts = [program.call_function(batched.part, (ready, position)) for position in range(5)]
    result = program.call_function(selective, tuple(parts))
    # [batch, time, channel] in the order of the output, and its last axis of size 1 where it has one.
    axes = [None if place is None else inner_axes.index(place) for place in order]
    program.output((program.call_function(arranged, (result, tuple(axes))),))
    inputs = tuple(copies)
    interior = subgraph((output,), set(inputs))
    return SelectiveScan(
        id="",
        form="selective",
        recurrence=anchor,
        delta=_nodes(delta),
        rate=_nodes(rate),
        input=_nodes(inner),
        expand=_nodes(expand),
        read=read.node,
        length=int(value.shape[time]),
        program=GraphModule(torch.nn.Module(), program),
        **description(output, frozenset(interior), inputs, (output,)),
    )


def _reading(anchor: Node) -> tuple[Node, Factor, tuple[int | None, ...], int, int] | None:
    """The one contraction that reads the states: its node, the other operand, where its axes are, channel, state."""
    node = anchor
    places: tuple[int, ...] = (0, 1, 2, 3)
    while True:
        users = [user for user in node.users if not _is_dead(user)]
        if len(users) != 1:
            return None
        (user,) = users
        if user.target in (aten.matmul.default, aten.bmm.default) and user.args[0] is node:
            other: Any = user.args[1]
            value = other.meta["val"]
            if value.dim() != 4 or value.shape[-1] != 1:
                return None
            *outer, channel, state = places
            # In the other operand the state axis is third and its last axis, of size 1, takes the channel's place.
            axes: list[int | None] = [None] * 4
            for position, place in enumerate((*outer, state)):
                axes[place] = position
            return user, _squeezed(Factor(other, tuple(axes))), (*outer, channel, None), channel, state
        step = _moved(user, places)
        if step is None:
            return None
        node, places = user, step


def _is_dead(node: Node) -> bool:
    return not node.users and node.op == "call_function" and not node.is_impure()


def _moved(node: Node, places: Sequence[int]) -> tuple[int, ...] | None:
    """Where each axis of the recurrence is after a node that only permutes (or copies) its argument."""
    permutation = permutation_of(node)
    return None if permutation is None else tuple(places[axis] for axis in permutation)


def permutation_of(node: Node) -> tuple[int, ...] | None:
    """For each axis of ``node``, the axis of its argument it is; None for anything but a permutation or a copy."""
    source = node.args[0] if node.args else None
    if node.op != "call_function" or not isinstance(source, Node):
        return None
    value = source.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    identity = list(range(value.dim()))
    if unwrap(node)[0] is not node:
        return tuple(identity)
    args: Any = node.args
    if node.target is aten.permute.default:
        return tuple(axis % value.dim() for axis in args[1])
    if node.target is aten.transpose.int:
        a, b = args[1] % value.dim(), args[2] % value.dim()
        identity[a], identity[b] = identity[b], identity[a]
        return tuple(identity)
    if node.target is aten.movedim.int:
        a, b = args[1] % value.dim(), args[2] % value.dim()
        identity.insert(b, identity.pop(a))
        return tuple(identity)
    if node.target is aten.expand.default and node.meta["val"].shape == value.shape:
        return tuple(identity)
    return None


def _peel(factor: Factor) -> Factor:
    """The factor behind permutations, copies, new axes and expansions."""
    while isinstance(factor.node, Node):
        node = factor.node
        permutation = permutation_of(node)
        if permutation is not None:
            axes: Axes = tuple(None if axis is None else permutation[axis] for axis in factor.axes)
        elif node.op == "call_function" and node.target is aten.unsqueeze.default:
            new = node.args[1] % node.meta["val"].dim()
            axes = tuple(None if axis is None or axis == new else axis - (axis > new) for axis in factor.axes)
        elif node.op == "call_function" and node.target is aten.expand.default:
            source = node.args[0].meta["val"]  # type: ignore[union-attr]
            if source.dim() != node.meta["val"].dim():
                break
            axes = factor.axes
        else:
            break
        factor = _squeezed(Factor(node.args[0], axes))
    return _squeezed(factor)


def _squeezed(factor: Factor) -> Factor:
    """Axes of size 1 do not vary."""
    if not isinstance(factor.node, Node):
        return factor
    shape = factor.node.meta["val"].shape
    return Factor(factor.node, tuple(None if axis is None or _is_one(shape[axis]) else axis for axis in factor.axes))


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _sorted_factors(whole: Factor, parts: list[set[int]]) -> tuple[list[Factor], list[Factor]] | None:
    """The factors of a product by the axes they may vary along: a factor that fits both goes to the first."""
    groups: tuple[list[Factor], list[Factor]] = ([], [])
    todo = [whole]
    while todo:
        factor = _peel(todo.pop())
        node = factor.node
        if isinstance(node, Node) and node.op == "call_function" and node.target is aten.mul.Tensor:
            # A product that fits a part as a whole stays one tensor: it is small, and may be wanted elsewhere too.
            if not any(factor.varying <= part for part in parts) or not factor.varying:
                todo.extend(_aligned(operand, factor) for operand in node.args[:2])
                continue
        for group, part in zip(groups, parts, strict=True):
            if factor.varying <= part:
                group.append(factor)
                break
        else:
            return None
    return groups


def _aligned(operand: Any, whole: Factor) -> Factor:
    """An operand of an elementwise operator: fewer axes are the last ones."""
    if not isinstance(operand, Node):
        return Factor(operand, tuple(None for _ in whole.axes))
    missing = whole.node.meta["val"].dim() - operand.meta["val"].dim()
    axes = tuple(None if axis is None or axis < missing else axis - missing for axis in whole.axes)
    return _squeezed(Factor(operand, axes))


def _product(program: Graph, copies: dict[Node, Node], group: Sequence[Factor], places: Sequence[int]) -> Node:
    number = math.prod(factor.node for factor in group if not isinstance(factor.node, Node))
    factors: list[Any] = [
        program.call_function(arranged, (copies[factor.node], tuple(factor.axes[place] for place in places)))
        for factor in group
        if isinstance(factor.node, Node)
    ]
    return program.call_function(product, (*factors, *([] if number == 1 else [number])))


def _nodes(group: Sequence[Factor]) -> tuple[Node, ...]:
    return tuple(factor.node for factor in group if isinstance(factor.node, Node))
