"""Attention whose scores become weights in a way of its own: heads mixed, keys selected, weights returned.

Tried for each softmax that is no attention by itself. Only the two products are read, and which axes of what lies
between hold queries and keys; the way from scores to weights stays a program of the graph. That a query's weights
depend on its own scores alone is part of what the site means, and so of its proof.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch.fx import Node

from .attention_site import inverse, or_none
from .axes import Atom, Contraction, contraction, resolved
from .describe import description, element_bytes, fingerprint, named_dimensions, ordered, same
from .effects import Effects
from .graph import NormalGraph
from .mapped_axes import MappedAxes
from .nodes import readers, scalar, tensor
from .product import Product, Refused, product
from .proof import prove
from .reasons import Reason
from .sites import MappedAttention, Operand, Order
from .softmax import Softmax

# Values looked at in one direction: what is farther from the softmax is another computation.
_REACH = 128
# Products that are tried on each side.
_TRIED = 3


def mapped(
    anchor: Softmax, obstacle: Reason, graph: NormalGraph, fixed: Collection[Node], effects: Effects
) -> MappedAttention | None:
    """The attention around a softmax that is refused for ``obstacle``; None when it is none."""
    if anchor.divided is not None:
        return None
    for start in _near(anchor.scores, lambda node: node.all_input_nodes, fixed):
        for end in _near(anchor.weights, readers, fixed):
            between = _between(start, end, anchor.weights) if start < end else None
            if between is None:
                continue
            scores = between.scores
            for rows, columns in ((scores.rows, scores.columns), (scores.columns, scores.rows)):
                site = _site(anchor, between, rows, columns, obstacle, effects)
                if site is not None and prove(site, graph) is None:
                    return site
    return None


def _near(node: Node, following: Callable[[Node], Sequence[Node]], fixed: Collection[Node]) -> list[Node]:
    """Products of two computed values that are reached from ``node`` without another one in between, nearest first."""
    pending, seen, found = [node], {node}, list[Node]()
    for here in pending:
        spec = contraction(here)
        if spec is not None and spec.left not in fixed and spec.right not in fixed:
            found.append(here)
            continue
        for other in following(here) if len(seen) < _REACH else ():
            if other not in seen and other not in fixed and other.op == "call_function":
                seen.add(other)
                pending.append(other)
    return found[:_TRIED]


@dataclass(frozen=True, eq=False)
class _Between:
    """All that is computed from the product ``scores`` up to ``weights``, which is multiplied with ``value``."""

    scores: Product
    spec: Contraction
    end: Node
    weights: Node
    value: Node
    nodes: list[Node]


def _between(start: Node, end: Node, through: Node) -> _Between | None:
    """What lies between two products, if it holds ``through``."""
    spec, computed = contraction(end), _computed(start, end)
    assert spec is not None
    inside = [side for side in (spec.left, spec.right) if side in computed]
    if len(inside) != 1 or spec.addend is not None or scalar(spec.alpha) != 1.0:
        return None
    nodes, pending = {*inside}, [*inside]
    while pending:
        for read in pending.pop().all_input_nodes:
            if read in computed and read not in nodes:
                nodes.add(read)
                pending.append(read)
    if through not in nodes:
        return None
    try:
        scores = product(start)
    except Refused:
        return None
    if scores.spec.addend is not None or scalar(scores.spec.alpha) is None:
        return None
    (weights,) = inside
    value = spec.right if weights is spec.left else spec.left
    return _Between(scores, spec, end, weights, value, ordered(nodes - {start}))


def _computed(start: Node, end: Node) -> set[Node]:
    """What is computed from ``start`` before ``end``; nothing when that is a lot."""
    found, pending = {start}, [start]
    while pending:
        for user in readers(pending.pop()):
            if user not in found and user < end:
                found.add(user)
                pending.append(user)
        if len(found) > _REACH:
            return set()
    return found


def _site(
    anchor: Softmax, between: _Between, rows: Atom, columns: Atom, obstacle: Reason, effects: Effects
) -> MappedAttention | None:
    """The site, not yet proven, if the softmax and the product with the value run over the keys ``columns``."""
    scores, end = between.scores, between.end
    axes = MappedAxes(scores, rows, columns, between.nodes)
    scored, weighed = (axes.known.get(node) for node in (anchor.scores, between.weights))
    if scored is None or weighed is None or axes.role(resolved(scored)[anchor.axis]) != "keys":
        return None
    below = _with_value(between, axes, rows)
    if below is None:
        return None
    weights, value, output_order = below
    letters = {axis[0]: letter for axis, letter in zip(scores.out, scores.spec.out_letters, strict=True)}
    batch = [letter for atom, letter in letters.items() if atom not in (rows, columns)]
    own = (scores.spec.left, scores.spec.left_letters), (scores.spec.right, scores.spec.right_letters)
    (asked, asked_letters), (given, given_letters) = own if rows is scores.rows else own[::-1]
    (inner,) = set(asked_letters) & set(given_letters) - set(letters.values())
    query = _operand(asked, asked_letters, (*batch, letters[rows], inner))
    key = _operand(given, given_letters, (*batch, letters[columns], inner))
    inside = {scores.node, *between.nodes, end}
    outside = [
        node
        for item in between.nodes
        for node in item.all_input_nodes
        if node not in inside and tensor(node) is not None
    ]
    inputs = tuple(dict.fromkeys((query.node, key.node, value.node, *outside)))
    seen = [node for node in (scores.node, *between.nodes) if not inside.issuperset(readers(node))]
    if effects.mutation(inputs, inside) is not None or any(tensor(node) is None for node in seen):
        return None
    sizes = {"S": rows.hint, "T": columns.hint, "D": asked.meta["val"].shape[asked_letters.index(inner)]}
    sizes |= {"B": math.prod(atom.hint for atom in scores.batch)}
    symbols, dimensions = named_dimensions(**sizes, E=end.meta["val"].shape[output_order[-1]])
    pairs = symbols["B"] * (symbols["S"] + symbols["T"])
    return MappedAttention(
        id="",
        form="mapped",
        query=query,
        key=key,
        value=value,
        scale=scalar(scores.spec.alpha) or 0.0,
        scores=_operand(scores.node, scores.spec.out_letters, (*batch, letters[rows], letters[columns])),
        weights=weights,
        output_permutation=or_none(inverse(output_order)),
        way=fingerprint(frozenset(between.nodes), (scores.node, *inputs), (weights.node, *seen)),
        obstacle=obstacle,
        flops=2 * symbols["B"] * symbols["S"] * symbols["T"] * (symbols["D"] + symbols["E"]),
        bytes=pairs * (symbols["D"] + symbols["E"]) * element_bytes(end),
        dimensions=dimensions,
        **description(anchor.weights, frozenset(inside), inputs, (end, *seen)),
    )


def _with_value(between: _Between, axes: MappedAxes, rows: Atom) -> tuple[Operand, Operand, tuple[int, ...]] | None:
    """The weights, the value and the order of the output's axes; None when the keys are not what is summed."""
    spec, layout = between.spec, axes.known[between.weights]
    mine, theirs = (spec.left_letters, spec.right_letters)[:: 1 if between.weights is spec.left else -1]
    bound = dict(zip(mine, resolved(layout), strict=True))
    row = [letter for letter in mine if axes.role(bound[letter]) == "rows" and letter in spec.out_letters]
    summed = [letter for letter in mine if letter not in spec.out_letters]
    channels = [letter for letter in theirs if letter not in mine]
    if [len(row), len(summed), len(channels)] != [1, 1, 1] or axes.role(bound[summed[0]]) != "keys":
        return None
    if (
        not same(bound[row[0]][0].size, rows.size)
        or row[0] in theirs
        or summed[0] not in theirs
        or channels[0] not in spec.out_letters
    ):
        return None
    batch = [letter for letter in spec.out_letters if letter not in (*row, *channels)]
    return (
        _operand(between.weights, mine, (*batch, *row, *summed)),
        _operand(between.value, theirs, (*batch, *summed, *channels)),
        tuple(spec.out_letters.index(letter) for letter in (*batch, *row, *channels)),
    )


def _operand(node: Node, letters: Sequence[str], wanted: Sequence[str]) -> Operand:
    """``node`` read in the order ``wanted``, of which it may lack some."""
    order: Order = tuple(letters.index(letter) if letter in letters else None for letter in wanted)
    return Operand(node, or_none(order))
