"""Loops unrolled into a graph, whatever their steps compute: found by what one step hands to the next.

A loop over time reads element ``t`` of some tensor in step ``t``. Every node is labelled with the latest element it
depends on; a value with label ``t`` read by one with label ``t + 1`` is carried. The carried values are a loop when
their producers, walked in lockstep over all steps, are one computation. Linear in the size of the graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Graph, Node

from .describe import expression
from .joins import buffer_of
from .lift import MAXIMUM_DEPTH, names
from .lockstep import Loop, Nothing, Steps, lockstep
from .nodes import operation
from .pieces import part_of
from .reasons import Reason

SHORTEST_LOOP = 3
"""Elements that must be read one after the other before it is called a loop."""
SHORTEST_REFUSAL = 8
"""A shorter run that is no loop is ordinary arithmetic, not worth a line in the report."""
_LARGEST_STEP = 4096
"""Nodes among which the states after the last step are looked for."""
_KEPT_LABELS = 12
"""Loops a node is remembered to depend on; older ones are over."""


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
    # every tensor its steps read; the view with the fewest values handed on, for the most steps, is taken, and of those
    # the one in which they are handed on last, when the step is complete.
    outcomes.sort(key=lambda item: (-item[0], _preference(item[2], order)))
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
            sources = [piece.source for steps in outcome.pieces if (piece := part_of(steps[-1])) is not None]
            if not sources or all(is_parameter(source) for source in sources):
                continue  # steps that read nothing but their own weights are layers
            accepted |= outcome.interior
            if skipping & outcome.interior:
                text = f"{length} steps hand values on, but a step reads a state older than the one before it"
                yield Refused(outcome.interior, Reason("higher-order", text, names(rows[0])))
            else:
                yield outcome
        elif length >= SHORTEST_REFUSAL and not isinstance(outcome, Nothing):
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


def _preference(outcome: Loop | Reason, order: dict[Node, int]) -> tuple[int, ...]:
    if isinstance(outcome, Loop):
        return (0, len(outcome.states), -outcome.length, -sum(order[state[1]] for state in outcome.states))
    return (1, int(outcome.code == "irregular-steps"), 0, 0)


def _groups(graph: Graph, order: dict[Node, int], claimed: Collection[Node]) -> list[list[list[tuple[Node, Node]]]]:
    """Runs of consecutive elements of one tensor along one axis: for each step the readings ``(piece, reader)`` of it.

    A run follows the order of reading, up or down the axis; a second loop over the same tensor is a second run.
    """
    readings: dict[object, list[tuple[int, int, Node, Node]]] = {}
    for node in graph.nodes:
        piece = part_of(node)
        if piece is not None and node not in claimed:
            key = (piece.source, piece.dim, piece.width)
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
        if len(positions) <= 2 or (len(operands) <= 3 and operation(node) not in ("cat", "stack")):
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
        if len(read) != 1 or labels[node][number] != labels[read[0]][number] or any(map(part_of, node.all_input_nodes)):
            break
        (node,) = read
        found.append(node)
    return found


def _signature(node: Node) -> object:
    value = node.meta.get("val")
    return (node.target, tuple(map(expression, value.shape)), value.dtype) if isinstance(value, Tensor) else None


def _rows(carried: dict[int, dict[Node, None]], length: int, order: dict[Node, int]) -> list[Steps] | None:
    """What each step hands on, in matching order, over the longest stretch where it is of one kind; None: no loop."""
    steps = [sorted(carried.get(position, ()), key=order.__getitem__) for position in range(length - 1)]
    middle = [_signature(node) for node in steps[len(steps) // 2]]
    if not middle or None in middle:
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

    first: Loop | Reason = lockstep(states, independent)
    if not isinstance(first, Loop) and len(rows) > 2:
        # The first step may be written in another way than the rest: it starts from no state at all. The last one too:
        # it may be the rest of what is cut into chunks.
        without_first, without_last = (
            lockstep([column[part] for column in states], independent) for part in (slice(1, None), slice(None, -1))
        )
        if isinstance(without_first, Loop) or not isinstance(without_last, Loop):
            first = without_first if isinstance(without_first, Loop) or first.code == "irregular-steps" else first
        else:
            first = without_last
    if not isinstance(first, Loop):
        return first
    # The state after the last step is read by no further step, so it was not seen to be carried.
    final = _after(first.states, number, length - 1, labels, order)
    if final is not None:
        longer = [(*column, node) for column, node in zip(first.states, final, strict=True)]
        again = lockstep(longer, independent)
        first = again if isinstance(again, Loop) else first
    return first


def _after(
    states: Sequence[Steps], number: int, position: int, labels: dict[Node, dict[int, int]], order: dict[Node, int]
) -> list[Node] | None:
    """What the step at ``position`` makes of the last ``states``, as these were made of the ones before them.

    The steps compute the same things in the same order, so a state is as many-th of its kind in one step as in another.
    """
    before = _reached([column[-2] for column in states], number, position - 1, labels, order)
    after = _reached([column[-1] for column in states], number, position, labels, order)
    found = []
    for column in states:
        alike, new = before.get(_signature(column[-1]), []), after.get(_signature(column[-1]), [])
        place = alike.index(column[-1]) if column[-1] in alike else len(new)
        if place >= len(new):
            return None
        found.append(new[place])
    return found


def _reached(
    states: Sequence[Node], number: int, position: int, labels: dict[Node, dict[int, int]], order: dict[Node, int]
) -> dict[object, list[Node]]:
    """What is computed from ``states`` within one step, by kind, in graph order."""
    todo = deque(dict.fromkeys(user for state in states for user in state.users))
    seen = set(todo)
    found: dict[object, list[Node]] = {}
    while todo and len(seen) < _LARGEST_STEP:
        node = todo.popleft()
        label = labels[node].get(number)
        if label == position:
            found.setdefault(_signature(node), []).append(node)
        if label in (position - 1, position):
            todo.extend(user for user in node.users if user not in seen)
            seen.update(node.users)
    return {kind: sorted(nodes, key=order.__getitem__) for kind, nodes in found.items()}
