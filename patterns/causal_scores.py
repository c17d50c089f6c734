"""Recurrences written in parallel: scores of all queries with all earlier keys, decayed by a table, times the values.

``y_t = sum_(s <= t) d_ts (q_t . k_s) v_s`` is the recurrence ``S_t = g_t S_(t-1) + u_t k_t v_t``, ``y_t = c_t q_t S_t``
exactly where the table is a product, ``d_ts = c_t g_(s+1) ... g_t u_s`` (Sun et al., "Retentive Network", 2023,
equation 5): its columns, up to their first element that is not hidden, are multiples of each other. How the table is
made and what the rows are divided by is not read. The table is what the weights of the values are, divided by the
scores, when both are run at random points.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, Node

from . import batched
from .axes import Contraction, contraction
from .describe import description, expression, fingerprint, outside_inputs, same
from .evaluate import concretely
from .nodes import CONTRACTIONS, operation, tensor
from .pieces import part_of
from .reasons import Reason
from .sites import Recurrence
from .trial import CANNOT_BE_RUN, Region, sample, subgraph

_SHORTEST = 4
_LARGEST = 128
"""Operations between scores and weights, those that make the table among them."""

_ENDS = CONTRACTIONS | {"linear", "convolution", "conv1d", "conv2d", "embedding"}
_TOLERANCE = 1e-5
"""Tables of constants are rounded to float32 on the way."""


@dataclass(frozen=True)
class _Weights:
    """What multiplies the values in ``product``, and its axes of time: of what is read (``key``) and of the result."""

    product: Node
    node: Node
    value: Node
    query: int
    key: int
    channel: int | None
    """The axis of the weights that is the last one of the result, if they have it: a decay for each channel."""


def causal_sites(
    graph: Graph, order: dict[Node, int], claimed: set[Node], constants: Collection[Node]
) -> Iterator[Recurrence]:
    """Proven sites of the graph whose interiors do not meet ``claimed``."""
    known: dict[str, str | None] = {}
    for node in graph.nodes:
        spec = contraction(node) if node not in claimed else None
        if spec is None or spec.addend is not None:
            continue
        for weights in _weights(node, spec):
            site = _site(weights, order, claimed, constants, known)
            if site is not None:
                yield site
                break


def _weights(node: Node, spec: Contraction) -> Iterator[_Weights]:
    """Each operand of a product that has one axis of the result to itself and one of the same size that is summed."""
    for weights, value, mine, theirs in (
        (spec.left, spec.right, spec.left_letters, spec.right_letters),
        (spec.right, spec.left, spec.right_letters, spec.left_letters),
    ):
        own = [letter for letter in mine if letter not in theirs and letter in spec.out_letters]
        summed = [letter for letter in mine if letter in theirs and letter not in spec.out_letters]
        if weights.op != "call_function" or len(own) != 1 or len(summed) != 1:
            continue
        query, key = mine.index(own[0]), mine.index(summed[0])
        shape = weights.meta["val"].shape
        size = expression(shape[query])
        if isinstance(size, int) and size >= _SHORTEST and same(size, shape[key]):
            last = spec.out_letters[-1]
            channel = mine.index(last) if last in mine and last != own[0] else None
            yield _Weights(node, weights, value, query, key, channel)


def _site(
    weights: _Weights,
    order: dict[Node, int],
    claimed: set[Node],
    constants: Collection[Node],
    known: dict[str, str | None],
) -> Recurrence | None:
    length = int(weights.node.meta["val"].shape[weights.key])
    scores, inside = _above(weights, length)
    if not inside or not inside.isdisjoint(claimed):
        return None
    if scores is not None and not _is_of_all_steps(scores, weights):
        return None
    ends = {weights.product, *([] if scores is None else [scores])}
    read = [node for node in outside_inputs(inside) if node not in constants and node is not scores]
    masks = subgraph([node for node in outside_inputs(inside) if node in constants], ())
    name = fingerprint(inside | masks, (*read, *([] if scores is None else [scores])), (weights.node,))
    if name not in known:
        with concretely():
            known[name] = _gate(weights, scores, read, length, order)
    gate = known[name]
    if gate is None or (scores is None and gate == "none"):
        return None
    interior = frozenset(inside | ends)
    operands = [] if scores is None else scores.all_input_nodes
    text = f"a parallel recurrence with a {gate} gate has no operator yet"
    return Recurrence(
        id="",
        form="parallel",
        gate=gate,
        states=(weights.product,),
        initial=(),
        operands=tuple(dict.fromkeys((*operands, weights.value, *read))),
        length=length,
        obstacle=Reason("no-operator", text, (weights.product.name,)),
        **description(weights.product, interior, outside_inputs(interior), (weights.product,)),
    )


def _above(weights: _Weights, length: int) -> tuple[Node | None, set[Node]]:
    """The scores that the weights are made of, and all that is computed for pairs of steps on the way to them."""
    shape = weights.node.meta["val"].shape
    inside: set[Node] = set()
    scores: Node | None = None
    todo = [weights.node]
    while todo:
        node = todo.pop()
        if node in inside or node is scores or not _has_pairs(node, length):
            continue
        if operation(node) in _ENDS or not batched.is_repeatable(node.target):
            if scores is None and contraction(node) is not None and node.meta["val"].shape == shape:
                scores = node
            continue
        inside.add(node)
        if len(inside) > _LARGEST:
            return None, set()
        todo.extend(node.all_input_nodes)
    return scores, inside


def _has_pairs(node: Node, length: int) -> bool:
    """Whether a value has two axes for the steps: a table, or scores."""
    made = tensor(node)
    if made is None or node.op != "call_function":
        return False
    return sum(isinstance(size, int) and size >= length for size in made.shape) >= 2


def _is_of_all_steps(scores: Node, weights: _Weights) -> bool:
    """Whether the scores are products of queries and keys: each axis of time is that of one operand, whole."""
    spec = contraction(scores)
    if spec is None or spec.addend is not None:
        return False
    sides = {spec.left: spec.left_letters, spec.right: spec.right_letters}
    for axis, other in ((weights.query, weights.key), (weights.key, weights.query)):
        letter, against = spec.out_letters[axis], spec.out_letters[other]
        having = [(node, mine) for node, mine in sides.items() if letter in mine]
        if len(having) != 1 or against in having[0][1]:
            return False
        (node, mine) = having[0]
        piece = part_of(node)
        if piece is not None and piece.dim == mine.index(letter):
            return False  # a chunk: a step of a loop over chunks
    return True


def _gate(weights: _Weights, scores: Node | None, read: list[Node], length: int, order: dict[Node, int]) -> str | None:
    """The gate of the recurrence that the weights are; None when they are no product of decays."""
    given = [*read, *([] if scores is None else [scores])]
    region = Region(order, given, (weights.node,), {length, length + 1}, {})
    for shrunk in (True, False):
        try:
            kinds = {_one_gate(region, weights, scores, seed, shrunk=shrunk) for seed in (1, 2)}
        except CANNOT_BE_RUN:
            continue
        return kinds.pop() if len(kinds) == 1 else None
    return None


def _one_gate(region: Region, weights: _Weights, scores: Node | None, seed: int, *, shrunk: bool) -> str | None:
    generator = torch.Generator().manual_seed(seed)
    values = region.samples(generator, shrunk=shrunk)
    for node, value in values.items():
        if isinstance(value, Tensor) and value.is_floating_point() and node is not scores:
            values[node] = 1 - 0.1 * value.abs()  # decays, or logarithms of decays: their products do not vanish
    shares = []
    for _ in range(1 if scores is None else 2):
        if scores is not None:
            values[scores] = 3 * sample(values[scores].shape, generator)
        made = region.run(values, shrunk=shrunk)[weights.node]
        table = made if scores is None else made / values[scores]
        table = table.movedim((weights.query, weights.key), (-2, -1))
        if (table.tril(-1) == 0).all():
            table = table.flip(-1, -2)  # it runs from the last step to the first
        share = _share(table)
        if share is None:
            return None
        shares.append(share)
    if not all(_close(share, shares[0]) for share in shares):
        return None  # the decay depends on the scores
    kept = (table / table.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)).tril()
    if _close(kept, torch.ones_like(kept).tril()):
        return "none"
    axis = weights.channel
    if axis is None or made.shape[axis] == 1 or _close(made, made.narrow(axis, 0, 1).expand_as(made)):
        return "scalar"
    return "diagonal"


def _share(table: Tensor) -> Tensor | None:
    """``u_s / (u_0 g_1 ... g_s)`` if the table is ``c_t g_(s+1) ... g_t u_s`` up to the diagonal and zero after it."""
    if not torch.isfinite(table).all() or (table.triu(1) != 0).any():
        return None
    seen = torch.ones_like(table).tril()
    if (table.abs() + (1 - seen) <= 1e-12).any():
        return None
    ratio = table / table[..., :1]
    share = ratio[..., -1, :]
    return share if _close(ratio * seen, share.unsqueeze(-2) * seen) else None


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= _TOLERANCE * (1 + b.abs())).all())
