"""Scan sites of the ``scan`` operator: a body that computes one step becomes one computation over all steps."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from . import batched
from .chains import Step, gate_kind, readings, unwrap
from .describe import description
from .lift import Value
from .recurrence import operands, recurrence
from .sites import Scan
from .trial import attribute

aten = torch.ops.aten


def operator_sites(graph: Graph) -> Iterator[Scan]:
    """The sites of the graph's ``scan`` operators that carry one value ``h_t = decay_t * h_{t-1} + input_t``, unproven.

    ``scan(body, initial, xs, additional)``: ``body(*states, *elements, *additional) -> (*states, *results)``.
    """
    for node in graph.nodes:
        if node.op == "call_function" and getattr(node.target, "_name", "") == "scan":
            site = _site(node)
            if site is not None:
                yield site


def _site(node: Node) -> Scan | None:
    body: Any = attribute(node.args[0])
    arguments: Any = node.args[1:4]
    (initial, *others), elements, additional = map(list, arguments)
    read = [initial, *elements, *additional]
    if others or not elements or not isinstance(body, GraphModule) or not all(isinstance(item, Node) for item in read):
        return None
    length = elements[0].meta["val"].shape[0]
    state: Tensor = initial.meta["val"]
    inputs = body.graph.find_nodes(op="placeholder")
    (output,) = body.graph.find_nodes(op="output")
    results: Any = output.args[0]
    if not isinstance(length, int) or not all(isinstance(item, Node) for item in results):
        return None
    step = _step(results[0], inputs[0])
    if step is None:
        return None
    program = Graph()
    copies = {item: program.placeholder(item.name) for item in dict.fromkeys(read)}
    steps = _AllSteps(program, length)
    for place, (inside, outside) in enumerate(zip(inputs[1:], read[1:], strict=True)):
        steps.values[inside] = Value(copies[outside], place < len(elements), inside.meta["val"].dim())
    steps.run(body.graph)
    parts: list[Any] = [steps.values.get(part) if isinstance(part, Node) else part for part in (step.decay, step.input)]
    if any(part is None for part in parts):
        return None  # it depends on the state
    decay, input = (part.node if isinstance(part, Value) else part for part in parts)
    if step.subtract:
        input = steps.call(aten.neg.default, input) if isinstance(input, Node) else -input
    stacked = tuple(isinstance(part, Value) and part.lifted for part in parts)
    ready = steps.call(operands, decay, input, copies[initial], stacked, state.dim(), length, state.dtype)
    aligned = [steps.call(batched.part, ready, place) for place in range(3)]
    states = steps.call(recurrence, *aligned, 0, False)
    steps.values[step.state] = Value(states, True, state.dim())
    steps.values[inputs[0]] = Value(steps.call(before, states, copies[initial]), True, state.dim())
    steps.run(body.graph)
    outputs = sorted(user for user in node.users if user.target is operator.getitem and user.users)
    made: list[Any] = []
    for item in outputs:
        number: Any = item.args[1]
        value = steps.values.get(results[number])
        if value is None or not value.lifted:
            return None
        made.append(value.node if number else steps.call(aten.select.int, value.node, 0, -1))
    if not outputs:
        return None
    program.output(tuple(made))
    program.eliminate_dead_code()
    module = GraphModule(torch.nn.Module(), program)
    module.meta["laconic.time"] = dict.fromkeys(elements, 0)
    module.meta["laconic.state"] = state
    sources = {copy: item for item, copy in copies.items()}
    used = tuple(sources[item] for item in program.find_nodes(op="placeholder"))
    shown = dict(zip(inputs, read, strict=True))
    first, second = (shown.get(unwrap(part)[0], elements[0]) for part in (step.decay, step.input))
    interior = frozenset({node, *(user for user in node.users if user.target is operator.getitem)})
    return Scan(
        id="",
        form="scan operator",
        decay=first,
        input=second,
        initial=initial,
        dim=0,
        length=length,
        program=module,
        gate=gate_kind(step.decay, state.dim()),
        **description(node, interior, used, outputs),
    )


def _step(result: Node, previous: Node) -> Step | None:
    """The affine step that makes the next state ``result``, if one is plain to see."""
    for step in readings(unwrap(result)[0]):
        if step.previous is previous:
            return step
    return None


def before(states: Tensor, initial: Tensor) -> Tensor:
    """The state before each step, from those after it ``[length, ...]``."""
    return torch.cat([initial.to(states.dtype).expand(states.shape[1:]).unsqueeze(0), states[:-1]])


class _AllSteps:
    """What the body computes, for all steps at once, as far as it is known from ``values``."""

    def __init__(self, program: Graph, length: int) -> None:
        self.program = program
        self.length = length
        self.values: dict[Node, Value] = {}

    def call(self, function: Any, *args: Any) -> Node:
        return self.program.call_function(function, args)

    def run(self, graph: Graph) -> None:
        for node in graph.nodes:
            read = node.all_input_nodes
            if node.op != "call_function" or node in self.values or any(item not in self.values for item in read):
                continue
            made = node.meta.get("val")
            rank = made.dim() if isinstance(made, Tensor) else None
            if not any(self.values[item].lifted for item in read):
                if batched.is_repeatable(node.target):
                    args, kwargs = map_arg((node.args, node.kwargs), lambda item: self.values[item].node)
                    target: Any = node.target
                    self.values[node] = Value(self.program.call_function(target, args, kwargs), False, rank)
            elif batched.has_rule(node.target):
                call = batched.rule(node, {item: self.values[item] for item in read}, self.length)
                if isinstance(call, tuple):
                    self.values[node] = Value(self.program.call_function(*call), True, rank)
