"""Attention by data flow: from each softmax up to one product with a key, and down to one product with a value.

Spellings add up instead of multiplying: how the scale, the masks, the head axes and the softmax are written is read by
separate rules, and the site says only what is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch.fx import Node

from .attention_fused import fused
from .attention_mapped import mapped
from .attention_site import Parts, build
from .axes import Atom, Contraction, Layout, contraction, downward, leaves, resolved
from .describe import same
from .effects import effects_of
from .gathered import gathered
from .graph import NormalGraph
from .linear import fixed_nodes
from .masks import without_not
from .mixtures import Mixture, mixture
from .nodes import DROPOUTS, argument, dimension, mutates, operation, readers, scalar, tensor
from .operands import climb, descend
from .product import Refused
from .provenance import differentiated
from .reasons import Reason
from .scores import Origins, Scores, Sinks, follow
from .shared_scores import settle
from .sites import Attention, Bias, GatheredAttention, Site, Sites
from .softmax import Softmax, softmax_at

# Functions that turn scores into weights in relatives of attention.
_INSTEAD = frozenset({"sigmoid", "relu", "elu", "gelu", "silu", "softplus", "log_softmax", "exp", "square", "pow"})


def find_attention(graph: NormalGraph, before: Sites) -> tuple[list[Site], list[Reason]]:
    """Every attention of the graph in order, and a reason for everything that came close."""
    nodes = graph.module.graph
    effects, origins = effects_of(graph), Origins(nodes)
    found: dict[Attention | GatheredAttention, frozenset[Node]] = {}
    anchors: dict[Attention | GatheredAttention, Softmax] = {}
    refusals: list[Reason] = []
    missed: list[tuple[Softmax, Reason]] = []

    trained: set[Node] | None = None
    instead: list[Node] = []
    tried: set[Node] = set()
    taken: set[Node] = set()

    def keep(read: Callable[[], Parts], anchor: Softmax | None = None) -> None:
        nonlocal trained
        try:
            parts = read()
            if parts.factor is not None:
                trained = differentiated(graph) if trained is None else trained
                if parts.factor[0] in trained:
                    raise Refused("requires-grad", "the scores are scaled by something that is trained", parts.anchor)
            site = build("", parts, effects)
            found[site] = parts.above
            taken.update(parts.above)
            if anchor is not None:
                anchors[site] = anchor
        except Refused as refused:
            other = None if anchor is None else gathered(anchor, graph, effects)
            if other is not None:
                found[other] = frozenset()
            elif anchor is not None:
                missed.append((anchor, refused.reason))
            else:
                refusals.append(refused.reason)

    for node in nodes.nodes:
        if operation(node) == "scaled_dot_product_attention":
            keep(partial(fused, node))
            continue
        anchor = softmax_at(node)
        if anchor is not None:
            tried.update((node, anchor.weights, *anchor.weights.all_input_nodes))
            if _product_below(anchor.weights) is not None:
                keep(partial(_spelled, anchor, origins, taken), anchor)
        elif operation(node) in _INSTEAD:
            instead.append(node)
    settled = settle(found)
    sites: list[Site] = [site for site, reason in settled.items() if reason is None]
    for site, reason in settled.items():
        if reason is not None and site in anchors:
            missed.append((anchors[site], reason))
        elif reason is not None:
            refusals.append(reason)
    fixed = fixed_nodes(graph) if missed else set()
    for anchor, reason in missed:
        other = mapped(anchor, reason, graph, fixed, effects)
        if other is None or any(other.outputs[0] in site.interior for site in sites):
            refusals.append(reason)
        else:
            sites.append(other)
    tried.update(node for site in sites for node in site.interior)
    for node in instead:
        if node not in tried and (reason := _other_normalisation(node, graph, origins)) is not None:
            refusals.append(reason)
    sites.sort(key=lambda site: site.outputs[0])
    return [replace(site, id=f"attention.{number}") for number, site in enumerate(sites)], refusals


def _product_below(weights: Node) -> Node | None:
    """The product of two tensors that ``weights``, or something near made of them, go into."""
    pending, seen = [weights], 0
    while pending and seen < 12:
        node = pending.pop()
        seen += 1
        for user in readers(node):
            spec = contraction(user)
            if spec is not None and node in (spec.left, spec.right):
                return user
            if tensor(user) is not None:
                pending.append(user)
    return None


def _other_normalisation(node: Node, graph: NormalGraph, origins: Origins) -> Reason | None:
    """A reason when ``node`` stands where attention has its softmax: between two products of activations."""
    paths = origins.paths(node.args[0]) if isinstance(node.args[0], Node) else []
    above = contraction(paths[0][0]) if paths else None
    product = _product_below(node) if above is not None else None
    below = contraction(product) if product is not None else None
    if above is None or product is None or below is None:
        return None
    factors = (above.left, above.right, below.left, below.right)
    if any(graph.is_static(factor) or factor.meta["val"].dim() < 3 for factor in factors):
        return None
    return Reason("unsupported-op", f"{node.target} in place of a softmax", (node.name, paths[0][0].name, product.name))


def _spelled(anchor: Softmax, origins: Origins, taken: Collection[Node]) -> Parts:
    """Attention around a softmax; the product is one that no other softmax has taken, if it can be. Raises Refused."""
    paths = sorted(origins.paths(anchor.scores), key=lambda path: path[0] in taken)
    if not paths:
        raise Refused("unsupported-op", "the scores do not come from one product", anchor.weights)
    refused: Refused | None = None
    for path in paths:
        try:
            return _along(anchor, follow(path), path)
        except Refused as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _along(anchor: Softmax, scores: Scores, path: Sequence[Node]) -> Parts:
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
    if scores.sinks is not None and scores.sinks.axis is not columns:
        raise Refused("wrong-axis", "the sinks are not beside the keys", anchor.weights)
    below = _down(anchor, scores, columns)
    inner = next(atom for axis in product.left for atom in axis if atom not in (*product.batch, rows, columns))
    batch = leaves(atom for axis in scores.layout for atom in axis if atom not in (rows, columns))
    if leaves(product.batch) == batch:
        batch = product.batch  # still says which parts were one axis of the product
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
        output=descend(anchor.divided or below.product, below.out),
        scale=scores.scale,
        biases=scores.biases,
        layouts={**scores.layouts, **below.layouts},
        dropout=below.dropout,
        hidden_rows="zero" if below.guarded else anchor.hidden_rows,
        factor=scores.temperature,
        soft_cap=scores.soft_cap,
        sinks=None if scores.sinks is None else (scores.sinks.value, scores.sinks.layout),
        finer=scores.finer,
        above=frozenset(path),
        mixture=below.mixture,
    )


@dataclass(eq=False)
class Below:
    """The product of weights with a value, and what lies between."""

    product: Node
    value: Node
    value_layout: Layout
    channels: Atom
    out: Layout
    dropout: float = 0.0
    guarded: bool = False
    layouts: dict[Node, Layout] = field(default_factory=dict)
    mixture: tuple[Mixture, Layout] | None = None


def _down(anchor: Softmax, scores: Scores, columns: Atom) -> Below:
    """Follow the weights to their product with the value. Raises Refused."""
    node, layout, sinks = anchor.weights, scores.layout, scores.sinks
    dropout, guarded = 0.0, False
    layouts: dict[Node, Layout] = {}
    mixed: tuple[Mixture, Layout] | None = None
    while True:
        if not (operation(node) == "slice" and scores.sinks is not None and scores.sinks.first):
            layouts[node] = layout  # (a cut that starts behind the sinks has no place among even parts)
        users = readers(node)
        if anchor.divided is not None and node is anchor.weights:
            users = [user for user in users if contraction(user) is not None]
        guard = _nan_guard(node, users) if mixed is None else None
        if guard is not None:
            node, guarded = guard, True
            continue
        if len(users) != 1:
            raise _escaped(node, users)
        (user,) = users
        name = operation(user)
        if mixed is None and sinks is None and dropout == 0.0 and anchor.divided is None:
            mixing = mixture(node, layout, columns)
            if mixing is not None:
                mixed, node = (mixing, layout), mixing.steps[-1]
                layouts |= dict.fromkeys(mixing.steps, layout)
                continue
        if mutates(user):
            raise Refused("mutation", f"{user.target} changes the weights in place", user)
        spec = contraction(user)
        if spec is not None and node in (spec.left, spec.right):
            if sinks is not None:
                raise Refused("unsupported-shape", "the weights of the sinks meet a value", user)
            below = with_value(spec, user, node, layout, columns)
            if anchor.divided is not None and not _divides(below.out, layout, columns, below.channels):
                raise Refused("wrong-axis", "the sums of the weights do not lie along the queries", anchor.divided)
            below.dropout, below.guarded, below.layouts, below.mixture = dropout, guarded, layouts, mixed
            return below
        if name in DROPOUTS and user.args[0] is node:
            probability, training = scalar(user.args[1]), user.args[2]
            if name == "native_dropout":
                (user,) = readers(user) if len(readers(user)) == 1 else (user,)
            if training is not False and probability != 0.0:
                if probability is None:
                    raise Refused("unsupported-op", "the dropout probability is not a constant", user)
                dropout = 1.0 - (1.0 - dropout) * (1.0 - probability)
        elif sinks is not None and _drops(user, node, sinks, layout):
            sinks = None
        elif mixed is None and (emptied := _emptied(user, node, scores)) is not None:
            scores.biases, guarded = emptied, True
        elif user.args and user.args[0] is node and (moved := downward(user, layout)) is not None:
            layout = moved
        else:
            raise Refused("unsupported-op", f"{user.target} acts on the attention weights", user)
        node = user


def _divides(out: Layout, weights: Layout, columns: Atom, channels: Atom) -> bool:
    """True when sums of ``weights`` over ``columns`` broadcast against ``out`` as one number for each query."""
    expected = tuple((channels,) if axis == (columns,) else axis for axis in resolved(weights))
    return resolved(out) == expected


def _drops(user: Node, weights: Node, sinks: Sinks, layout: Layout) -> bool:
    """True for the cut that leaves the weights of all keys and drops that of the sinks."""
    made, axes = tensor(user), resolved(layout)
    if operation(user) != "slice" or user.args[0] is not weights or made is None:
        return False
    axis, start = dimension(argument(user, "dim"), made.dim()), argument(user, "start")
    first = start == 1 if sinks.first else start in (None, 0)
    whole = axes[axis] == (sinks.axis,) and same(made.shape[axis], sinks.axis.size)
    return first and whole and argument(user, "step") == 1


def _emptied(user: Node, weights: Node, scores: Scores) -> list[tuple[Bias, Layout]] | None:
    """The biases when ``user`` puts zero where the only mask of the scores hides: rows that see no key become zero."""
    masks = [bias for bias, _ in scores.biases if bias.kind != "additive"]
    if len(masks) != 1 or masks[0].value is None or operation(user) not in ("where", "masked_fill"):
        return None
    mask, *rest = user.args if operation(user) == "where" else (user.args[1], user.args[2], user.args[0])
    kept, zero = rest if masks[0].kind == "boolean" else rest[::-1]
    (one, inverted), (other, also) = without_not(mask), without_not(masks[0].value)
    if inverted != also:
        kept, zero = zero, kept
    if one is not other or kept is not weights or scalar(zero) != 0.0:
        return None
    return [
        (replace(bias, fill=float("-inf")) if bias.kind != "additive" else bias, layout)
        for bias, layout in scores.biases
    ]


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


def with_value(spec: Contraction, node: Node, weights: Node, layout: Layout, columns: Atom) -> Below:
    """Read ``node``, the product ``spec`` with the value, given the layout of the weights. Raises Refused."""
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
    return Below(node, value, tuple(value_layout), channels, out)
