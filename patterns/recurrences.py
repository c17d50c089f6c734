"""Recurrence sites: loops whose states are no plain scan, unrolled into the graph or kept whole as one operator."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from .carried import Refused, find_loops
from .describe import description, outside_inputs, size_hint
from .gates import Gate, gate_of
from .graph import NormalGraph
from .lockstep import Loop
from .nodes import argument, operation
from .pieces import part_of
from .reasons import Reason
from .sites import Recurrence

_UNROLLED = {
    "nonlinear": "the state passes through a nonlinear operation",
    "dense": "the state is multiplied by a matrix",
    "delta": "the state is multiplied by a diagonal plus a matrix of rank one",
}


def unrolled_sites(
    graph: NormalGraph, order: dict[Node, int], claimed: Collection[Node]
) -> Iterator[Recurrence | Refused]:
    """Loops written out in the graph whose states are not in ``claimed``, proven affine or called nonlinear."""
    known: dict[object, Gate | Reason] = {}
    for loop in find_loops(graph.module.graph, claimed, graph.is_static):
        if isinstance(loop, Refused):
            yield loop
            continue
        outcome = _unrolled(loop, order, known)
        if outcome is not None:
            yield Refused(loop.interior, outcome) if isinstance(outcome, Reason) else outcome


def _unrolled(loop: Loop, order: dict[Node, int], known: dict[object, Gate | Reason]) -> Recurrence | Reason | None:
    interior = {node for node in loop.interior if node.op == "call_function"}
    inputs = outside_inputs(interior)
    states = tuple(state[-1] for state in loop.states)
    outputs = [node for node in sorted(interior) if any(user not in interior for user in node.users)]
    described = description(states[0], frozenset(interior), inputs, outputs or states)
    gate = known.get(described["fingerprint"])
    if gate is None:
        before = tuple(state[0] for state in loop.states)
        reads = loop.reading(1)[len(before) :]
        gate = gate_of(order, before, reads, tuple(state[1] for state in loop.states))
        known[described["fingerprint"]] = gate
    if isinstance(gate, Reason):
        text = f"{loop.length} steps hand values on, but are left as they are: {gate.text}"
        return Reason(gate.code, text, (states[0].name,))
    if gate.kind == "none" and not any(node in outputs for state in loop.states for node in state[:-1]):
        return None  # a sum of a few terms, of which only the last is read
    pieces = [piece for steps in loop.pieces if (piece := part_of(steps[0])) is not None]
    form = "loop over chunks" if any(piece.width > 1 for piece in pieces) else "loop"
    sources = [piece.source for piece in pieces]
    return Recurrence(
        id="",
        form=f"{form}, relative to a running maximum" if gate.stabilised else form,
        gate=gate.kind,
        states=states,
        initial=loop.initial,
        operands=tuple(dict.fromkeys((*sources, *loop.constants))),
        length=loop.length,
        obstacle=_obstacle(gate, states),
        **described,
    )


def _obstacle(gate: Gate, states: tuple[Node, ...]) -> Reason:
    names = tuple(node.name for node in states)
    if gate.kind == "nonlinear":
        return Reason("nonlinear-state", _UNROLLED["nonlinear"], names)
    what = _UNROLLED.get(gate.kind, f"a step with a {gate.kind} gate is spelled in a way no rewrite takes")
    if gate.stabilised:
        what = "the states are kept relative to a running maximum"
    return Reason("no-operator", f"{what}, and there is no operator for that yet", names)


def whole_sites(graph: NormalGraph, claimed: Collection[Node] = ()) -> Iterator[Recurrence | Reason]:
    """Operators that are a recurrence: ``scan``, ``associative_scan`` and ``while_loop``, and whole recurrent networks.

    Those in ``claimed`` belong to another site.
    """
    for node in graph.module.graph.nodes:
        if node.op != "call_function" or node in claimed:
            continue
        kind = _KINDS.get(getattr(node.target, "_name", ""))
        if kind is not None:
            yield kind(graph, node)
        elif operation(node) in _NETWORKS and node.target._overloadname == "input":
            yield _network(node)


def _body(graph: NormalGraph, name: Any) -> GraphModule | None:
    owner: Any = graph.module
    for part in str(getattr(name, "target", "")).split("."):
        owner = getattr(owner, part, None)
    return owner if isinstance(owner, GraphModule) else None


def _flat(value: Any) -> list[Node]:
    return [item for item in value if isinstance(item, Node)]


def _refused(node: Node, code: str, text: str) -> Reason:
    return Reason(code, f"{node.name} is left as it is: {text}", (node.name,))


def _scan(graph: NormalGraph, node: Node) -> Recurrence | Reason:
    """``scan(body, initial, xs, additional)``: ``body(*states, *elements, *additional) -> (*states, *outputs)``."""
    initial, operands, additional = (_flat(item) for item in node.args[1:4])
    value = operands[0].meta["val"] if operands else None
    length = size_hint(value.shape[0]) if isinstance(value, Tensor) else 0
    return _from_body(graph, node, node.args[0], initial, [*operands, *additional], length, "scan operator")


def _while_loop(graph: NormalGraph, node: Node) -> Recurrence | Reason:
    """``while_loop(condition, body, carried, additional)``: ``body(*carried, *additional) -> carried``."""
    initial, additional = (_flat(item) for item in node.args[2:4])
    return _from_body(graph, node, node.args[1], initial, additional, 0, "while_loop operator")


def _from_body(
    graph: NormalGraph, node: Node, name: Any, initial: list[Node], operands: list[Node], length: int, form: str
) -> Recurrence | Reason:
    body = _body(graph, name)
    if body is None:
        return _refused(node, "unsupported-op", "its body is not a graph")
    inputs = body.graph.find_nodes(op="placeholder")
    (output,) = body.graph.find_nodes(op="output")
    results: Any = output.args[0]
    before, after = inputs[: len(initial)], results[: len(initial)]
    if not before or not all(isinstance(item, Node) and "val" in item.meta for item in (*inputs, *after)):
        return _refused(node, "unsupported-op", "nothing is known about the values of its body")
    order = {item: index for index, item in enumerate(body.graph.nodes)}
    gate = gate_of(order, before, inputs[len(initial) :], after)
    if isinstance(gate, Reason):
        return _refused(node, gate.code, gate.text)
    return _whole(node, gate, initial, operands, length, form)


def _whole(node: Node, gate: Gate, initial: list[Node], operands: list[Node], length: int, form: str) -> Recurrence:
    parts = sorted(user for user in node.users if user.target is operator.getitem)
    outputs = tuple(part for part in parts if part.users) or (node,)
    obstacle = _obstacle(gate, (node,))
    if obstacle.code == "no-operator":
        obstacle = Reason("no-operator", f"{form} is one operator already and is left to it", (node.name,))
    return Recurrence(
        id="",
        form=form,
        gate=gate.kind,
        states=outputs,
        initial=tuple(initial),
        operands=tuple(operands),
        length=length,
        obstacle=obstacle,
        **description(node, frozenset({node, *parts}), (*initial, *operands), outputs),
    )


def _network(node: Node) -> Recurrence:
    """A whole network of recurrent cells in all its layers and directions, as ``torch.nn.LSTM`` calls it."""
    given = argument(node, "hx")
    initial = [given] if isinstance(given, Node) else _flat(given)
    value: Tensor = argument(node, "input").meta["val"]
    length = value.shape[1 if argument(node, "batch_first") and value.dim() > 2 else 0]
    read = [argument(node, "input"), *_flat(argument(node, "params"))]
    return _whole(node, Gate("nonlinear"), initial, read, size_hint(length), f"{operation(node)} operator")


def _associative_scan(graph: NormalGraph, node: Node) -> Recurrence | Reason:
    """``associative_scan(combine, xs, additional)``: a scan when combining composes affine maps ``(decay, input)``."""
    operands = _flat(node.args[1])
    body = _body(graph, node.args[0])
    if body is None:
        return _refused(node, "unsupported-op", "its body is not a graph")
    inputs = body.graph.find_nodes(op="placeholder")
    (output,) = body.graph.find_nodes(op="output")
    after: Any = output.args[0]
    number = len(operands)
    if not all("val" in item.meta for item in inputs) or not all(isinstance(item, Node) for item in after):
        return _refused(node, "unsupported-op", "nothing is known about the values of its body")
    order = {item: index for index, item in enumerate(body.graph.nodes)}
    # In h = combine(h, x) the left operand is the state: its pair of a product and a sum must be an affine map of it.
    gate = gate_of(order, inputs[:number], inputs[number:], after)
    if isinstance(gate, Reason):
        return _refused(node, gate.code, gate.text)
    length = size_hint(operands[0].meta["val"].shape[0]) if operands else 0
    return _whole(node, gate, [], operands, length, "associative_scan operator")


_NETWORKS = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_KINDS = {"scan": _scan, "while_loop": _while_loop, "associative_scan": _associative_scan}
