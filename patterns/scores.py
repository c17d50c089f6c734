"""From a softmax up to the one contraction its scores come from, and what happens to the scores on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch.fx import Graph, Node

from .axes import Atom, Layout, contraction, downward, regroup, resolved
from .describe import same
from .masks import hidden_fill, plainest
from .nodes import (
    CASTS,
    CONTRACTIONS,
    MOVEMENTS,
    PERMUTES,
    RESHAPES,
    argument,
    cast_of,
    dimension,
    mutates,
    operation,
    scalar,
    tensor,
    unchanged,
)
from .operands import factor_of
from .product import Product, Refused, product
from .sites import Bias
from .softmax import is_row_maximum

_SUMS = frozenset({"add", "sub", "add_", "sub_"})
_CHOICES = frozenset({"where", "masked_fill", "masked_fill_"})
_POINTWISE = frozenset(
    {"mul", "div", "mul_", "div_", "multiply", "true_divide", "neg", "tanh", "sigmoid", "relu", "clamp", "clamp_min"}
    | {"maximum", "minimum", "max", "exp", "abs", "pow", "copy_", "fill_", "tril", "triu"}
)
_STEPS = _SUMS | _CHOICES | _POINTWISE | MOVEMENTS | CASTS | {"slice", "cat"}
# An epilogue is a handful of operations; anything longer is another computation that happens to start at a product.
_LONGEST = 24
# Ways up from a softmax that are tried.
_WAYS = 4


class Origins:
    """For every node, which of its arguments leads back to a contraction through an epilogue. One pass."""

    def __init__(self, graph: Graph) -> None:
        self.sources: dict[Node, tuple[Node, ...]] = {}
        depth: dict[Node, int] = {}
        for node in graph.nodes:
            name = operation(node)
            if name in CONTRACTIONS and contraction(node) is not None:
                depth[node] = 0
            elif name in _STEPS and tensor(node) is not None:
                known = [item for item in dict.fromkeys(_operands(node, name)) if depth.get(item, _LONGEST) < _LONGEST]
                if known:
                    known.sort(key=lambda item: depth[item])
                    self.sources[node] = tuple(known)
                    depth[node] = depth[known[0]] + 1
        self._depth = depth

    def paths(self, node: Node) -> list[list[Node]]:
        """Ways from a contraction (first) down to ``node`` (last): the shortest first, then those that turn elsewhere.

        Biases may be products too; where several were added, the scores themselves are behind several turns.
        """
        if node not in self._depth:
            return []
        found: list[list[Node]] = []
        pending = [[node]]
        while pending and len(found) < _WAYS:
            path = pending.pop(0)
            while path[-1] in self.sources:
                first, *others = self.sources[path[-1]]
                pending += [[*path, other] for other in others[:1]]
                path.append(first)
            found.append(path[::-1])
        return found


def _operands(node: Node, name: str) -> list[Node]:
    items: Sequence[Any]
    if name == "where":
        items = node.args[1:3]
    elif name == "cat":
        items = node.args[0] if len(node.args[0]) == 2 else ()  # type: ignore[arg-type, assignment]
    elif name in _CHOICES or name in MOVEMENTS or name in CASTS or name == "slice":
        items = node.args[:1]
    else:
        items = node.args[:2]
    return [item for item in items if isinstance(item, Node)]


@dataclass(frozen=True, eq=False)
class Sinks:
    """One more score in every row: ``value`` beside the scores along ``axis``, before or behind them."""

    value: Node
    layout: Layout
    axis: Atom
    first: bool


@dataclass(eq=False)
class Scores:
    """What reaches the softmax: ``factor`` times the product, then ``biases``, each added in its own layout.

    ``temperature`` multiplies the product in the layout given with it. After a hyperbolic tangent ``bent`` is the
    factor before it and ``factor`` the one behind. ``shifted`` scores have a number or their row's maximum taken off.
    ``finer`` says which parts the query and key axes were cut into for some of the biases; ``whole`` is the layout
    that scores cut like that go back to.
    """

    product: Product
    layout: Layout
    factor: float
    biases: list[tuple[Bias, Layout]] = field(default_factory=list)
    layouts: dict[Node, Layout] = field(default_factory=dict)
    temperature: tuple[Node, Layout] | None = None
    bent: float | None = None
    sinks: Sinks | None = None
    shifted: bool = False
    finer: dict[Atom, tuple[Atom, ...]] = field(default_factory=dict)
    whole: Layout | None = None

    @property
    def scale(self) -> float:
        """The factor of the scores while they are small, where a soft cap does nothing."""
        return self.factor if self.bent is None else self.factor * self.bent

    @property
    def soft_cap(self) -> float | None:
        """What no score exceeds: ``a tanh(b x)`` is ``c tanh(ab x / c)`` with ``c = |a|``."""
        return None if self.bent is None else abs(self.factor)


def follow(path: Sequence[Node]) -> Scores:
    """Read the epilogue along ``path`` (contraction first). Raises Refused at what has no place in it."""
    start = product(path[0])
    spec = start.spec
    alpha, beta = scalar(spec.alpha), scalar(spec.beta)
    if alpha is None or beta is None:
        raise Refused("unsupported-op", "the factor of the product is not a constant", path[0])
    scores = Scores(start, start.out, alpha, layouts={path[0]: start.out})
    if spec.addend is not None and beta == 0.0:
        scores.layouts[spec.addend] = scores.layout
    elif spec.addend is not None:
        scores.biases.append((Bias("additive", spec.addend, factor=beta), scores.layout))
    for before, node in zip(path, path[1:], strict=False):
        _step(scores, before, node)
        scores.layouts[node] = scores.layout
    if scores.whole is not None:
        raise Refused("unsupported-shape", "the scores keep a cut through their query or key axis", path[-1])
    if scores.bent is not None and scores.factor == 0.0:
        raise Refused("unsupported-op", "the scores are multiplied with zero", path[-1])
    return scores


def _step(scores: Scores, before: Node, node: Node) -> None:
    name = operation(node)
    if mutates(node):
        raise Refused("mutation", f"{node.target} changes the scores in place", node)
    if name in RESHAPES and (cut := _cut_finer(scores, node)) is not None:
        scores.layout = cut
        return
    if scores.whole is not None and name not in ("add", "sub") and not unchanged(node):
        raise Refused("unsupported-shape", f"{node.target} acts on scores whose query or key axis is cut", node)
    moved = name in MOVEMENTS or unchanged(node) or cast_of(node) is not None
    shift = name == "sub" and node.args[0] is before and _is_maximum(node.args[1], before)
    if (
        scores.sinks is not None
        and not shift
        and not (moved and (name in PERMUTES or cast_of(node) or unchanged(node)))
    ):
        raise Refused("unsupported-op", f"{node.target} acts on scores and sinks together", node)
    scaled = factor_of(node)
    if scaled is not None and scaled[0] is before:
        if scores.biases and not scaled[1] > 0.0:
            raise Refused("unsupported-mask", "a bias changes its sign after it was added", node)
        scores.factor *= scaled[1]
        scores.biases = [
            (replace(bias, factor=bias.factor * scaled[1], fill=bias.fill * scaled[1]), layout)
            for bias, layout in scores.biases
        ]
    elif shift:
        scores.shifted = True
    elif name in ("add", "sub"):
        _add(scores, before, node, name)
    elif name in ("where", "masked_fill"):
        scores.biases.append((_hiding(before, node, name), scores.layout))
    elif moved:
        layout = downward(node, scores.layout)
        if layout is None:
            raise Refused("unsupported-shape", f"{node.target} mixes the axes of the scores", node)
        scores.layout = layout
    elif name == "mul":
        _heat(scores, before, node)
    elif name == "tanh":
        _bend(scores, node)
    elif name == "cat":
        _sink(scores, before, node)
    elif name in ("max", "maximum", "clamp", "clamp_min"):
        _raise_lowest(scores, before, node)
    elif name == "div":
        raise Refused("unsupported-op", "the scores are divided by something that is not a constant", node)
    else:
        raise Refused("unsupported-op", f"{node.target} acts on the scores", node)
    _keeps_shape(scores, node)


def _cut_finer(scores: Scores, node: Node) -> Layout | None:
    """The layout behind a view that cuts the query and key axes into parts, or puts them together again."""
    made = tensor(node)
    if made is None:
        return None
    if scores.whole is not None:
        sizes = [math.prod(atom.size for atom in axis) for axis in resolved(scores.whole)]
        if len(sizes) != made.dim() or not all(map(same, sizes, made.shape)):
            return regroup((atom for axis in scores.layout for atom in axis), made.shape)
        layout, scores.whole = scores.whole, None
        return layout
    axes = resolved(scores.layout)
    rigid = [axis for axis in axes if len(axis) == 1 and axis[0].rigid]
    if scores.sinks is not None or rigid != list(axes[-2:]) or made.dim() <= len(axes):
        return None
    kept: Layout | None = None
    for count in range(1, made.dim() - len(axes) + 2):
        # The query axis becomes ``count`` axes, the key axis the rest; batch axes stay as they are.
        rows, columns = made.shape[len(axes) - 2 :][:count], made.shape[len(axes) - 2 :][count:]
        if kept is None and same(math.prod(rows), rigid[0][0].size) and same(math.prod(columns), rigid[1][0].size):
            finer = {rigid[0][0]: tuple(map(Atom, rows)), rigid[1][0]: tuple(map(Atom, columns))}
            kept = (*axes[:-2], *((atom,) for parts in finer.values() for atom in parts))
    sizes = [math.prod(atom.size for atom in axis) for axis in axes[:-2]]
    if kept is None or scores.finer or not all(map(same, sizes, made.shape)):
        return None
    scores.finer, scores.whole = finer, scores.layout
    return kept


def _keeps_shape(scores: Scores, node: Node) -> None:
    made = tensor(node)
    if made is None or made.dim() != len(scores.layout):
        raise Refused("unsupported-shape", f"{node.target} broadcasts the scores", node)
    for axis, size in zip(resolved(scores.layout), made.shape, strict=True):
        whole: object = 1
        for atom in axis:
            whole = whole * atom.size
        if scores.sinks is not None and axis == (scores.sinks.axis,):
            whole = whole + 1  # type: ignore[operator]
        if not same(whole, size):
            raise Refused("unsupported-shape", f"{node.target} broadcasts the scores", node)


def _heat(scores: Scores, before: Node, node: Node) -> None:
    """A temperature: the scores times a tensor."""
    left, right = node.args[:2]
    other = right if left is before else left
    if tensor(other) is None or other is before or not tensor(other).is_floating_point():  # type: ignore[union-attr]
        raise Refused("unsupported-op", "the scores are multiplied with themselves", node)
    if scores.biases:
        raise Refused("unsupported-mask", "a bias is scaled after it was added", node)
    if scores.temperature is not None or scores.bent is not None or scores.shifted:
        raise Refused("unsupported-op", "the scores are scaled twice by something that is not a constant", node)
    scores.temperature = (plainest(other), scores.layout)  # type: ignore[arg-type]


def _bend(scores: Scores, node: Node) -> None:
    """The hyperbolic tangent of a soft cap."""
    if scores.biases:
        raise Refused("unsupported-mask", "a bias is capped after it was added", node)
    if scores.bent is not None or scores.shifted:
        raise Refused("unsupported-op", f"{node.target} acts on scores that are shifted or capped already", node)
    scores.bent, scores.factor = scores.factor, 1.0


def _sink(scores: Scores, before: Node, node: Node) -> None:
    """One more score beside the others, whose weight is dropped after the softmax."""
    parts: Any = node.args[0]
    first = parts[1] is before
    other, axis = parts[0 if first else 1], dimension(argument(node, "dim"), len(scores.layout))
    atoms = resolved(scores.layout)[axis]
    if not same(other.meta["val"].shape[axis], 1) or len(atoms) != 1 or not atoms[0].rigid:
        raise Refused("unsupported-op", f"{node.target} joins the scores with other scores", node)
    if scores.shifted:
        raise Refused("unsupported-op", "a sink joins scores that are shifted already", node)
    scores.sinks = Sinks(plainest(other), scores.layout, atoms[0], first)


def _raise_lowest(scores: Scores, before: Node, node: Node) -> None:
    """A floor under the scores, so low that it holds hidden ones only."""
    others = [item for item in (*node.args, *node.kwargs.values()) if item is not before and item is not None]
    lowest = hidden_fill(others[0]) if len(others) == 1 and node.kwargs.get("max") is None else None
    if lowest is None or scores.shifted:
        raise Refused("unsupported-op", f"{node.target} acts on the scores", node)
    scores.biases.append((Bias("floor", None, fill=lowest), scores.layout))


def _add(scores: Scores, before: Node, node: Node, name: str) -> None:
    left, right = node.args[:2]
    other = right if left is before else left
    if scalar(other) is not None and not (name == "sub" and other is left):
        scores.shifted = True  # the same number on every score changes no weight
        return
    times = scalar(node.kwargs.get("alpha", 1))
    if times is None or tensor(other) is None or (other is left and (name == "sub" or times != 1.0)):
        raise Refused("unsupported-op", f"{node.target} acts on the scores", node)
    factor = -times if name == "sub" else times
    scores.biases.append((Bias("additive", other, factor=factor), scores.layout))  # type: ignore[arg-type]


def _is_maximum(node: Any, of: Node) -> bool:
    return isinstance(node, Node) and is_row_maximum(node, of)


def _hiding(before: Node, node: Node, name: str) -> Bias:
    if name == "masked_fill":
        mask, fill, kind = node.args[1], node.args[2], "hidden"
    else:
        mask, kept, other = node.args
        kind, fill = ("boolean", other) if kept is before else ("hidden", kept)
    number = hidden_fill(fill)
    made = tensor(mask)
    if number is None or made is None or str(made.dtype) != "torch.bool":
        raise Refused("unsupported-mask", f"{node.target} puts something else than a low number in the scores", node)
    return Bias(kind, mask, fill=number)  # type: ignore[arg-type]
