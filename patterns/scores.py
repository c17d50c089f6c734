"""From a softmax up to the one contraction its scores come from, and what happens to the scores on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch.fx import Graph, Node

from .axes import Atom, Contraction, Layout, contraction, downward, resolved, same
from .masks import hidden_fill
from .nodes import (
    CASTS,
    CONTRACTIONS,
    MOVEMENTS,
    argument,
    cast_of,
    dimension,
    mutates,
    operation,
    readers,
    scalar,
    tensor,
    unchanged,
)
from .operands import factor_of
from .reasons import Reason
from .sites import Bias

_SUMS = frozenset({"add", "sub", "add_", "sub_"})
_CHOICES = frozenset({"where", "masked_fill", "masked_fill_"})
_POINTWISE = frozenset(
    {"mul", "div", "mul_", "div_", "multiply", "true_divide", "neg", "tanh", "sigmoid", "relu", "clamp", "clamp_min"}
    | {"maximum", "minimum", "exp", "abs", "pow", "copy_", "fill_", "tril", "triu"}
)
_STEPS = _SUMS | _CHOICES | _POINTWISE | MOVEMENTS | CASTS | {"slice"}
# An epilogue is a handful of operations; anything longer is another computation that happens to start at a product.
_LONGEST = 24


class Refused(Exception):
    """A candidate that turned out not to be the pattern; carries the reason."""

    def __init__(self, code: str, text: str, *nodes: Node) -> None:
        super().__init__(text)
        self.reason = Reason(code, text, tuple(node.name for node in nodes))


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
        """Ways from a contraction (first) down to ``node`` (last): the shortest, and one that turns once elsewhere."""
        if node not in self._depth:
            return []
        found = [self._path(node, {})]
        turn = next((step for step in reversed(found[0]) if len(self.sources.get(step, ())) > 1), None)
        if turn is not None:
            found.append(self._path(node, {turn: self.sources[turn][1]}))
        return found

    def _path(self, node: Node, turns: dict[Node, Node]) -> list[Node]:
        path = [node]
        while path[-1] in self.sources:
            path.append(turns.get(path[-1], self.sources[path[-1]][0]))
        return path[::-1]


def _operands(node: Node, name: str) -> list[Node]:
    if name == "where":
        items = node.args[1:3]
    elif name in _CHOICES or name in MOVEMENTS or name in CASTS or name == "slice":
        items = node.args[:1]
    else:
        items = node.args[:2]
    return [item for item in items if isinstance(item, Node)]


@dataclass(eq=False)
class Product:
    """A contraction with atoms for its letters. ``rows`` and ``columns`` are the left and right operands' own axes."""

    node: Node
    spec: Contraction
    batch: tuple[Atom, ...]
    rows: Atom
    columns: Atom
    left: Layout
    right: Layout
    out: Layout


def product(node: Node) -> Product:
    """The product at ``node`` with fresh atoms; Refused when it is not batch x rows x columns over one letter."""
    spec = contraction(node)
    if spec is None:
        raise Refused("unsupported-op", f"{node.target} is not a product of two tensors", node)
    left, right, out = set(spec.left_letters), set(spec.right_letters), set(spec.out_letters)
    rows, columns, inner = left - right, right - left, (left & right) - out
    if len(rows) != 1 or len(columns) != 1 or len(inner) != 1 or not (rows | columns) <= out:
        raise Refused("unsupported-shape", "scores need one query, one key and one summed axis", node)
    sizes: dict[str, object] = dict(zip(spec.out_letters, node.meta["val"].shape, strict=True))
    (summed,) = inner
    sizes[summed] = spec.left.meta["val"].shape[spec.left_letters.index(summed)]
    free = rows | columns | inner
    atoms = {letter: Atom(size, rigid=letter in free) for letter, size in sizes.items()}
    if any(atom.size == 0 for atom in atoms.values()):
        raise Refused("unsupported-shape", "an axis has no elements", node)
    return Product(
        node,
        spec,
        tuple(atoms[letter] for letter in spec.out_letters if letter not in free),
        atoms[rows.pop()],
        atoms[columns.pop()],
        _operand_layout(spec.left, spec.left_letters, atoms),
        _operand_layout(spec.right, spec.right_letters, atoms),
        tuple((atoms[letter],) for letter in spec.out_letters),
    )


def _operand_layout(node: Node, letters: Sequence[str], atoms: dict[str, Atom]) -> Layout:
    shape = node.meta["val"].shape
    return tuple(
        (atoms[letter],) if same(size, atoms[letter].size) else () for letter, size in zip(letters, shape, strict=True)
    )


@dataclass(eq=False)
class Scores:
    """What reaches the softmax: ``factor`` times the product, then ``biases``, each added in its own layout."""

    product: Product
    layout: Layout
    factor: float
    biases: list[tuple[Bias, Layout]] = field(default_factory=list)
    layouts: dict[Node, Layout] = field(default_factory=dict)


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
        if beta != 1.0:
            raise Refused("unsupported-mask", "a bias is scaled", path[0])
        scores.biases.append((Bias("additive", spec.addend), scores.layout))
    for before, node in zip(path, path[1:], strict=False):
        _step(scores, before, node)
        scores.layouts[node] = scores.layout
    return scores


def _step(scores: Scores, before: Node, node: Node) -> None:
    name = operation(node)
    if mutates(node):
        raise Refused("mutation", f"{node.target} changes the scores in place", node)
    scaled = factor_of(node)
    if scaled is not None and scaled[0] is before:
        if scores.biases and scaled[1] != 1.0:
            raise Refused("unsupported-mask", "a bias is scaled after it was added", node)
        scores.factor *= scaled[1]
    elif name in ("add", "sub"):
        _add(scores, before, node, name)
    elif name in ("where", "masked_fill"):
        scores.biases.append((_hiding(before, node, name), scores.layout))
    elif name in MOVEMENTS or unchanged(node) or cast_of(node) is not None:
        layout = downward(node, scores.layout)
        if layout is None:
            raise Refused("unsupported-shape", f"{node.target} mixes the axes of the scores", node)
        scores.layout = layout
    elif name in ("mul", "div"):
        raise Refused("unsupported-op", "the scores are scaled by something that is not a constant", node)
    else:
        raise Refused("unsupported-op", f"{node.target} acts on the scores", node)
    made = tensor(node)
    if made is None or made.dim() != len(scores.layout):
        raise Refused("unsupported-shape", f"{node.target} broadcasts the scores", node)
    for axis, size in zip(resolved(scores.layout), made.shape, strict=True):
        whole: object = 1
        for atom in axis:
            whole = whole * atom.size
        if not same(whole, size):
            raise Refused("unsupported-shape", f"{node.target} broadcasts the scores", node)


def _add(scores: Scores, before: Node, node: Node, name: str) -> None:
    left, right = node.args[:2]
    other = right if left is before else left
    if scalar(other) is not None:
        return  # the same number on every score changes no weight
    shift = name == "sub" and left is before and isinstance(other, Node) and is_row_maximum(other, before)
    if shift:
        return
    if name == "sub" or node.kwargs.get("alpha", 1) != 1 or tensor(other) is None:
        raise Refused("unsupported-op", f"{node.target} acts on the scores", node)
    scores.biases.append((Bias("additive", other), scores.layout))  # type: ignore[arg-type]


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


def is_row_maximum(node: Node, of: Node) -> bool:
    """True for the (detached) maximum of ``of`` along one axis, kept as an axis of size one."""
    while operation(node) in ("detach", "alias") and isinstance(node.args[0], Node):
        node = node.args[0]
    if "getitem" in str(node.target) and node.args[1] == 0 and isinstance(node.args[0], Node):
        node = node.args[0]
    return operation(node) in ("amax", "max") and node.args[0] is of and argument(node, "keepdim") is True


@dataclass(frozen=True, eq=False)
class Softmax:
    """A normalisation by exponentials over one axis: ``weights`` from ``scores``, however it was written."""

    weights: Node
    scores: Node
    axis: int
    form: str
    hidden_rows: str = "nan"


def softmax_at(node: Node) -> Softmax | None:
    """``node`` read as the last operation of a softmax."""
    name = operation(node)
    made = tensor(node)
    if made is None or not node.args or not isinstance(node.args[0], Node):
        return None
    if name in ("softmax", "_softmax", "_safe_softmax"):
        axis = argument(node, "dim")
        rows = "zero" if name == "_safe_softmax" else "nan"
        return Softmax(node, node.args[0], dimension(axis, made.dim()), name, rows) if isinstance(axis, int) else None
    if name != "div" or len(node.args) < 2 or operation(node.args[0]) != "exp" or not isinstance(node.args[1], Node):
        return None
    raised, total = node.args[:2]
    if operation(total) != "sum" or total.args[0] is not raised:  # type: ignore[arg-type, union-attr]
        return None
    axes = argument(total, "dim") if len(total.args) > 1 else None  # type: ignore[arg-type, union-attr]
    if not axes or len(axes) != 1 or argument(total, "keepdim") is not True:  # type: ignore[arg-type]
        return None
    if len(readers(raised)) != 2:  # type: ignore[arg-type]
        return None
    return Softmax(node, raised.args[0], dimension(axes[0], made.dim()), "exp-sum")  # type: ignore[union-attr, arg-type]
