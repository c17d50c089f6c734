"""Stretches of a graph between narrow places, what they compute, and where they repeat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.fx import Node

from .describe import constant_tensor, expression
from .nodes import SIZE_READERS, operation
from .streams import Place

LONGEST_PERIOD = 48
"""Segments in one block, at most: layers that alternate kinds have a few dozen narrow places."""


@dataclass(frozen=True, eq=False)
class Segment:
    """What is computed between two places of a stream.

    ``inputs`` are in the order they are first read, ``entries`` those that come from the stream and end here,
    ``exits`` what goes on; ``outputs`` all that is read outside. ``module`` is the path of the module whose one
    execution the segment is, "" when it was not cut out by modules.
    """

    start: Place
    end: Place
    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    entries: tuple[Node, ...]
    exits: tuple[Node, ...]
    outputs: tuple[Node, ...]
    module: str = ""

    @cached_property
    def structure(self) -> tuple[Any, ...]:
        """Equal for segments that differ in the identity of their inputs only (weights, the stream).

        Their nodes and inputs then correspond by position. Most segments are never compared, so it waits to be asked.
        """
        return structure(self.nodes, self.inputs, self.outputs)


def segment(order: Sequence[Node], members: set[Node], start: Place, end: Place) -> Segment:
    """The stretch from ``start`` to ``end``: values of the stream, and what only they need."""
    inside: set[Node] = set()
    for index in range(end.position, start.position, -1):
        node = order[index]
        if node.op not in ("call_function", "get_attr"):
            continue
        if node in members or (node.users and all(user in inside for user in node.users)):
            inside.add(node)
    nodes = tuple(node for node in order[start.position + 1 : end.position + 1] if node in inside)
    return described(nodes, inside, start, end)


def described(nodes: tuple[Node, ...], inside: set[Node], start: Place, end: Place) -> Segment:
    """The segment made of ``nodes``."""
    inputs = tuple(dict.fromkeys(read for node in nodes for read in node.all_input_nodes if read not in inside))
    here = [node for node in inputs if node in start.values]
    entries = tuple(node for node in here if node not in end.values) or tuple(here)
    outputs = tuple(
        node
        for node in nodes
        if any(user not in inside and operation(user) not in SIZE_READERS for user in node.users)
        or (node in end.values)
    )
    exits = tuple(node for node in outputs if node in end.values)
    return Segment(start, end, nodes, inputs, entries, exits, outputs)


def structure(nodes: Iterable[Node], inputs: Iterable[Node], outputs: Iterable[Node]) -> tuple[Any, ...]:
    """What a subgraph computes, up to the identity of its inputs: operations, constants, shapes and dtypes."""
    number = {node: -1 - index for index, node in enumerate(inputs)}
    lines: list[Any] = [type_of(node) for node in number]
    for index, node in enumerate(nodes):
        number[node] = index
        lines.append(line(node, number))
    return (*lines, tuple(number.get(node) for node in outputs))


def line(node: Node, number: Mapping[Node, int]) -> tuple[Any, ...]:
    """One operation with its operands by number."""
    if node.op == "get_attr":
        return ("constant", _constant(node))
    return (node.target, frozen(node.args, number), frozen(tuple(sorted(node.kwargs.items())), number))


def frozen(value: Any, number: Mapping[Node, int]) -> Any:
    """Arguments as something hashable, nodes by number. Numbers of another type are another argument."""
    if isinstance(value, Node):
        return ("%", number.get(value))
    if isinstance(value, list | tuple):
        return tuple(frozen(item, number) for item in value)
    if isinstance(value, slice):
        return ("slice", frozen((value.start, value.stop, value.step), number))
    return (type(value).__name__, repr(value) if isinstance(value, float) else value)


def type_of(node: Node) -> tuple[Any, ...]:
    """Shape and element type (or, for a symbolic size, its expression), with no guard."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return (value.dtype, value.device, tuple(expression(size) for size in value.shape))
    if isinstance(value, list | tuple):
        return tuple(str(item) for item in value)
    return (str(value),)


def _constant(node: Node) -> Any:
    value = constant_tensor(node)
    if value is not None and value.numel() <= 64 and not value.is_meta and type(value) is Tensor:
        return (value.dtype, tuple(value.shape), str(value.tolist()))
    return str(node.target)


@dataclass(frozen=True)
class Run:
    """``length`` segments from ``start`` on, each equal to the one ``period`` before it."""

    start: int
    period: int
    length: int


def runs(names: Sequence[int]) -> list[Run]:
    """Every maximal run in which at least one segment repeats, shortest periods first.

    One pass for each period, so linear in the number of segments.
    """
    found = []
    for period in range(1, min(LONGEST_PERIOD, len(names) - 1) + 1):
        matched = 0
        for index in range(period, len(names) + 1):
            if index < len(names) and names[index] == names[index - period]:
                matched += 1
                continue
            if matched:
                found.append(Run(index - matched - period, period, matched + period))
            matched = 0
    return found
