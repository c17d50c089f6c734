"""What cutting must not tear apart or swap although no value flows: writes, random numbers, no_grad and autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.fx import Node

from ..patterns.effects import Effects
from ..patterns.graph import NormalGraph
from ..patterns.nodes import DROPOUTS, argument, mutates, operation
from ..patterns.nodes import written as targets


def kept_in_order(graph: NormalGraph, effects: Effects) -> dict[Node, list[Node]]:
    """What must have run before a node though the node does not read it: other users of memory that is written."""
    spoiled = {root for _, roots in effects.writes for root in roots}
    writes = dict(effects.writes)
    found: dict[Node, list[Node]] = {}
    since: dict[Node, list[Node]] = {root: [] for root in spoiled}
    last: dict[Node, Node] = {}
    random: Node | None = None
    for node in graph.module.graph.nodes:
        if node.op != "call_function":
            continue
        earlier: list[Node] = []
        if spoiled:
            for root in {effects.root(read) for read in node.all_input_nodes} & spoiled:
                earlier += [last[root]] if root in last else []
                if root in writes.get(node, ()):
                    earlier += since[root]
                    last[root], since[root] = node, []
                else:
                    since[root].append(node)
        if _is_random(node):
            earlier += [random] if random is not None else []
            random = node
        if earlier:
            found[node] = earlier
    return found


def seen_twice(nodes: Iterable[Node], inputs: Iterable[Node], effects: Effects) -> Node | None:
    """One of ``inputs`` whose memory ``nodes`` write to and another input shows too; None where there is none.

    A piece is compiled from its inputs as if each had memory of its own: it would not see the write in the other one.
    """
    written = {root for node in nodes if mutates(node) for root in map(effects.root, targets(node))}
    first: dict[Node, Node] = {}
    for node in inputs:
        root = effects.root(node)
        if root in written and first.setdefault(root, node) is not node:
            return node
    return None


def _is_random(node: Node) -> bool:
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    # Attention and dropout count as random even where they drop nothing.
    if operation(node) == "scaled_dot_product_attention":
        return argument(node, "dropout_p") != 0
    if operation(node) in DROPOUTS:
        return argument(node, "p") != 0 and argument(node, "train") is not False
    return True


def switched_spans(graph: NormalGraph) -> list[list[Node]]:
    """Stretches of the graph under another gradient mode or autocast than the call's, the switches included."""
    spans: list[list[Node]] = []
    recording, depth, inside = graph.grad_enabled, 0, False
    for node in graph.module.graph.nodes:
        if node.op != "call_function":
            continue
        switch = is_switch(node)
        if switch and _named(node.target, "_set_grad_enabled"):
            recording = bool(node.args[0])
        elif switch:
            depth += 1 if _named(node.target, "_enter_autocast") else -1
        if switch and not inside:
            spans.append([])
        if switch or inside:
            spans[-1].append(node)
        inside = recording != graph.grad_enabled or depth > 0
    return spans


def is_switch(node: Node) -> bool:
    """Whether a node computes nothing but changes how what follows it is computed."""
    return any(_named(node.target, name) for name in ("_set_grad_enabled", "_enter_autocast", "_exit_autocast"))


def _named(target: str | Callable[..., Any], name: str) -> bool:
    return getattr(target, "__name__", "").startswith(name)
