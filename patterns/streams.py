"""Where few values carry everything: the narrow places of a graph's activations, for each input they come from.

Between two repetitions of a block only the residual stream (or two of them) goes on; tables, masks and conditioning do
not depend on the activations and do not count. A value stands alone at a place exactly if every path from the input
to the result passes it, whatever the order of the graph: the immediate post-dominators of the input. With two or more
values (dual streams, a skip connection around everything) the order the program ran in decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Node

from .graph import NormalGraph
from .nodes import MOVEMENTS, SIZE_READERS, operation, tensor

WIDEST = 4
"""Places that more values than this cross are not considered: skips and collected features add one each."""

_SOURCES = 6

_CHOOSING = MOVEMENTS | {"slice", "select", "cat", "expand", "roll", "clamp", "masked_fill", "where"}
"""What may be done to token numbers on their way to the embedding."""


@dataclass(frozen=True, eq=False)
class Place:
    """After the node at ``position``, only ``values`` of the stream are still to be read."""

    position: int
    values: frozenset[Node]


class Stream:
    """The floating-point values computed from one input, and the narrow places among them."""

    def __init__(
        self, nodes: list[Node], members: set[Node], position: dict[Node, int], skips: Mapping[Node, Node]
    ) -> None:
        self.members = members
        self.places: dict[int, list[Place]] = {width: [] for width in range(1, WIDEST + 1)}
        self._sweep(nodes, position, skips)

    def _sweep(self, nodes: list[Node], position: dict[Node, int], skips: Mapping[Node, Node]) -> None:
        end = len(nodes)
        expiring: list[list[Node]] = [[] for _ in range(end + 1)]
        last_result = None
        for node in nodes:
            if node not in self.members:
                continue
            # A value kept for a long skip is no part of what goes on in between.
            reads = [user for user in node.users if operation(user) not in SIZE_READERS and skips.get(node) is not user]
            inner = [position[user] for user in reads if user.op != "output"]
            if any(user.op == "output" for user in reads):
                last_result = node
            expiring[max(inner, default=position[node])].append(node)
        live: dict[Node, None] = {}
        for index, node in enumerate(nodes):
            if node in self.members:
                live[node] = None
            for gone in expiring[index]:
                # Results that are only collected on the way leave; the last one is where the stream ends.
                if gone is not last_result:
                    del live[gone]
            if node in self.members and 1 <= len(live) <= WIDEST and all(map(_carries, live)):
                places, values = self.places[len(live)], frozenset(live)
                if not places or places[-1].values != values:
                    places.append(Place(index, values))


def streams(graph: NormalGraph, position: dict[Node, int], skips: Mapping[Node, Node]) -> list[Stream]:
    """One stream for each input that is no parameter, the ones that reach most of the graph first. Linear time.

    ``skips`` maps values kept for a long skip to the node that reads them then.
    """
    nodes = list(graph.module.graph.nodes)
    inputs = [node for node in graph.placeholders if not graph.is_static(node) and tensor(node) is not None]
    bit = {node: 1 << index for index, node in enumerate(inputs)}
    reached: dict[Node, int] = {}
    size = dict.fromkeys(inputs, 0)
    members: dict[Node, set[Node]] = {node: {node} for node in inputs}
    if len(inputs) > 64:
        return []
    for node in nodes:
        if node in bit:
            reached[node] = bit[node]
        elif node.op == "call_function" and (_floating(node.meta.get("val")) or operation(node) in _CHOOSING):
            bits = 0
            for read in node.all_input_nodes:
                bits |= reached.get(read, 0)
            if bits:
                reached[node] = bits
                for source in inputs:
                    if bits & bit[source]:
                        size[source] += 1
                        members[source].add(node)
    chosen = sorted(inputs, key=lambda node: -size[node])[:_SOURCES]
    return [Stream(nodes, members[source], position, skips) for source in chosen if size[source]]


def _floating(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(isinstance(item, Tensor) and item.is_floating_point() for item in value)
    return isinstance(value, Tensor) and value.is_floating_point()


def _carries(node: Node) -> bool:
    return tensor(node) is not None
