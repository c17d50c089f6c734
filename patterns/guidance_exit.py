"""Both ends of guidance: a value held twice in one batch, and ``u + s * (c - u)`` of two halves, in any spelling."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from .describe import ordered, same, shape_of, size_hint
from .evaluate import concretely, run
from .nodes import CASTS, COPIES, RESHAPES, argument, dimension, mutates, operation, scalar, tensor

_ARITHMETIC = CASTS | COPIES | {"add", "sub", "rsub", "mul", "div", "neg", "lerp", "addcmul", "true_divide"}
_LONGEST = 16
"""Operations between the halves and their combination, at most."""


@dataclass(frozen=True, eq=False)
class Exit:
    """``output = u + s * (c - u)``; ``halves`` are the two halves of ``result`` in order, ``conditional`` which is c.

    ``s = offset + factor * scale``; ``scale`` is a number (then ``s`` itself) or a node. ``interior`` is what lies
    between the halves and the output, with the halves.
    """

    output: Node
    halves: tuple[Node, Node]
    result: Node
    conditional: int
    scale: float | Node
    factor: float
    offset: float
    interior: frozenset[Node]


def half(node: Node) -> tuple[Node, int, int] | None:
    """``(whole, axis, index)`` when ``node`` is the first or second half of ``whole`` along an axis."""
    name = operation(node)
    if name == "slice":
        whole = node.args[0]
        return _sliced(node, whole) if isinstance(whole, Node) else None
    if node.target is operator.getitem and isinstance(node.args[0], Node) and isinstance(node.args[1], int):
        parts, index = node.args[0], node.args[1]
        if operation(parts) not in ("chunk", "split", "split_with_sizes", "tensor_split", "unbind"):
            return None
        values: Any = parts.meta.get("val")
        source: Any = parts.args[0]
        if len(values) != 2 or not all(map(same, values[0].shape, values[1].shape)):
            return None
        index %= 2
        if operation(parts) == "unbind":
            return _folded(source, dimension(argument(parts, "dim"), len(shape_of(source))), index)
        return source, dimension(argument(parts, "dim"), len(shape_of(source))), index
    if name == "select" and isinstance(node.args[0], Node) and isinstance(node.args[2], int):
        source = node.args[0]
        axis = dimension(argument(node, "dim"), len(shape_of(source)))
        if same(shape_of(source)[axis], 2):
            return _folded(source, axis, node.args[2] % 2)
    return None


def _sliced(node: Node, whole: Node) -> tuple[Node, int, int] | None:
    sizes = shape_of(whole)
    axis = dimension(argument(node, "dim"), len(sizes))
    size = shape_of(node)[axis]
    if argument(node, "step") != 1 or not same(sizes[axis], 2 * size):
        return None
    start = argument(node, "start") or 0
    start = start.meta.get("val") if isinstance(start, Node) else start
    if same(start, 0):
        return whole, axis, 0
    return (whole, axis, 1) if same(start, size) or same(start, -size) else None


def _folded(source: Node, axis: int, index: int) -> tuple[Node, int, int] | None:
    """One of two along an axis that a view has split off the front of another one."""
    if operation(source) not in RESHAPES or axis != 0 or not isinstance(source.args[0], Node):
        return None
    whole = source.args[0]
    if tensor(whole) is None or len(shape_of(whole)) == 0 or not same(shape_of(source)[0], 2):
        return None
    return (whole, 0, index) if not same(shape_of(whole)[0], 2) or len(shape_of(source)) > 1 else None


def doubled_value(node: Node) -> Node | None:
    """``x`` when ``node`` is a batch (axis 0) that holds ``x`` twice, one after the other."""
    name = operation(node)
    if name == "cat":
        parts: Any = argument(node, "tensors")
        if len(parts) != 2 or parts[0] is not parts[1]:
            return None
        return parts[0] if dimension(argument(node, "dim"), parts[0].meta["val"].dim()) == 0 else None
    if name == "repeat":
        source, times = node.args[0], node.args[1]
        rank = len(shape_of(source)) if isinstance(source, Node) else -1
        return source if list(times) == [2, *[1] * (rank - 1)] else None  # type: ignore[arg-type, return-value]
    if name in RESHAPES and isinstance(node.args[0], Node):
        return _stacked(node, node.args[0])
    return None


def _stacked(node: Node, pair: Node) -> Node | None:
    """Two equal values along a new first axis, folded into the batch by the view ``node``."""
    while operation(pair) in COPIES and isinstance(pair.args[0], Node):
        pair = pair.args[0]
    if operation(pair) == "stack":
        parts: Any = argument(pair, "tensors")
        if len(parts) != 2 or parts[0] is not parts[1] or argument(pair, "dim") not in (0, -len(shape_of(pair))):
            return None
        source = parts[0]
    elif operation(pair) == "expand" and operation(pair.args[0]) == "unsqueeze":  # type: ignore[arg-type]
        inner: Any = pair.args[0]
        source = inner.args[0]
        if not same(shape_of(pair)[0], 2) or not all(map(same, shape_of(pair)[1:], shape_of(source))):
            return None
    else:
        return None
    sizes, wanted = shape_of(node), shape_of(source)
    fits = len(sizes) == len(wanted) and same(sizes[0], 2 * wanted[0]) and all(map(same, sizes[1:], wanted[1:]))
    return source if fits else None


def exits(order: Iterable[Node]) -> list[Exit]:
    """Every combination of the two halves of one value, in graph order."""
    pairs: dict[tuple[Node, int], list[Node | None]] = {}
    for node in order:
        found = half(node) if node.op == "call_function" else None
        if found is not None:
            pairs.setdefault(found[:2], [None, None])[found[2]] = node
    ends = []
    for first, second in pairs.values():
        if first is None or second is None:
            continue
        for output in _combinations(first, second):
            end = weights(output, (first, second))
            if end is not None:
                ends.append(end)
                break
    return ends


def _combinations(first: Node, second: Node) -> list[Node]:
    """Arithmetic of both halves and little else, in graph order."""
    made: dict[Node, int] = {first: 1, second: 2}
    pending = [first, second]
    while pending and len(made) < _LONGEST:
        node = pending.pop(0)
        for user in node.users:
            if operation(user) in _ARITHMETIC and not mutates(user) and tensor(user) is not None:
                mixed = made.get(user, 0) | made[node]
                if mixed != made.get(user, 0):
                    made[user] = mixed
                    pending.append(user)
    return ordered(node for node, halves in made.items() if halves == 3)


def weights(output: Node, halves: tuple[Node, Node]) -> Exit | None:
    """How ``output`` combines the halves, if the weights sum to one; shown by running it on random values."""
    nodes = _above(output, halves)
    if nodes is None:
        return None
    inside = {*nodes, *halves}
    leaves = _climbed(nodes, inside)
    free = [leaf for leaf in leaves if scalar(leaf) is None]
    shapes = {tuple(map(size_hint, shape_of(node))) for node in (*halves, output)}
    if len(free) > 1 or len(shapes) != 1:
        return None
    shape = shapes.pop()
    with concretely():
        try:
            made = _fitted(output, halves, nodes, leaves, free, shape)
        except (RuntimeError, TypeError, ValueError, KeyError):
            return None
    if made is None:
        return None
    conditional, scale, factor, offset = made
    found = half(halves[0])
    result = found[0] if found else halves[0]
    between = list(halves)
    for node in between:
        # Splits and views between the result and its halves.
        between += [read for read in node.all_input_nodes[:1] if read is not result and read.op == "call_function"]
    interior = frozenset((*nodes, *between))
    return Exit(output, halves, result, conditional, scale, factor, offset, interior)


def _above(output: Node, halves: tuple[Node, Node]) -> list[Node] | None:
    """The arithmetic from the halves to ``output``."""
    seen: set[Node] = set()
    pending = [output]
    while pending:
        node = pending.pop()
        if node in seen or node in halves:
            continue
        if operation(node) not in _ARITHMETIC or mutates(node):
            if scalar(node) is None and _depends(node, halves):
                return None
            continue
        if not _depends(node, halves):
            continue
        seen.add(node)
        if len(seen) > _LONGEST:
            return None
        pending.extend(node.all_input_nodes)
    return ordered(seen)


def _climbed(nodes: list[Node], inside: set[Node]) -> list[Node]:
    """What the combination reads besides the halves; sums and products with constants that only it reads join it."""
    leaves: dict[Node, None] = {}
    pending = [read for node in nodes for read in node.all_input_nodes]
    while pending:
        leaf = pending.pop()
        if leaf in inside:
            continue
        joins = operation(leaf) in _ARITHMETIC and not mutates(leaf) and scalar(leaf) is None
        if joins and all(user in inside for user in leaf.users) and len(nodes) < _LONGEST:
            if sum(scalar(read) is None for read in leaf.all_input_nodes) == 1:
                inside.add(leaf)
                nodes.append(leaf)
                pending.extend(leaf.all_input_nodes)
                continue
        leaves[leaf] = None
    nodes.sort()
    # A leaf that was met before all its readers had joined is inside by now.
    return [leaf for leaf in leaves if leaf not in inside]


def _depends(node: Node, halves: Sequence[Node]) -> bool:
    """True when a half is reached upwards within the few operations a combination has."""
    seen, pending = {node}, [node]
    while pending and len(seen) <= 2 * _LONGEST:
        current = pending.pop()
        if current in halves:
            return True
        if operation(current) in _ARITHMETIC:
            for read in current.all_input_nodes:
                if read not in seen:
                    seen.add(read)
                    pending.append(read)
    return False


def _fitted(
    output: Node,
    halves: tuple[Node, Node],
    nodes: list[Node],
    leaves: list[Node],
    free: list[Node],
    shape: tuple[int, ...],
) -> tuple[int, float | Node, float, float] | None:
    """``(conditional, scale, factor, offset)``; None for any other function of the halves."""
    generator = torch.Generator().manual_seed(0)

    def combined(first: Tensor, second: Tensor, strength: float) -> Tensor:
        values: dict[Node, Any] = {halves[0]: first, halves[1]: second}
        for leaf in leaves:
            known = scalar(leaf)
            made = tensor(leaf)
            number = strength if known is None else known
            values[leaf] = (
                number if made is None else torch.full(tuple(map(size_hint, made.shape)), number, dtype=torch.float64)
            )
        result: Tensor = run(nodes, values, double=True)[output]
        return result

    def weight(index: int, strength: float) -> float | None:
        one, zero = torch.ones(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        made = combined(one, zero, strength) if index == 0 else combined(zero, one, strength)
        value = float(made.flatten()[0])
        return value if bool((made == value).all()) else None

    table = [[weight(index, strength) for strength in (0.0, 1.0, 3.0)] for index in (0, 1)]
    for a, b in zip(*table, strict=True):
        if a is None or b is None or abs(a + b - 1.0) > 1e-9:
            return None
    (a0, a1, a3), (b0, b1, b3) = ([float(item or 0.0) for item in row] for row in table)
    if abs(b3 - (b0 + 3 * (b1 - b0))) > 1e-9:
        return None
    u, c = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    want = (a0 + 2 * (a1 - a0)) * u + (b0 + 2 * (b1 - b0)) * c
    if not torch.allclose(combined(u, c, 2.0), want, rtol=1e-9, atol=1e-9):
        return None
    if free:
        if abs(b1 - b0) < 1e-12:
            return None
        conditional = 1 if b1 > b0 else 0
        low, high = (b0, b1) if conditional == 1 else (a0, a1)
        return conditional, free[0], _tidy(high - low), _tidy(low)
    if min(abs(a0), abs(b0)) < 1e-12:
        return None
    # Guidance goes beyond the conditional result, so of two constant weights the larger one is the conditional's.
    conditional = 1 if b0 >= a0 else 0
    return conditional, _tidy(b0 if conditional == 1 else a0), 1.0, 0.0


def _tidy(value: float) -> float:
    """The nearest number with twelve digits: ``1 - s`` leaves dust."""
    return float(f"{value:.12g}")
