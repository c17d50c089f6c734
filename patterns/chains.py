"""Carried values in an unrolled loop: a run of steps ``h' = a * h + b``, each reading the one before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from .nodes import cast_of

aten = torch.ops.aten

MINIMUM_STEPS = 3
"""A shorter run is not worth an operator of its own."""


@dataclass(frozen=True)
class Step:
    """``state = decay * previous + input`` (``subtract``: minus input). Decay and input are nodes or numbers."""

    state: Node
    previous: Node
    decay: Any
    input: Any
    subtract: bool
    interior: tuple[Node, ...]


def unwrap(node: Any) -> tuple[Any, tuple[Node, ...]]:
    """The value behind casts to its own dtype and copies, and the nodes passed through."""
    passed: list[Node] = []
    while isinstance(node, Node) and _is_same_value(node):
        passed.append(node)
        node = node.args[0]
    return node, tuple(passed)


def _is_same_value(node: Node) -> bool:
    if node.target in (aten.clone.default, aten.contiguous.default, aten.alias.default):
        return True
    cast = cast_of(node)
    return cast is not None and cast[0] == cast[1]


def find_chains(graph: Graph) -> list[list[Step]]:
    """The longest runs of steps, each node in at most one; in graph order of their last state. Linear time."""
    best_of: dict[Node, Step] = {}
    depth: dict[Node, int] = {}
    for node in graph.nodes:
        best: Step | None = None
        for step in readings(node):
            if best is None or depth.get(step.previous, 0) > depth.get(best.previous, 0):
                best = step
        if best is not None:
            best_of[node] = best
            depth[node] = depth.get(best.previous, 0) + 1
    chains: list[list[Step]] = []
    taken: set[Node] = set()
    for node in sorted(depth, key=lambda item: depth[item], reverse=True):
        if depth[node] < MINIMUM_STEPS:
            break
        chain: list[Step] = []
        state: Node | None = node
        while state is not None and state in best_of and state not in taken:
            chain.append(best_of[state])
            taken.add(state)
            state = best_of[state].previous
        if len(chain) >= MINIMUM_STEPS:
            chains.append(chain[::-1])
    order = {node: index for index, node in enumerate(graph.nodes)}
    return sorted(chains, key=lambda chain: order[chain[-1].state])


def alternatives(step: Step) -> Iterator[Step]:
    """The other ways to read the same node as a step: which factor is carried is not always plain in the first one."""
    for other in readings(step.state):
        if other != step:
            yield other


def gate_kind(decay: Any, rank: int) -> str:
    """What the decay of one step is to a state of ``rank`` axes: the ``gate`` of :class:`~.sites.Scan`."""
    if not isinstance(decay, Node):
        return "none" if decay == 1 else "scalar"
    sizes = tuple(decay.meta["val"].shape)
    own = sizes[max(len(sizes) - min(2, max(rank - 1, 1)), 0) :]
    return "scalar" if all(isinstance(size, int) and size == 1 for size in own) else "diagonal"


def readings(node: Node) -> Iterator[Step]:
    """The ways to read ``node`` as a step."""
    if node.op != "call_function":
        return
    if node.target is aten.add.Tensor and not node.kwargs and len(node.args) == 2:
        for product, other in (node.args, node.args[::-1]):
            yield from _products(node, product, other, subtract=False)
    elif node.target is aten.sub.Tensor and not node.kwargs and len(node.args) == 2:
        yield from _products(node, node.args[0], node.args[1], subtract=True)
    elif node.target is aten.addcmul.default and not node.kwargs:
        bias, first, second = node.args[:3]
        yield from _factors(node, (first, second), bias, False, ())


def _products(node: Node, product: Any, other: Any, *, subtract: bool) -> Iterator[Step]:
    product, passed = unwrap(product)
    if isinstance(product, Node) and product.target is aten.mul.Tensor:
        yield from _factors(node, product.args, other, subtract, (product, *passed))


def _factors(node: Node, factors: Any, other: Any, subtract: bool, interior: tuple[Node, ...]) -> Iterator[Step]:
    for carried, decay in ((factors[0], factors[1]), (factors[1], factors[0])):
        previous, passed = unwrap(carried)
        if isinstance(previous, Node):
            yield Step(node, previous, decay, other, subtract, (node, *interior, *passed))
