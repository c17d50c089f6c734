"""Lifting: the same computation written once per step becomes one computation over a stacked time axis.

Given the values ``y_0 ... y_{n-1}`` of ``n`` steps, walk their producers in lockstep. Where all steps read one value it
is a constant; where step ``t`` reads element ``t`` of a tensor, that tensor is a leaf; where all steps apply one
operator to lifted operands, the operator is applied once with a leading time axis. The result is a small program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.node import map_arg

from . import batched
from .pieces import Piece, piece_of
from .reasons import Reason

aten = torch.ops.aten

MAXIMUM_DEPTH = 64
"""Operators between a step's value and its leaves. A deeper step is refused: lifting stays linear in the graph."""


@dataclass(frozen=True)
class Value:
    """A value of the program: its node, whether axis 0 is time, and its rank in one step (None: not a tensor)."""

    node: Node
    lifted: bool
    rank: int | None


class Lifter:
    """Builds one program from lockstep walks over the steps of one graph.

    ``independent(node)`` says whether a node may be read as it is (it does not depend on what is being replaced).
    ``states`` are the values that are already stacked: node -> time index in ``stacked`` (a value of the program).
    """

    def __init__(self, program: Graph, independent: Callable[[Node], bool]) -> None:
        self.program = program
        self.independent = independent
        self.states: dict[Node, int] = {}
        self.stacked: Value | None = None
        self.placeholders: dict[Node, Node] = {}
        self.visited: set[Node] = set()
        self.leaves: list[Piece] = []
        self.strides: list[int] = []
        self._memo: dict[tuple[Node, ...], Value | Reason] = {}

    def placeholder(self, node: Node) -> Node:
        """The program's input that stands for a node of the graph. Inputs come before everything else."""
        if node not in self.placeholders:
            first = next(iter(self.program.nodes), None)
            if first is None:
                self.placeholders[node] = self.program.placeholder(node.name)
            else:
                with self.program.inserting_before(first):
                    self.placeholders[node] = self.program.placeholder(node.name)
        return self.placeholders[node]

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """A call in the program."""
        return self.program.call_function(function, args, kwargs)

    def lift(self, nodes: Sequence[Node]) -> Value | Reason:
        """The stacked value of one value per step, with time as axis 0, or why the steps cannot be stacked."""
        # Depth first with an explicit stack: (steps, depth, whether the operands have been lifted).
        root = tuple(nodes)
        todo: list[tuple[tuple[Node, ...], int, bool]] = [(root, 0, False)]
        while todo:
            steps, depth, ready = todo.pop()
            if steps in self._memo and not ready:
                continue
            if not ready:
                leaf = self._leaf(steps)
                if leaf is not None:
                    self._memo[steps] = leaf
                    continue
                operands = self._operands(steps)
                if isinstance(operands, Reason) or depth >= MAXIMUM_DEPTH:
                    self._memo[steps] = (
                        operands
                        if isinstance(operands, Reason)
                        else Reason(
                            "unsupported-shape", f"a step is deeper than {MAXIMUM_DEPTH} operators", names(steps)
                        )
                    )
                    return self._fail(root, self._memo[steps])
                todo.append((steps, depth, True))
                todo.extend((operand, depth + 1, False) for operand in operands)
                continue
            value = self._apply(steps)
            self._memo[steps] = value
            if isinstance(value, Reason):
                return self._fail(root, value)
        return self._memo[root]

    def _fail(self, root: tuple[Node, ...], reason: Value | Reason) -> Value | Reason:
        self._memo[root] = reason
        return reason

    def _leaf(self, steps: tuple[Node, ...]) -> Value | Reason | None:
        first = steps[0]
        if all(node is first for node in steps):
            if not self.independent(first):
                return Reason("not-proven", f"every step reads {first.name}, which depends on the steps", (first.name,))
            value = first.meta.get("val")
            return Value(self.placeholder(first), False, value.dim() if isinstance(value, Tensor) else None)
        if first in self.states and self.stacked is not None:
            indices = [self.states.get(node, -1) for node in steps]
            stride = _stride(indices)
            if -1 in indices or stride is None:
                return Reason("not-proven", "the states are not read in time order", names(steps))
            node = self.call(batched.take, self.stacked.node, 0, indices[0], stride, len(steps), False)
            return Value(node, True, first.meta["val"].dim())
        pieces = [piece_of(node) for node in steps]
        head = pieces[0]
        if head is None or any(
            piece is None or piece.source is not head.source or piece.dim != head.dim or piece.keep != head.keep
            for piece in pieces
        ):
            return None
        stride = _stride([piece.index for piece in pieces if piece is not None])
        if stride is None:
            return Reason("not-proven", f"the steps do not read {head.source.name} in time order", names(steps))
        if not self.independent(head.source):
            return Reason(
                "not-proven", f"the steps read {head.source.name}, which depends on them", (head.source.name,)
            )
        self.visited.update(steps)
        self.leaves.append(head)
        self.strides.append(stride)
        source = self.placeholder(head.source)
        node = self.call(batched.take, source, head.dim, head.index, stride, len(steps), head.keep)
        return Value(node, True, first.meta["val"].dim())

    def _operands(self, steps: tuple[Node, ...]) -> list[tuple[Node, ...]] | Reason:
        """The operands of each step's operator, transposed: one tuple of steps per operand."""
        first = steps[0]
        if first.op != "call_function" or any(
            node.op != "call_function" or node.target is not first.target or len(node.args) != len(first.args)
            for node in steps
        ):
            return Reason("not-proven", "the steps are not the same computation", names(steps))
        return operand_columns(steps, "not-proven")

    def _apply(self, steps: tuple[Node, ...]) -> Value | Reason:
        first = steps[0]
        columns = {
            id(row[0]): tuple(row)
            for row in zip(*([item for item in flatten(node) if isinstance(item, Node)] for node in steps), strict=True)
        }
        values: dict[Node, Value] = {}
        for row in columns.values():
            value = self._memo[row]
            if isinstance(value, Reason):
                return value
            if values.setdefault(row[0], value) is not value:
                return Reason("not-proven", "an operand has two roles in different steps", names(steps))
        if not any(value.lifted for value in values.values()):
            # The same thing computed anew in every step: once is enough, if twice is the same.
            if not batched.is_repeatable(first.target) or not self.independent(first):
                return Reason("unsupported-op", f"{first.target} may differ from step to step", names(steps))
            self.visited.update(steps)
            meta = first.meta.get("val")
            rank = meta.dim() if isinstance(meta, Tensor) else None
            args, kwargs = map_arg((first.args, first.kwargs), lambda operand: values[operand].node)
            return Value(self.program.call_function(first.target, args, kwargs), False, rank)  # type: ignore[arg-type]
        if not batched.has_rule(first.target):
            return Reason("unsupported-op", f"{first.target} has no form with a time axis", names(steps))
        self.visited.update(steps)
        call = batched.rule(first, values, len(steps))
        if isinstance(call, Reason):
            return call
        function, args, kwargs = call
        meta = first.meta.get("val")
        return Value(self.call(function, *args, **kwargs), True, meta.dim() if isinstance(meta, Tensor) else None)


def operand_columns(steps: Sequence[Node], code: str) -> list[tuple[Node, ...]] | Reason:
    """The operands of steps that apply one operator, transposed, or a reason with ``code`` when a constant differs."""
    rows = [flatten(node) for node in steps]
    if any(len(row) != len(rows[0]) for row in rows):
        return Reason(code, "the steps are not the same computation", names(steps))
    operands: list[tuple[Node, ...]] = []
    for column in zip(*rows, strict=True):
        nodes = [item for item in column if isinstance(item, Node)]
        if len(nodes) == len(column):
            operands.append(tuple(nodes))
        elif nodes or any(not same(item, column[0]) for item in column):
            return Reason(code, "one step has another constant than the rest", names(steps))
    return operands


def flatten(node: Node) -> list[Any]:
    """Arguments in order, lists opened: what must agree between steps is then a flat list."""
    flat: list[Any] = []
    for item in (*node.args, *node.kwargs.values()):
        if isinstance(item, list | tuple):
            flat.append(len(item))
            flat.extend(item)
        else:
            flat.append(item)
    return flat


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a is b or bool(statically_known_true(a == b) if _symbolic(a) else a == b))


def _symbolic(value: Any) -> bool:
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)


def names(steps: Sequence[Node]) -> tuple[str, ...]:
    return tuple(node.name for node in (*steps[:2], *steps[-1:]))


def _stride(indices: Sequence[int]) -> int | None:
    """The constant step of an arithmetic progression, if it is one (1 for a single index)."""
    if len(indices) == 1:
        return 1
    stride = indices[1] - indices[0]
    if stride == 0 or any(b - a != stride for a, b in zip(indices, indices[1:], strict=False)):
        return None
    return stride
