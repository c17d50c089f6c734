"""The normal form, as checks that run: what every stage may rely on, and what a rewritten graph must still be.

Version 1. Raise the number when a check is added or made stricter.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from .describe import constant_tensor
from .graph import NormalGraph
from .nodes import operation
from .reasons import Reason

VERSION = 1

_PLAIN = frozenset({operator.getitem})

# Arithmetic on symbolic sizes, and the switches around no_grad and autocast regions.
_SWITCHES = ("sym_", "_set_grad_enabled", "_enter_autocast", "_exit_autocast")

# Spellings the retrace leaves no trace of; one of these means the graph is at another level.
_OTHER_LEVEL = frozenset({"_softmax", "native_layer_norm", "_unsafe_view", "_log_softmax", "convolution_backward"})


def check(graph: NormalGraph) -> list[Reason]:
    """Everything that is wrong with ``graph`` as a normal form; empty when it is one."""
    return [reason for rule in RULES for reason in rule(graph)]


def _reason(text: str, *nodes: Node) -> Reason:
    return Reason("not-normalised", text, tuple(node.name for node in nodes))


def one_output_last(graph: NormalGraph) -> list[Reason]:
    """There is one output node, and nothing after it."""
    outputs = graph.module.graph.find_nodes(op="output")
    last = next(reversed(graph.module.graph.nodes))
    return [] if len(outputs) == 1 and last is outputs[0] else [_reason("there is not one output at the end", last)]


def inputs_first_and_as_many(graph: NormalGraph) -> list[Reason]:
    """Placeholders come first: those of the graph Dynamo handed over by position, then the prepared ones."""
    found, computed = [], False
    for node in graph.module.graph.nodes:
        if node.op == "placeholder" and computed:
            found.append(_reason("an input stands after a computation", node))
        computed = computed or node.op != "placeholder"
    prepared = sum(len(nodes) for _, nodes in graph.facts.get("prepared", ()))
    ours, theirs = len(graph.placeholders), len(graph.source.graph.find_nodes(op="placeholder"))
    if ours != theirs + prepared:
        found.append(_reason(f"{ours} inputs stand for {theirs}"))
    return found


def only_operators(graph: NormalGraph) -> list[Reason]:
    """Computations are operators (ATen, our dialect, custom), higher-order ones, or arithmetic on sizes."""
    found = []
    for node in graph.module.graph.nodes:
        if node.op in ("call_method", "call_module"):
            found.append(_reason(f"{node.op} {node.target} is not an operator", node))
        elif node.op == "call_function" and not _allowed(node.target):
            found.append(_reason(f"{node.target} is not an operator", node))
    return found


def _allowed(target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload | torch._ops.HigherOrderOperator) or target in _PLAIN:
        return True
    name = getattr(target, "__name__", "")
    return getattr(target, "__module__", "") in ("_operator", "math") or name.startswith(_SWITCHES)


def one_level(graph: NormalGraph) -> list[Reason]:
    """No operator that only appears below pre-dispatch."""
    return [
        _reason(f"{node.target} belongs to a decomposed graph", node)
        for node in graph.module.graph.nodes
        if operation(node) in _OTHER_LEVEL
    ]


def values_are_known(graph: NormalGraph) -> list[Reason]:
    """Every input and every operator says what it computes, in ``meta["val"]``."""
    return [
        _reason("nothing is known about the value", node)
        for node in graph.module.graph.nodes
        if node.op in ("placeholder", "call_function") and node.users and "val" not in node.meta
    ]


def values_are_fake(graph: NormalGraph) -> list[Reason]:
    """No computed value holds memory, and all tensors belong to the graph's own fake mode."""
    found = []
    for node in graph.module.graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, Tensor):
            mode = getattr(value, "fake_mode", None)
            if mode is not graph.fake_mode:
                found.append(_reason("the value is real or belongs to another mode", node))
    return found


def constants_exist(graph: NormalGraph) -> list[Reason]:
    """Every ``get_attr`` names a real tensor, or a subgraph of a higher-order operator."""
    found = []
    for node in graph.module.graph.find_nodes(op="get_attr"):
        owner: Any = graph.module
        for part in str(node.target).split("."):
            owner = getattr(owner, part, None)
        fake = constant_tensor(node)
        if owner is None or (fake is not None and hasattr(fake, "fake_mode")):
            found.append(_reason(f"{node.target} names no real tensor", node))
    return found


def well_ordered(graph: NormalGraph) -> list[Reason]:
    """Every value is computed before it is read."""
    seen: set[Node] = set()
    found = []
    for node in graph.module.graph.nodes:
        if any(read not in seen for read in node.all_input_nodes):
            found.append(_reason("a value is read before it is computed", node))
        seen.add(node)
    return found


RULES: list[Callable[[NormalGraph], list[Reason]]] = [
    one_output_last,
    inputs_first_and_as_many,
    only_operators,
    one_level,
    values_are_known,
    values_are_fake,
    constants_exist,
    well_ordered,
]
