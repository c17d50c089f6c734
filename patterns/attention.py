"""Attention by data flow: from each softmax up to one product with a key, and down to one product with a value.

Spellings add up instead of multiplying: how the scale, the masks, the head axes and the softmax are written is read by
separate rules, and the site says only what is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch.fx import Node

from .attention_site import Parts, build
from .axes import Atom, Layout, contraction, downward, expression, resolved, same
from .effects import Effects
from .graph import NormalGraph
from .nodes import DROPOUTS, argument, mutates, operation, readers, scalar, tensor
from .operands import climb, descend
from .reasons import Reason
from .scores import Origins, Refused, Scores, Softmax, follow, softmax_at
from .sites import Bias, Site, Sites

# Functions that turn scores into weights in relatives of attention.
_INSTEAD = frozenset({"sigmoid", "relu", "elu"})


def find_attention(graph: NormalGraph, sites: Sites) -> tuple[list[Site], list[Reason]]:
    """Every attention of the graph in order, and a reason for everything that came close."""
    nodes = graph.module.graph
    effects, origins = Effects(nodes), Origins(nodes)
    found: list[Site] = []
    refusals: list[Reason] = []

    def keep(read: Callable[[], Parts]) -> None:
        try:
            found.append(build(f"attention.{len(found)}", read(), effects))
        except Refused as refused:
            refusals.append(refused.reason)

    for node in nodes.nodes:
        if operation(node) == "scaled_dot_product_attention":
            keep(partial(_fused, node))
            continue
        if operation(node) in _INSTEAD and (reason := _other_normalisation(node, graph, origins)) is not None:
            refusals.append(reason)
            continue
        anchor = softmax_at(node)
        if anchor is not None and _used_in_a_product(anchor):
            keep(partial(_spelled, anchor, origins))
    return found, refusals


def _used_in_a_product(anchor: Softmax) -> bool:
    """True when the weights, or something near made of them, go into a product of two tensors."""
    pending, seen = [anchor.weights], 0
    while pending and seen < 12:
        node = pending.pop()
        seen += 1
        for user in readers(node):
            spec = contraction(user)
            if spec is not None and node in (spec.left, spec.right):
                return True
            if tensor(user) is not None:
                pending.append(user)
    return False


def _other_normalisation(node: Node, graph: NormalGraph, origins: Origins) -> Reason | None:
    """A reason when ``node`` stands where attention has its softmax: between two products of activations."""
    paths = origins.paths(node.args[0]) if isinstance(node.args[0], Node) else []
    above = contraction(paths[0][0]) if paths else None
    users = readers(node)
    below = contraction(users[0]) if len(users) == 1 else None
    if above is None or below is None:
        return None
    factors = (above.left, above.right, below.left, below.right)
    if any(graph.is_static(factor) or factor.meta["val"].dim() < 3 for factor in factors):
        return None
    return Reason(
        "unsupported-op", f"{node.target} in place of a softmax", (node.name, paths[0][0].name, users[0].name)
    )


def _spelled(anchor: Softmax, origins: Origins) -> Parts:
    """Attention around a softmax. Raises Refused."""
    paths = origins.paths(anchor.scores)
    if not paths:
        raise Refused("unsupported-op", "the scores do not come from one product", anchor.weights)
    refused: Refused | None = None
    for path in paths:
        try:
            return _along(anchor, follow(path))
        except Refused as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _along(anchor: Softmax, scores: Scores) -> Parts:
    product = scores.product
    summed = resolved(scores.layout)[anchor.axis]
    if summed == (product.columns,):
        query, key = (product.spec.left, product.left), (product.spec.right, product.right)
        rows, columns = product.rows, product.columns
    elif summed == (product.rows,):
        query, key = (product.spec.right, product.right), (product.spec.left, product.left)
        rows, columns = product.columns, product.rows
    else:
        raise Refused("wrong-axis", "softmax runs over an axis that is not the key axis", anchor.weights)
    below = _down(anchor, scores.layout, columns)
    inner = next(atom for axis in product.left for atom in axis if atom not in (*product.batch, rows, columns))
    batch = tuple(atom for axis in scores.layout for atom in axis if atom not in (rows, columns))
    return Parts(
        anchor=anchor.weights,
        form=f"{operation(product.node)}-{anchor.form}-{operation(below.product)}",
        batch=batch,
        rows=rows,
        columns=columns,
        inner=inner,
        channels=below.channels,
        query=climb(*query),
        key=climb(*key),
        value=climb(below.value, below.value_layout, scaled=False),
        output=descend(below.product, below.out),
        scale=scores.factor,
        biases=scores.biases,
        layouts={**scores.layouts, **below.layouts},
        dropout=below.dropout,
        hidden_rows="zero" if below.guarded else anchor.hidden_rows,
    )


@dataclass(eq=False)
class _Below:
    product: Node
    value: Node
    value_layout: Layout
    channels: Atom
    out: Layout
    dropout: float = 0.0
    guarded: bool = False
    layouts: dict[Node, Layout] = field(default_factory=dict)


def _down(anchor: Softmax, layout: Layout, columns: Atom) -> _Below:
    """Follow the weights to their product with the value. Raises Refused."""
    node, dropout, guarded = anchor.weights, 0.0, False
    layouts: dict[Node, Layout] = {}
    while True:
        layouts[node] = layout
        users = readers(node)
        guard = _nan_guard(node, users)
        if guard is not None:
            node, guarded = guard, True
            continue
        if len(users) != 1:
            raise _escaped(node, users)
        (user,) = users
        name = operation(user)
        if mutates(user):
            raise Refused("mutation", f"{user.target} changes the weights in place", user)
        spec = contraction(user)
        if spec is not None and node in (spec.left, spec.right):
            below = _value(user, node, layout, columns)
            below.dropout, below.guarded, below.layouts = dropout, guarded, layouts
            return below
        if name in DROPOUTS and user.args[0] is node:
            probability, training = scalar(user.args[1]), user.args[2]
            if name == "native_dropout":
                (user,) = readers(user) if len(readers(user)) == 1 else (user,)
            if training is not False and probability != 0.0:
                if probability is None:
                    raise Refused("unsupported-op", "the dropout probability is not a constant", user)
                dropout = 1.0 - (1.0 - dropout) * (1.0 - probability)
        elif user.args and user.args[0] is node and (moved := downward(user, layout)) is not None:
            layout = moved
        else:
            raise Refused("unsupported-op", f"{user.target} acts on the attention weights", user)
        node = user


def _nan_guard(node: Node, users: Sequence[Node]) -> Node | None:
    """The node after a guard that turns the NaN of fully hidden rows into zero, if ``users`` form one."""
    if len(users) == 1 and operation(users[0]) == "nan_to_num" and argument(users[0], "nan") in (None, 0, 0.0):
        return users[0]
    if len(users) != 2:
        return None
    test = next((user for user in users if operation(user) == "isnan"), None)
    choice = next((user for user in users if operation(user) in ("where", "masked_fill")), None)
    if test is None or choice is None or readers(test) != [choice]:
        return None
    if operation(choice) == "where":
        fits = choice.args[0] is test and scalar(choice.args[1]) == 0.0 and choice.args[2] is node
    else:
        fits = choice.args[0] is node and choice.args[1] is test and scalar(choice.args[2]) == 0.0
    return choice if fits else None


def _escaped(node: Node, users: Sequence[Node]) -> Refused:
    writer = next((user for user in users if mutates(user)), None)
    if writer is not None:
        return Refused("mutation", f"{writer.target} changes the weights in place", writer)
    return Refused("weights-escape", f"{node.name} is read in {len(users)} places", node, *users)


def _value(node: Node, weights: Node, layout: Layout, columns: Atom) -> _Below:
    """Read the product with the value, given the layout of the weights. Raises Refused."""
    spec = contraction(node)
    assert spec is not None
    first = spec.left is weights
    if spec.left is spec.right:
        raise Refused("unsupported-op", "the weights are multiplied with themselves", node)
    if spec.addend is not None and scalar(spec.beta) != 0.0:
        raise Refused("unsupported-op", "something is added to the product with the value", node)
    if scalar(spec.alpha) != 1.0:
        raise Refused("unsupported-op", "the product with the value is scaled", node)
    mine, theirs = (spec.left_letters, spec.right_letters) if first else (spec.right_letters, spec.left_letters)
    value = spec.right if first else spec.left
    axes = resolved(layout)
    bound = dict(zip(mine, axes, strict=True))
    for letter in mine:
        if letter not in spec.out_letters and bound[letter] != (columns,):
            raise Refused("wrong-axis", "the product with the value does not sum over the key axis", node)
    if sum(letter not in spec.out_letters for letter in mine) != 1:
        raise Refused("wrong-axis", "the product with the value does not sum over the key axis", node)
    own = [letter for letter in theirs if letter not in mine]
    if len(own) != 1 or own[0] not in spec.out_letters:
        raise Refused("unsupported-shape", "the value needs one channel axis", node)
    shape = dict(zip(theirs, value.meta["val"].shape, strict=True))
    channels = Atom(shape[own[0]], rigid=True)
    bound[own[0]] = (channels,)
    value_layout = []
    for letter in theirs:
        whole: object = math.prod(atom.size for atom in bound[letter])
        value_layout.append(bound[letter] if same(shape[letter], whole) else ())
        if not value_layout[-1] and not same(shape[letter], 1):
            raise Refused("unsupported-shape", "the value broadcasts the weights", node)
    out = tuple(bound[letter] for letter in spec.out_letters)
    return _Below(node, value, tuple(value_layout), channels, out)


def _fused(node: Node) -> Parts:
    """``aten.scaled_dot_product_attention``: the same fields, read from its arguments. Raises Refused."""
    query, key, value = (argument(node, name) for name in ("query", "key", "value"))
    shapes = [item.meta["val"].shape for item in (query, key, value)]
    if min(map(len, shapes)) < 2 or any(expression(size) == 0 for shape in shapes for size in shape):
        raise Refused("unsupported-shape", "an operand has no elements or too few axes", node)
    rows, inner = (Atom(size, rigid=True) for size in shapes[0][-2:])
    columns, channels = Atom(shapes[1][-2], rigid=True), Atom(shapes[2][-1], rigid=True)
    batch = [Atom(size) for size in node.meta["val"].shape[:-2]]
    if argument(node, "enable_gqa") is True and not same(shapes[0][-3], shapes[1][-3]):
        kept = expression(shapes[1][-3])
        if not isinstance(kept, int) or not isinstance(batch[-1].size, int) or batch[-1].size % kept:
            raise Refused("unsupported-shape", "the number of query heads per key head is not a constant", node)
        batch[-1].parts = (Atom(kept), Atom(batch[-1].size // kept))

    def layout(shape: Sequence[object], *last: Atom) -> Layout:
        axes: list[tuple[Atom, ...]] = []
        for atom, size in zip(batch[len(batch) - len(shape) + 2 :], shape[:-2], strict=True):
            if same(size, atom.size):
                axes.append((atom,))
            else:
                axes.append(atom.parts[:1] if atom.parts and not same(size, 1) else ())
        return (*axes, *((atom,) for atom in last))

    if max(map(len, shapes)) > len(batch) + 2:
        raise Refused("unsupported-shape", "an operand has more axes than the output", node)
    scale = argument(node, "scale")
    if scale is None and isinstance(inner.size, int):
        scale = 1.0 / math.sqrt(inner.size)
    dropout = scalar(argument(node, "dropout_p"))
    if scalar(scale) is None or dropout is None:
        raise Refused("unsupported-op", "the scale or the dropout probability is not a constant", node)
    scores_layout = (*((atom,) for atom in batch), (rows,), (columns,))
    biases: list[tuple[Bias, Layout]] = []
    mask = argument(node, "attn_mask")
    if mask is not None:
        kind = "boolean" if str(mask.meta["val"].dtype) == "torch.bool" else "additive"
        biases.append((Bias(kind, mask), scores_layout))
    if argument(node, "is_causal") is True:
        biases.append((Bias("causal", None, "causal"), scores_layout))
    return Parts(
        anchor=node,
        form="sdpa",
        batch=tuple(batch),
        rows=rows,
        columns=columns,
        inner=inner,
        channels=channels,
        query=climb(query, layout(shapes[0], rows, inner)),
        key=climb(key, layout(shapes[1], columns, inner)),
        value=climb(value, layout(shapes[2], columns, channels), scaled=False),
        output=descend(node, (*((atom,) for atom in batch), (rows,), (channels,))),
        scale=float(scalar(scale) or 0.0),
        biases=biases,
        layouts={},
        dropout=dropout,
        hidden_rows="zero",
    )
