"""Attention over keys that were gathered for each query: windows cut into overlapping pieces, bands made of diagonals.

Scores are put together from pieces of products by moving single elements, weights go back the same way. No piece is
read. The ends are found by data flow: the tensors that queries, keys and values are cut from, the argument of the
softmax, and the product with the values. What lies between is run on numbers that say where each score comes from
(:mod:`gathered_slots`), and the site that follows is proven like any other: by running its fields beside it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor
from torch.fx import Node

from .attention_site import bounds, inverse, or_none
from .axes import contraction
from .describe import description, element_bytes, named_dimensions
from .effects import Effects
from .evaluate import before, concretely, run
from .gathered_slots import Slots, permutations, slots
from .graph import NormalGraph
from .nodes import CASTS, DROPOUTS, EXPANSIONS, MOVEMENTS, cast_of, operation, readers, scalar, tensor
from .operands import factor_of
from .product import Refused
from .proof import AFFORDABLE, prove
from .sites import GatheredAttention, Operand
from .softmax import Softmax

_CUTS = frozenset({"slice", "narrow", "pad", "constant_pad_nd", "as_strided", "unfold", "flip", "roll"})
_JOINS = frozenset({"cat", "stack", "slice_scatter", "select_scatter", "where", "masked_fill", "select"})
# Each element of the result is one element of an operand, or a constant.
_MOVES = MOVEMENTS | CASTS | EXPANSIONS | _CUTS | _JOINS
# Only the shape and type of their first operand matter.
_BLANKS = frozenset({"new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like", "zero", "fill"})
# What is taken out by one index is an operand of its own: queries of a packed tensor.
_CUT_FROM = _MOVES - {"select"}
_LONGEST = 256
_CHOICES = 4


def gathered(anchor: Softmax, graph: NormalGraph, effects: Effects) -> GatheredAttention | None:
    """The attention over gathered keys around a softmax that is no attention by itself; None when it is none."""
    if anchor.divided is not None or not _known(anchor.weights):
        return None
    scores, biases = _above(anchor.scores)
    below = _below(anchor)
    ends = _operands(scores)
    if below is None or ends is None:
        return None
    rank = scores.meta["val"].dim()
    values = _whole(below.value, rank)
    for left, right in itertools.product(*(_whole(end, rank) for end in ends)):
        if left is right or not _paired(scores, left, right, anchor.axis):
            continue
        nodes = before([scores], (left, right))
        found = _slots(nodes, scores, left, right, anchor.axis) if _only_moves(nodes, (left, right)) else None
        if found is None or found.whole:
            continue
        query, key = (right, left) if found.swapped else (left, right)
        for value in values:
            for site in _sites(anchor, found, (query, key, value), biases, below, effects):
                if prove(site, graph) is None:
                    return site
    return None


def _paired(scores: Node, left: Node, right: Node, axis: int) -> bool:
    """True when these may be queries and keys: features of one width, one query for each row of scores."""
    made, one, other = (node.meta["val"].shape for node in (scores, left, right))
    rows = math.prod(made) // made[axis]
    return one[-1] == other[-1] and rows in (math.prod(one[:-1]), math.prod(other[:-1]))


def _known(node: Node) -> bool:
    made = tensor(node)
    return made is not None and made.dim() in (3, 4) and all(isinstance(size, int) for size in made.shape)


def _above(node: Node) -> tuple[Node, list[Node]]:
    """The scores before anything was added, and what was. Where two products are added, the larger one makes scores."""
    scores, biases = node, list[Node]()
    for _ in range(_LONGEST):
        if operation(node) == "add" and scalar(node.kwargs.get("alpha", 1)) == 1.0:
            terms = [item for item in node.args[:2] if isinstance(item, Node) and tensor(item) is not None]
            if len(terms) != 2 or scalar(terms[0]) is not None or scalar(terms[1]) is not None:
                break
            node, bias = sorted(terms, key=_work, reverse=True)
            scores, biases = node, [*biases, bias]
        elif operation(node) in MOVEMENTS:
            node = node.args[0]  # type: ignore[assignment]
        else:
            break
    return scores, biases


def _work(node: Node) -> int:
    """Multiplications in the products that ``node`` is moved from."""
    ends = _operands(node)
    return 0 if ends is None else math.prod(ends[0].meta["val"].shape) * int(ends[1].meta["val"].shape[-1])


def _operands(node: Node) -> tuple[Node, Node] | None:
    """The operands of the one product that all of ``node`` is moved from."""
    products = [end for end in _origins(node) or () if contraction(end) is not None]
    spec = contraction(products[0]) if len(products) == 1 else None
    return None if spec is None or spec.addend is not None else (spec.left, spec.right)


def _origins(node: Node) -> list[Node] | None:
    """What the elements of ``node`` are moved from, constants left out; None when that is a long way."""
    pending, seen, found = [node], {node}, list[Node]()
    while pending:
        here = pending.pop()
        scaled = factor_of(here)
        if operation(here) in _BLANKS:
            continue
        if scaled is None and operation(here) not in _MOVES:
            found.append(here)
            continue
        for source in [scaled[0]] if scaled is not None else _sources(here):
            if source not in seen:
                seen.add(source)
                pending.append(source)
        if len(seen) > _LONGEST:
            return None
    return found


def _sources(node: Node) -> list[Node]:
    """The operands whose elements ``node`` moves: not those that say where to."""
    name = operation(node)
    if name == "where":
        items = node.args[1:]
    elif name in ("cat", "stack"):
        items = tuple(node.args[0])  # type: ignore[arg-type]
    else:
        items = node.args[: 2 if name in ("slice_scatter", "select_scatter") else 1]
    return [item for item in items if isinstance(item, Node) and tensor(item) is not None]


def _whole(node: Node, rank: int) -> list[Node]:
    """The tensors of ``rank`` axes that all of ``node`` is cut from: what is whole before anything is cut, first."""
    seen = {node: None}
    pending, ends = [node], list[Node]()
    while pending:
        here = pending.pop()
        if operation(here) in _BLANKS:
            continue
        if operation(here) not in _CUT_FROM or len(seen) > _LONGEST:
            ends.append(here)
            continue
        for source in _sources(here):
            if source not in seen:
                seen[source] = None
                pending.append(source)
    chain = ends if len(ends) == 1 else []
    while chain and len(following := [user for user in readers(chain[-1]) if user in seen]) == 1:
        chain.append(following[0])
    return [end for end in chain if _is_whole(end, rank)][:_CHOICES]


def _is_whole(node: Node, rank: int) -> bool:
    made = tensor(node)
    return made is not None and made.dim() == rank and made.is_floating_point() and _alone(made)


def _alone(made: Tensor) -> bool:
    """True for a tensor that fills its memory in order, as samples do: cuts may count elements in memory."""
    return made.is_contiguous() and made.untyped_storage().nbytes() == made.numel() * made.element_size()


def _only_moves(nodes: Sequence[Node], operands: Sequence[Node]) -> bool:
    """True when everything made of ``operands`` is moved and multiplied, and nothing else from outside is read."""
    dependent = set(operands)
    total = 0
    for node in nodes:
        made = tensor(node)
        if node.op == "placeholder" or (made is not None and not all(isinstance(size, int) for size in made.shape)):
            return False
        total += 0 if made is None else made.numel()
        name, moved = operation(node), node.all_input_nodes
        if dependent.isdisjoint(moved[1:] if name in _BLANKS else moved):
            continue
        dependent.add(node)
        if contraction(node) is not None or factor_of(node) is not None:
            continue
        if name not in _MOVES or any(item in dependent and item not in _sources(node) for item in moved):
            return False
    return total <= AFFORDABLE


def _slots(nodes: Sequence[Node], scores: Node, left: Node, right: Node, axis: int) -> Slots | None:
    def made(one: Tensor, other: Tensor) -> Tensor:
        result: Tensor = run(nodes, {left: one.double(), right: other.double()}, double=True)[scores]
        return result

    with concretely():
        try:
            return slots(made, left.meta["val"].shape, right.meta["val"].shape, axis)
        except Exception:
            return None  # an operation that float64 or the CPU does not have: not known


@dataclass(eq=False)
class _Below:
    """The way from the weights to the attention's result: candidates for it, nearest first."""

    value: Node
    hidden: list[Node]
    outputs: list[Node] = field(default_factory=list)


def _below(anchor: Softmax) -> _Below | None:
    """Down from the weights to the only product they go into."""
    node, hidden, moved = anchor.weights, list[Node](), False
    for _ in range(_LONGEST):
        users = readers(node)
        if len(users) != 1:
            return None
        (user,) = users
        name, spec = operation(user), contraction(user)
        if spec is not None:
            if spec.addend is not None or (spec.left is node) == (spec.right is node):
                return None
            below = _Below(spec.right if spec.left is node else spec.left, hidden, [user])
            while len(users := readers(below.outputs[-1])) == 1 and operation(users[0]) in MOVEMENTS:
                below.outputs.append(users[0])
            return below
        if name == "masked_fill" and not moved and _hides_queries(user, node, anchor):
            hidden.append(user.args[1])  # type: ignore[arg-type]
        elif name in DROPOUTS and user.args[0] is node:
            if user.args[2] is not False and scalar(user.args[1]) != 0.0:
                return None
        elif name not in _MOVES or name in _JOINS or user.args[0] is not node:
            return None
        else:
            moved = moved or cast_of(user) is None
        node = user
    return None


def _hides_queries(node: Node, weights: Node, anchor: Softmax) -> bool:
    """True when ``node`` puts zero in place of all the weights of some queries."""
    mask = tensor(node.args[1])
    if mask is None or node.args[0] is not weights or scalar(node.args[2]) != 0.0:
        return False
    axis = anchor.axis + mask.dim() - node.meta["val"].dim()
    return axis < 0 or mask.shape[axis] == 1


def _sites(
    anchor: Softmax,
    found: Slots,
    operands: tuple[Node, Node, Node],
    biases: Sequence[Node],
    below: _Below,
    effects: Effects,
) -> Iterator[GatheredAttention]:
    """A site for each reading of the axes of value and output; which of them holds is seen by proving them."""
    query, key, value = operands
    shape = [query.meta["val"].shape[axis] for axis in found.query]
    *batch, rows, inner = shape
    columns, channels = key.meta["val"].shape[found.key[-2]], value.meta["val"].shape[-1]
    count = int((found.keys >= 0).sum())
    names = {**{f"N{index}": size for index, size in enumerate(batch)}, "S": rows, "T": columns, "D": inner}
    symbols, dimensions = named_dimensions(**names, E=channels, W=found.keys.shape[1])
    times = math.prod(symbols[f"N{index}"] for index in range(len(batch)))
    masks = (*biases, *below.hidden)
    for output in reversed(below.outputs):
        made = output.meta["val"]
        orders = list(permutations(made.shape, (*batch, rows, channels)))
        if made.dtype != query.meta["val"].dtype or not orders:
            continue
        try:
            inputs, interior = bounds(operands, masks, output, effects)
        except Refused:
            continue
        site = GatheredAttention(
            id="",
            form="gathered",
            query=Operand(query, or_none(found.query)),
            key=Operand(key, or_none(found.key)),
            value=Operand(value),
            scale=found.scale,
            keys=found.keys,
            slots=found.order,
            biases=tuple(reversed(biases)),
            hidden=tuple(below.hidden),
            flops=2 * times * count * (symbols["D"] + symbols["E"]),
            bytes=times * (symbols["S"] + symbols["T"]) * (symbols["D"] + symbols["E"]) * element_bytes(output),
            dimensions=dimensions,
            **description(anchor.weights, interior, inputs, (output,)),
        )
        for value_order in permutations(value.meta["val"].shape, (*batch, columns, channels)):
            for order in orders:
                yield replace(
                    site,
                    value=Operand(value, or_none(value_order)),
                    output_permutation=or_none(inverse(order)),
                )
