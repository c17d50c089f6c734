"""A softmax however it is written: one operator, exponentials over their sum, or of logarithms of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from .axes import contraction
from .nodes import argument, dimension, operation, readers, tensor


@dataclass(frozen=True, eq=False)
class Softmax:
    """A normalisation by exponentials over one axis: ``weights`` from ``scores``, however it was written.

    With ``divided`` the weights are not normalised themselves: their product with the value is, at that node.
    """

    weights: Node
    scores: Node
    axis: int
    form: str
    hidden_rows: str = "nan"
    divided: Node | None = None


def softmax_at(node: Node) -> Softmax | None:
    """``node`` read as the last operation of a softmax."""
    rule = _RULES.get(operation(node))
    return rule(node) if rule is not None and node.args and tensor(node) is not None else None


def is_row_maximum(node: Node, of: Node) -> bool:
    """True for the (detached) maximum of ``of`` along one axis, kept or put back as an axis of size one."""
    back: int | None = None
    while operation(node) in ("detach", "alias", "unsqueeze") and isinstance(node.args[0], Node):
        if operation(node) == "unsqueeze":
            back = dimension(argument(node, "dim"), node.meta["val"].dim())
        node = node.args[0]
    if "getitem" in str(node.target) and node.args[1] == 0 and isinstance(node.args[0], Node):
        node = node.args[0]
    if operation(node) not in ("amax", "max") or node.args[0] is not of:
        return False
    if argument(node, "keepdim") is True:
        return back is None
    axes: Any = argument(node, "dim")
    axes = [axes] if isinstance(axes, int) else axes
    return isinstance(axes, list | tuple) and [dimension(axis, of.meta["val"].dim()) for axis in axes] == [back]


def _operator(node: Node) -> Softmax | None:
    name, axis, scores = operation(node), argument(node, "dim"), node.args[0]
    rows = "zero" if name == "_safe_softmax" else "nan"
    if not isinstance(axis, int) or not isinstance(scores, Node):
        return None
    return Softmax(node, scores, dimension(axis, node.meta["val"].dim()), name, rows)


def _of_logarithms(node: Node) -> Softmax | None:
    """``exp(log_softmax(x))``, or ``exp(x - logsumexp(x))``."""
    inner, rank = node.args[0], node.meta["val"].dim()
    if not isinstance(inner, Node) or not inner.args or not isinstance(inner.args[0], Node):
        return None
    scores = inner.args[0]
    if operation(inner) == "log_softmax":
        return Softmax(node, scores, dimension(argument(inner, "dim"), rank), "log-softmax")
    total = inner.args[1] if operation(inner) == "sub" and not inner.kwargs else None
    if not isinstance(total, Node) or operation(total) != "logsumexp" or total.args[0] is not scores:
        return None
    axis = _one_axis(total, "dim", rank)
    return None if axis is None else Softmax(node, scores, axis, "logsumexp")


def _quotient(node: Node) -> Softmax | None:
    """``exp(x) / sum(exp(x))``, or the product of ``exp(x)`` with a value over that sum."""
    pair = _parts(node)
    if pair is None:
        return None
    above, total = pair
    raised = total.args[0] if operation(total) == "sum" else None
    if not isinstance(raised, Node) or operation(raised) != "exp":
        return None
    axis = _one_axis(total, "dim", raised.meta["val"].dim()) if len(total.args) > 1 else None
    if axis is None or len(readers(raised)) != 2 or not isinstance(raised.args[0], Node):
        return None
    if above is raised:
        return Softmax(node, raised.args[0], axis, "exp-sum")
    spec = contraction(above)
    if spec is None or raised not in (spec.left, spec.right) or raised is spec.addend:
        return None
    return Softmax(raised, raised.args[0], axis, "exp-sum-after", divided=node)


def _parts(node: Node) -> tuple[Node, Node] | None:
    """Numerator and denominator of a quotient, or of a product with a reciprocal."""
    left, right = (*node.args, None, None)[:2]
    if not isinstance(left, Node) or not isinstance(right, Node) or node.kwargs:
        return None
    if operation(node) in ("div", "true_divide"):
        return left, right
    for above, below in ((left, right), (right, left)):
        if operation(below) == "reciprocal" and isinstance(below.args[0], Node):
            return above, below.args[0]
    return None


def _one_axis(node: Node, name: str, rank: int) -> int | None:
    """The only axis of a reduction that keeps it, counted from the front."""
    axes: Any = argument(node, name)
    if not isinstance(axes, list | tuple) or len(axes) != 1 or argument(node, "keepdim") is not True:
        return None
    return dimension(axes[0], rank)


_RULES: dict[str, Callable[[Node], Softmax | None]] = {
    "softmax": _operator,
    "_softmax": _operator,
    "_safe_softmax": _operator,
    "exp": _of_logarithms,
    "div": _quotient,
    "true_divide": _quotient,
    "mul": _quotient,
}
