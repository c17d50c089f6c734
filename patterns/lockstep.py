"""The same computation in every step of a loop: producers walked in lockstep, from the states down to what is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.fx import Node

from . import batched
from .lift import names, operand_columns
from .pieces import part_of
from .reasons import Reason

Steps = tuple[Node, ...]
"""One value per step, in time order."""


@dataclass(frozen=True)
class Loop:
    """``states[k][t]`` is carried value ``k`` after step ``t``, computed from ``initial`` and what the steps read.

    ``pieces`` are the elements read in each step, ``constants`` what every step reads; ``interior`` everything computed
    on the way from one state to the next, in all steps.
    """

    states: tuple[Steps, ...]
    initial: tuple[Node, ...]
    pieces: tuple[Steps, ...]
    constants: tuple[Node, ...]
    interior: frozenset[Node]

    @property
    def length(self) -> int:
        return len(self.states[0])

    def reading(self, step: int) -> tuple[Node, ...]:
        """Everything that ``step`` (not the first) computes its states from: the last states come first."""
        return (*(state[step - 1] for state in self.states), *(piece[step] for piece in self.pieces), *self.constants)


class Nothing(Reason):
    """Not even a near miss."""


def lockstep(states: Sequence[Steps], independent: Callable[[Node], bool]) -> Loop | Reason:
    """The loop that hands ``states`` on, or why its steps are not one computation.

    ``independent(node)`` says whether a node may be read as it is: it does not depend on the loop.
    """
    return _Walk(states, independent).run()


class _Walk:
    """The producers of the states of all steps, in lockstep, down to the states before and what the steps read."""

    def __init__(self, states: Sequence[Steps], independent: Callable[[Node], bool]) -> None:
        self.states = states
        self.independent = independent
        self.previous = {state[:-1]: index for index, state in enumerate(states)}
        self.initial: dict[int, Node] = {}
        self.pieces: dict[Steps, None] = {}
        self.constants: dict[Node, None] = {}
        self.interior: set[Node] = set()

    def run(self) -> Loop | Reason:
        todo = list(self.states)
        seen = set(todo)
        roots = set(todo)
        while todo:
            steps = todo.pop()
            if steps not in roots or steps[0] is steps[-1]:
                leaf = self._leaf(steps)
                if isinstance(leaf, Reason):
                    return leaf
                if leaf:
                    continue
            operands = self._operands(steps)
            if isinstance(operands, Reason):
                return operands
            self.interior.update(steps)
            for operand in operands:
                if operand not in seen:
                    seen.add(operand)
                    todo.append(operand)
        if len(self.initial) != len(self.states):
            return Nothing("irregular-steps", "a value is handed on but never read", names(self.states[0]))
        return Loop(
            tuple(self.states),
            tuple(self.initial[index] for index in range(len(self.states))),
            tuple(self.pieces),
            tuple(self.constants),
            frozenset(self.interior),
        )

    def _leaf(self, steps: Steps) -> bool | Reason:
        index = self.previous.get(steps[1:])
        if index is not None and steps[0] is not steps[1]:
            if self.initial.setdefault(index, steps[0]) is not steps[0]:
                return Reason("irregular-steps", "the first step starts from two values", names(steps))
            return True
        if all(node is steps[0] for node in steps):
            if not self.independent(steps[0]):
                return Reason("irregular-steps", f"every step reads {steps[0].name}, a value of the loop", names(steps))
            self.constants[steps[0]] = None
            return True
        if all(node.op == "get_attr" and node.target == steps[0].target for node in steps):
            self.constants[steps[0]] = None
            return True
        pieces = [part_of(node) for node in steps]
        head = pieces[0]
        if head is None or any(
            piece is None or (piece.source, piece.dim, piece.width) != (head.source, head.dim, head.width)
            for piece in pieces
        ):
            return False
        indices = [piece.index for piece in pieces if piece is not None]
        stride = indices[1] - indices[0]
        if stride == 0:
            return False
        if abs(stride) != 1 or any(b - a != stride for a, b in zip(indices, indices[1:], strict=False)):
            return Reason("irregular-steps", f"the steps do not read {head.source.name} in time order", names(steps))
        if not self.independent(head.source):
            return False
        self.pieces[steps] = None
        self.interior.update(steps)
        return True

    def _operands(self, steps: Steps) -> list[Steps] | Reason:
        first = steps[0]
        if any(
            node.op != "call_function" or node.target is not first.target or len(node.args) != len(first.args)
            for node in steps
        ):
            return Reason("irregular-steps", "the steps are not the same computation", names(steps))
        if not batched.is_repeatable(first.target):
            return Reason("unsupported-op", f"{first.target} may differ from step to step", names(steps))
        return operand_columns(steps, "irregular-steps")
