"""No detector recurses on the depth of a graph: chains far longer than Python's stack allows are searched."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.fx import Node

from laconic.patterns.detect import detect
from laconic.patterns.graph import NormalGraph
from laconic.patterns.sites import Recurrence, Scan
from tests.patterns.graphs import normal

NODES = 5000
FRAMES = 250
"""What torch and sympy need below a detector, and far less than the graphs are deep."""


@contextmanager
def shallow_stack() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + FRAMES)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def step(state: Tensor, decay: Tensor, value: Tensor) -> Tensor:
    return torch.sigmoid(decay) * state + value


def squashed(state: Tensor, decay: Tensor, value: Tensor) -> Tensor:
    return torch.tanh(torch.sigmoid(decay) * state + value)


def layer(x: Tensor, decay: Tensor, value: Tensor) -> Tensor:
    return x + torch.relu(x * decay) * value


def chained(function: Callable[..., Tensor], *, loop: bool) -> NormalGraph:
    """``function`` applied again and again, to the elements of two tensors in turn (``loop``) or to all of both."""
    inputs = (torch.rand(2, NODES, 3), torch.rand(2, NODES, 3)) if loop else (torch.rand(2, 3), torch.rand(2, 3))

    def thrice(decay: Tensor, value: Tensor) -> list[Tensor]:
        states = [torch.zeros(2, 3)]
        for place in range(3):
            read = (decay[:, place], value[:, place]) if loop else (decay, value)
            states.append(function(states[-1], *read))
        return states[1:]

    graph = normal(thrice, *inputs)
    nodes = graph.module.graph
    (output,) = nodes.find_nodes(op="output")
    _, second, last = output.args[0]  # type: ignore[misc, union-attr]
    inside = list(nodes.nodes)
    template = inside[inside.index(second) + 1 : inside.index(last) + 1]  # type: ignore[arg-type]
    state = last
    with nodes.inserting_before(output):
        for place in range(3, NODES // len(template)):
            copies: dict[Node, Node] = {second: state}  # type: ignore[dict-item]
            for node in template:
                copies[node] = nodes.node_copy(node, lambda read: copies.get(read, read))  # noqa: B023
                if node.target is torch.ops.aten.select.int:
                    copies[node].args = (*node.args[:2], place)
            state = copies[last]  # type: ignore[index]
    output.args = ([state],)
    return graph


@pytest.mark.parametrize(
    ("function", "loop", "found"),
    [(step, True, [Scan]), (squashed, True, [Recurrence]), (layer, False, [])],
    ids=["linear-loop", "nonlinear-loop", "layers"],
)
def test_depth_costs_no_stack(function: Callable[..., Tensor], loop: bool, found: list[type]) -> None:
    graph = chained(function, loop=loop)
    detect(chained(function, loop=False))  # imports and first uses need more stack
    assert len(graph.module.graph.nodes) > NODES * 0.9
    with shallow_stack():
        sites = detect(graph)
    assert [type(site) for site in sites if site.kind == "scan"] == found
