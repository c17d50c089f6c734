"""Scan sites spelled as loops: a chain of steps, what its steps read, and what is made of its states."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from . import batched
from .chains import Step, alternatives, gate_kind
from .describe import description
from .joins import Join, find_joins
from .lift import Lifter, Value
from .pieces import piece_of
from .reasons import Reason
from .recurrence import operands, recurrence
from .sites import Scan

aten = torch.ops.aten

_ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}


class Influence:
    """Which chains each node depends on, as bit masks over all chains of a graph. One pass.

    ``written`` are the nodes whose memory is changed in place somewhere.
    """

    def __init__(self, graph: Graph, chains: Sequence[Sequence[Step]], written: Collection[Node] = ()) -> None:
        self.written = written
        own = {step.state: 1 << index for index, chain in enumerate(chains) for step in chain}
        self.order = {node: index for index, node in enumerate(graph.nodes)}
        self._masks: dict[Node, int] = {}
        per_step: dict[Node, int] = {}
        self.joins: dict[int, list[Join]] = {}
        joins = find_joins(graph)
        for node in graph.nodes:
            mask = step_mask = own.get(node, 0)
            for operand in node.all_input_nodes:
                mask |= self._masks[operand]
                step_mask |= per_step[operand]
            if step_mask and node in joins:
                # Where values of many steps meet: they are no longer values of one step.
                for index in _bits(step_mask):
                    self.joins.setdefault(index, []).append(joins[node])
                step_mask = 0
            self._masks[node], per_step[node] = mask, step_mask

    def depends(self, node: Node, chain: int) -> bool:
        """Whether ``node`` is computed from a state of ``chain``."""
        return bool(self._masks[node] >> chain & 1)


def _bits(mask: int) -> list[int]:
    return [index for index in range(mask.bit_length()) if mask >> index & 1]


def loop_site(index: int, chain: Sequence[Step], influence: Influence) -> Scan | Reason:
    """The site of one chain, unproven: its program rebuilds the states from stacked operands in a few calls."""
    failure: Reason | None = None
    for skipped in range(2):  # a decay that is itself affine can pass for a step before the first one
        steps = list(chain[skipped:])
        if len(steps) < 2:
            break
        for first in (steps[0], *alternatives(steps[0])):
            builder = _Builder(index, [first, *steps[1:]], influence)
            site = builder.build()
            if isinstance(site, Scan):
                return site
            failure = failure or site
    return failure or Reason("not-proven", "too few steps", (chain[0].state.name,))


class _Builder:
    def __init__(self, index: int, steps: list[Step], influence: Influence) -> None:
        self.index = index
        self.steps = steps
        self.influence = influence

    def build(self) -> Scan | Reason:
        steps = self.steps
        if any(step.subtract != steps[0].subtract for step in steps):
            return Reason("not-proven", "the steps are not the same computation", (steps[0].state.name,))
        shape = steps[0].state.meta["val"].shape
        if any(step.state.meta["val"].shape != shape for step in steps):
            return Reason("unsupported-shape", "the state changes its shape between steps", (steps[0].state.name,))
        if self.influence.depends(steps[0].previous, self.index):
            return Reason("not-proven", "the first state depends on later ones", (steps[0].state.name,))
        outcome = self._program(reverse=False)
        if isinstance(outcome, Reason):
            return outcome
        program, lifter, last = outcome
        if lifter.strides and all(stride < 0 for stride in lifter.strides):
            again = self._program(reverse=True)
            if not isinstance(again, Reason):
                program, lifter, last = again
                return self._site(program, lifter, last, reverse=True)
        return self._site(program, lifter, last, reverse=False)

    def _program(self, *, reverse: bool) -> tuple[Graph, Lifter, Value] | Reason:
        """The program up to its stacked states, in time order (``reverse``: the chain runs against it)."""
        steps = self.steps[::-1] if reverse else self.steps
        program = Graph()
        lifter = Lifter(program, lambda node: not self.influence.depends(node, self.index))
        decay = _operand(lifter, [step.decay for step in steps])
        if isinstance(decay, Reason):
            return decay
        input = _operand(lifter, [step.input for step in steps])
        if isinstance(input, Reason):
            return input
        if not any(isinstance(value, Value) and value.lifted for value in (decay, input)):
            return Reason("not-proven", "no step reads anything of its own", (steps[0].state.name,))
        state: Tensor = steps[0].state.meta["val"]
        initial = lifter.placeholder(self.steps[0].previous) if self._has_initial() else None
        if steps[0].subtract:
            input = (
                replace(input, node=lifter.call(aten.neg.default, input.node)) if isinstance(input, Value) else -input
            )
        values = [value.node if isinstance(value, Value) else value for value in (decay, input)]
        stacked = tuple(isinstance(value, Value) and value.lifted for value in (decay, input))
        ready = lifter.call(operands, *values, initial, stacked, state.dim(), len(steps), state.dtype)
        parts = [lifter.call(batched.part, ready, position) for position in range(3)]
        states = lifter.call(recurrence, *parts, 0, reverse)
        value = Value(states, True, state.dim())
        lifter.stacked = value
        lifter.states = {step.state: position for position, step in enumerate(steps)}
        return program, lifter, value

    def _has_initial(self) -> bool:
        first = self.steps[0]
        if first.previous.target not in _ZEROS or first.previous in self.influence.written:
            return True
        # Zeros may be left out unless their shape is what makes the state as large as it is.
        parts = [value.meta["val"].shape for value in (first.decay, first.input) if isinstance(value, Node)]
        return torch.broadcast_shapes(*parts) != first.state.meta["val"].shape

    def _site(self, program: Graph, lifter: Lifter, states: Value, *, reverse: bool) -> Scan | Reason:
        interior = {node for step in self.steps for node in step.interior}
        outputs: list[Node] = []
        results: list[Node] = []
        refused: list[Reason] = []
        for join in self.influence.joins.get(self.index, ()):
            result = self._join(lifter, join)
            if isinstance(result, Reason):
                refused.append(result)
            else:
                outputs.append(join.node)
                results.append(result)
                interior.update(join.passed)
        interior |= lifter.visited | set(outputs)
        alone = self._still_read(interior, set(outputs))
        for state, position in alone:
            outputs.append(state)
            results.append(lifter.call(aten.select.int, states.node, 0, position))
        if not outputs:
            return Reason("not-proven", "no state is read", (self.steps[-1].state.name,))
        program.output(tuple(results))
        program.eliminate_dead_code()
        module = GraphModule(torch.nn.Module(), program)
        module.meta["laconic.time"] = {leaf.source: leaf.dim for leaf in lifter.leaves}
        module.meta["laconic.state"] = self.steps[0].state.meta["val"]
        sources = {copy: node for node, copy in lifter.placeholders.items()}
        inputs = tuple(sources[node] for node in program.find_nodes(op="placeholder"))
        anchor = self.steps[-1].state
        piece = {id(leaf.source): leaf.dim for leaf in lifter.leaves}
        decay, input = (_shown(getattr(self.steps[0], name)) for name in ("decay", "input"))
        return Scan(
            id="",
            form="loop" if len(alone) <= 1 and not refused else "loop, states read one by one",
            decay=decay or anchor,
            input=input or anchor,
            initial=self.steps[0].previous if self._has_initial() else None,
            dim=piece.get(id(input), piece.get(id(decay), 0)),
            reverse=reverse,
            length=len(self.steps),
            program=module,
            unfolded=tuple(refused),
            gate=gate_kind(self.steps[0].decay, self.steps[0].state.meta["val"].dim()),
            **description(anchor, frozenset(interior), inputs, outputs),
        )

    def _join(self, lifter: Lifter, join: Join) -> Node | Reason:
        """Values of all steps side by side, as a value of the program."""
        elements = list(join.elements)
        ends: dict[str, Node] = {}
        if len(elements) > 2 and not self.influence.depends(elements[0], self.index):
            ends["first"] = elements.pop(0)
        elif len(elements) > 2 and not self.influence.depends(elements[-1], self.index):
            ends["last"] = elements.pop()
        value = lifter.lift(elements)
        if isinstance(value, Reason):
            return value
        if not value.lifted:
            return Reason("not-proven", "the joined values are one value", (join.node.name,))
        if any(element.meta["val"].shape != elements[0].meta["val"].shape for element in elements):
            return Reason("unsupported-shape", "the joined values differ in shape", (join.node.name,))
        rest = {name: lifter.placeholder(node) for name, node in ends.items()}
        function: Callable[..., Any] = batched.stack if join.stacked else batched.concatenate
        return lifter.call(function, value.node, join.dim, **rest)

    def _still_read(self, interior: set[Node], replaced: set[Node]) -> list[tuple[Node, int]]:
        """The states that something outside reads, with their positions in time."""
        position = {step.state: index for index, step in enumerate(self.steps)}
        alive: set[Node] = set()
        found = []
        for node in sorted(interior, key=self.influence.order.__getitem__, reverse=True):
            if node in replaced:
                continue
            if all(user in interior and user not in alive for user in node.users):
                continue
            if node in position:
                found.append(node)  # replaced by its place in the stack: what computed it may go
            else:
                alive.add(node)
        return [(node, position[node]) for node in reversed(found)]


def _operand(lifter: Lifter, column: list[Any]) -> Value | float | Reason:
    if all(isinstance(item, Node) for item in column):
        return lifter.lift(column)
    if any(isinstance(item, Node) for item in column) or any(item != column[0] for item in column):
        return Reason("not-proven", "one step has another constant than the rest")
    return column[0]


def _shown(node: Any) -> Node | None:
    """The tensor behind a step's operand, for the report: what it is a piece of, else itself."""
    if not isinstance(node, Node):
        return None
    piece = piece_of(node)
    return piece.source if piece is not None else node
