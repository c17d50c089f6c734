"""Loops unrolled into a graph, whatever their steps compute: found by what one step hands to the next.

A loop over time reads element ``t`` of some tensor in step ``t``. Every node is labelled with the latest element it
depends on; a value with label ``t`` read by one with label ``t + 1`` is carried. The carried values are a loop when
their producers, walked in lockstep over all steps, are one computation. Linear in the size of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, Node

from . import batched
from .joins import buffer_of
from .lift import MAXIMUM_DEPTH, flatten, names, piece_of, same
from .reasons import Reason

aten = torch.ops.aten

SHORTEST_LOOP = 3
"""Elements that must be read one after the other before it is called a loop."""
SHORTEST_REFUSAL = 8
"""A shorter run that is no loop is ordinary arithmetic, not worth a line in the report."""
_KEPT_LABELS = 12
"""Loops a node is remembered to depend on; older ones are over."""
_CANDIDATES = 8

Steps = tuple[Node, ...]


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


@dataclass(frozen=True)
class Refused:
    """Values handed from step to step that are no loop, and why."""

    states: frozenset[Node]
    reason: Reason


def find_loops(
    graph: Graph, claimed: Collection[Node], is_parameter: Callable[[Node], bool]
) -> Iterator[Loop | Refused]:
    """The loops none of whose states are in ``claimed``, and why long ones are none."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    groups = [group for group in _groups(graph, order, claimed) if len(group) >= SHORTEST_LOOP]
    if not groups:
        return
    labels, carried, skipping = _label(graph, groups)
    outcomes = []
    for number, group in enumerate(groups):
        rows = _rows(_sources(carried.get(number, {}), number, labels), len(group), order)
        if rows is not None and not any(node in claimed for row in rows for node in row):
            outcomes.append((len(group), rows, _loop(rows, number, len(group), labels, order)))
    # Longest first: a few steps of a loop that is refused as a whole are no loop of their own. One loop is seen through
    # every tensor its steps read; the view with the fewest values handed on, for the most steps, is taken.
    outcomes.sort(key=lambda item: (-item[0], _preference(item[2])))
    accepted: set[Node] = set()
    refused: list[tuple[set[Node], Reason]] = []
    blocked: set[Node] = set()
    waiting: set[Node] = set()
    longest = 0
    for length, rows, outcome in outcomes:
        if length < longest:
            blocked |= waiting
            waiting = set()
        longest = length
        states = {node for row in rows for node in row}
        if states & accepted or states & blocked:
            continue
        if isinstance(outcome, Loop):
            sources = [piece.source for steps in outcome.pieces if (piece := piece_of(steps[-1])) is not None]
            if not sources or all(is_parameter(source) for source in sources):
                continue  # steps that read nothing but their own weights are layers
            accepted |= outcome.interior
            if skipping & outcome.interior:
                text = f"{length} steps hand values on, but a step reads a state older than the one before it"
                yield Refused(outcome.interior, Reason("higher-order", text, names(rows[0])))
            else:
                yield outcome
        elif length >= SHORTEST_REFUSAL and not isinstance(outcome, _Nothing):
            # Seen through another tensor the same loop may be cut one operation further on.
            states = states.union(*(state.users for state in states), *(state.all_input_nodes for state in states))
            waiting |= states
            text = f"{length} steps hand values on, but are left as they are: {outcome.text}"
            refused.append((states, Reason(outcome.code, text, outcome.nodes)))
    told: set[Node] = set()
    for states, reason in refused:
        if not states & told and not states & accepted:
            told |= states
            yield Refused(frozenset(states), reason)


def _preference(outcome: Loop | Reason) -> tuple[int, ...]:
    if isinstance(outcome, Loop):
        return (0, len(outcome.states), -outcome.length)
    return (1, int(outcome.code == "irregular-steps"), 0)


class _Nothing(Reason):
    """Not even a near miss."""


def _groups(graph: Graph, order: dict[Node, int], claimed: Collection[Node]) -> list[list[list[tuple[Node, Node]]]]:
    """Runs of consecutive elements of one tensor along one axis: for each step the readings ``(piece, reader)`` of it.

    A run follows the order of reading, up or down the axis; a second loop over the same tensor is a second run.
    """
    readings: dict[object, list[tuple[int, int, Node, Node]]] = {}
    for node in graph.nodes:
        piece = piece_of(node)
        if piece is not None and node not in claimed:
            key = (piece.source, piece.dim)
            readings.setdefault(key, []).extend((order[user], piece.index, node, user) for user in node.users)
    groups = []
    for found in readings.values():
        run: list[list[tuple[Node, Node]]] = []
        last, stride = 0, 0
        for _, index, piece_node, user in sorted(found, key=lambda item: item[0]):
            if run and index == last:
                run[-1].append((piece_node, user))
                continue
            if run and abs(index - last) == 1 and stride in (0, index - last):
                stride = index - last
            elif run:
                groups.append(run)
                run, stride = [], 0
            run.append([(piece_node, user)])
            last = index
        groups.append(run)
    return groups


def _label(
    graph: Graph, groups: Sequence[Sequence[Sequence[tuple[Node, Node]]]]
) -> tuple[dict[Node, dict[int, int]], dict[int, dict[int, dict[Node, None]]], set[Node]]:
    """For each node the latest element of each run it depends on; what is carried over; who reads further back."""
    own: dict[Node, dict[int, int]] = {}
    for number, group in enumerate(groups):
        for position, readings in enumerate(group):
            for _, reader in readings:
                known = own.setdefault(reader, {})
                known[number] = max(position, known.get(number, 0))
    labels: dict[Node, dict[int, int]] = {}
    carried: dict[int, dict[int, dict[Node, None]]] = {}
    skipping: set[Node] = set()
    for node in graph.nodes:
        operands = [operand for operand in node.all_input_nodes if labels[operand]]
        if node not in own and len(operands) <= 1:
            labels[node] = labels[operands[0]] if operands else {}
        else:
            labels[node] = _merged(node, own.get(node, {}), operands, labels, carried, skipping)
    return labels, carried, skipping


def _merged(
    node: Node,
    own: dict[int, int],
    operands: Sequence[Node],
    labels: dict[Node, dict[int, int]],
    carried: dict[int, dict[int, dict[Node, None]]],
    skipping: set[Node],
) -> dict[int, int]:
    seen: dict[int, set[int]] = {number: {position} for number, position in own.items()}
    for operand in operands:
        for number, position in labels[operand].items():
            seen.setdefault(number, set()).add(position)
    merged: dict[int, int] = {}
    for number, positions in seen.items():
        if len(positions) <= 2 or len(operands) <= 3:
            merged[number] = max(positions)
        # Else values of many steps meet: the result is a value of none of them.
    if len(merged) > _KEPT_LABELS:
        merged = {number: merged[number] for number in sorted(merged)[-_KEPT_LABELS:]}
    buffer = buffer_of(node)
    for operand in operands:
        if operand is buffer:
            continue  # writing beside what earlier steps wrote is not reading it
        for number, position in labels[operand].items():
            latest = merged.get(number, position)
            if latest == position + 1:
                carried.setdefault(number, {}).setdefault(position, {})[operand] = None
            elif latest == position + 2:
                skipping.add(node)
    return merged


def _sources(
    carried: dict[int, dict[Node, None]], number: int, labels: dict[Node, dict[int, int]]
) -> dict[int, dict[Node, None]]:
    """What is computed from one value of the step alone is handed on as that value, as far back as in a middle step."""
    positions = sorted(carried)
    middle = carried[positions[len(positions) // 2]] if positions else {}
    known = [(_signature(node), len(_ancestors(node, number, labels, MAXIMUM_DEPTH))) for node in middle]
    result: dict[int, dict[Node, None]] = {}
    for position, nodes in carried.items():
        rest = list(known)
        result[position] = {}
        for node in nodes:
            match = next((item for item in rest if item[0] == _signature(node)), None)
            if match is not None:
                rest.remove(match)
                chain = _ancestors(node, number, labels, match[1])
                node = chain[-1] if chain else node
            result[position][node] = None
    return result


def _ancestors(node: Node, number: int, labels: dict[Node, dict[int, int]], most: int) -> list[Node]:
    """The values of the step that ``node`` is computed from one after the other, each from that one alone."""
    found: list[Node] = []
    while len(found) < most:
        read = [item for item in node.all_input_nodes if number in labels[item]]
        if len(read) != 1 or labels[node] is not labels[read[0]] or any(map(piece_of, node.all_input_nodes)):
            break
        (node,) = read
        found.append(node)
    return found


def _signature(node: Node) -> object:
    value = node.meta.get("val")
    return (node.target, tuple(value.shape), value.dtype) if isinstance(value, Tensor) else None


def _rows(carried: dict[int, dict[Node, None]], length: int, order: dict[Node, int]) -> list[Steps] | None:
    """What each step hands on, in matching order, over the longest stretch where it is of one kind; None: no loop."""
    steps = [sorted(carried.get(position, ()), key=order.__getitem__) for position in range(length - 1)]
    middle = [_signature(node) for node in steps[len(steps) // 2]]
    if not middle or None in middle or len(set(middle)) == 0:
        return None
    rows: list[Steps] = []
    for step in steps:
        matching = [node for node in step if _signature(node) in middle]
        if [_signature(node) for node in matching] != middle:
            matching = _picked(matching, middle)
        if not matching:
            if len(rows) >= 2:
                break
            rows = []
            continue
        rows.append(tuple(matching))
    return rows if len(rows) >= 2 else None


def _picked(nodes: Sequence[Node], wanted: Sequence[object]) -> list[Node]:
    """The first node of each wanted kind, in order; empty when one is missing."""
    found, rest = [], list(nodes)
    for signature in wanted:
        match = next((node for node in rest if _signature(node) == signature), None)
        if match is None:
            return []
        rest.remove(match)
        found.append(match)
    return found


def _loop(
    rows: list[Steps],
    number: int,
    length: int,
    labels: dict[Node, dict[int, int]],
    order: dict[Node, int],
) -> Loop | Reason:
    states = [tuple(column) for column in zip(*rows, strict=True)]

    def independent(node: Node) -> bool:
        return number not in labels[node]

    first: Loop | Reason = _Walk(states, independent).run()
    if not isinstance(first, Loop) and len(rows) > 2:
        # A first step may be written in another way than the rest: it starts from no state at all.
        again = _Walk([column[1:] for column in states], independent).run()
        first = again if isinstance(again, Loop) or first.code == "irregular-steps" else first
    if not isinstance(first, Loop):
        return first
    # The state after the last step is read by no further step, so it was not seen to be carried.
    final = [_next(column, states, number, length - 1, labels, independent, order) for column in first.states]
    if all(node is not None for node in final):
        longer = [(*column, node) for column, node in zip(first.states, final, strict=True) if node is not None]
        again = _Walk(longer, independent).run()
        first = again if isinstance(again, Loop) else first
    return first


def _next(
    column: Steps,
    states: Sequence[Steps],
    number: int,
    position: int,
    labels: dict[Node, dict[int, int]],
    independent: Callable[[Node], bool],
    order: dict[Node, int],
) -> Node | None:
    """The value that is to the last state of ``column`` what that is to the one before."""
    reached = dict.fromkeys(user for other in states for user in other[-1].users)
    wanted, tried = _signature(column[-1]), 0
    todo = sorted(reached, key=order.__getitem__)
    seen = set(todo)
    while todo and tried < 4096:
        node = todo.pop(0)
        tried += 1
        if _signature(node) == wanted and labels[node].get(number) == position:
            return node
        for user in node.users:
            if user not in seen and labels[user].get(number) == position:
                seen.add(user)
                todo.append(user)
    return None


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
            return _Nothing("irregular-steps", "a value is handed on but never read", names(self.states[0]))
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
        pieces = [piece_of(node) for node in steps]
        head = pieces[0]
        if head is None or any(
            piece is None or piece.source is not head.source or piece.dim != head.dim for piece in pieces
        ):
            return False
        indices = [piece.index for piece in pieces if piece is not None]
        stride = indices[1] - indices[0]
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
        rows = [flatten(node) for node in steps]
        if any(len(row) != len(rows[0]) for row in rows):
            return Reason("irregular-steps", "the steps are not the same computation", names(steps))
        operands: list[Steps] = []
        for column in zip(*rows, strict=True):
            nodes = [item for item in column if isinstance(item, Node)]
            if len(nodes) == len(column):
                operands.append(tuple(nodes))
            elif nodes or any(not same(item, column[0]) for item in column):
                return Reason("irregular-steps", "one step has another constant than the rest", names(steps))
        return operands
