"""Weights of a softmax mixed with other weights, and divided by their sum: they are weights of the keys again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from .axes import Atom, Layout, resolved
from .nodes import argument, dimension, operation, readers, scalar, tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """``share`` times the weights (None: once) plus ``added``, over the sum of that along the keys.

    Both broadcast against the weights. ``steps`` are the nodes whose values lie as the weights do; the last one is the
    result.
    """

    share: Node | None
    added: Node
    steps: Sequence[Node]


def mixture(weights: Node, layout: Layout, columns: Atom) -> Mixture | None:
    """The mixture that ``weights`` go into and nowhere else; None when they go into something else."""
    share: Node | None = None
    steps: list[Node] = []
    node = weights
    found = _other(node, "mul")
    if found is not None:
        node, share = found
        steps.append(node)
    found = _other(node, "add")
    if found is None or found[1] is share:
        return None
    node, added = found
    result = _divided(node, layout, columns)
    return None if result is None else Mixture(share, added, (*steps, node, result))


def _other(node: Node, name: str) -> tuple[Node, Node] | None:
    """The only reader of ``node``, if it is the operation ``name`` with another real tensor, and that tensor."""
    users = readers(node)
    if len(users) != 1 or operation(users[0]) != name or scalar(users[0].kwargs.get("alpha", 1)) != 1.0:
        return None
    left, right = users[0].args[:2]
    other = right if left is node else left
    made = tensor(other)
    if not isinstance(other, Node) or other is node or made is None or not made.is_floating_point():
        return None
    # Something broader would give the weights more axes, or longer ones.
    fits = users[0].meta["val"].shape == node.meta["val"].shape
    return (users[0], other) if fits else None


def _divided(node: Node, layout: Layout, columns: Atom) -> Node | None:
    """``node`` over its sum along the keys, if that and the sum are all that read it."""
    users = readers(node)
    total = next((user for user in users if operation(user) == "sum"), None)
    result = next((user for user in users if operation(user) == "div"), None)
    axes = argument(total, "dim") if total is not None and len(total.args) > 1 else None
    if total is None or result is None or len(users) != 2 or not isinstance(axes, list | tuple) or len(axes) != 1:
        return None
    axis = dimension(axes[0], len(layout))
    if argument(total, "keepdim") is not True:
        kept = readers(total)
        if len(kept) != 1 or operation(kept[0]) != "unsqueeze":
            return None
        (total,) = kept
        if dimension(argument(total, "dim"), len(layout)) != axis:
            return None
    fits = list(result.args) == [node, total] and not result.kwargs and readers(total) == [result]
    return result if fits and resolved(layout)[axis] == (columns,) else None
