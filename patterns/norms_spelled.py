"""Norms written out: ``x * rsqrt(mean(x^2) + eps)`` and what it is scaled and shifted by.

Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019); Ba et al., "Layer Normalization" (2016), which takes
the mean off first. Models spell both with their own casts; only what is computed counts here.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from .describe import same
from .nodes import CASTS, COPIES, argument, cast_of, dimension, operation, readers, scalar, tensor
from .reasons import Reason

# A layer norm with every cast written out has fifteen operations.
_LONGEST = 24


@dataclass(eq=False)
class Spelled:
    """The parts of a norm; see :class:`laconic.patterns.sites.Norm`."""

    anchor: Node
    output: Node
    input: Node
    norm: str
    epsilon: float
    dims: tuple[int, ...]
    weight: Node | None = None
    bias: Node | None = None
    groups: int = 1
    mean: Node | None = None
    variance: Node | None = None


def spelled(node: Node) -> Spelled | Reason | None:
    """The norm around ``node``, if that is the inverse root of a mean square (or the root, and a division follows).

    A reason when others read the root too.
    """
    power = _power(node)
    if power is None or not node.args or not isinstance(node.args[0], Node):
        return None
    spread = _spread(node.args[0])
    if spread is None:
        return None
    squared, dims, epsilon, centred = spread
    scaled = _scaled(node, power)
    if scaled is None:
        users = readers(node)
        if len(users) > 1 and any(squared in user.all_input_nodes for user in users):
            return Reason("weights-escape", f"{node.name} is read in {len(users)} places", (node.name,))
        return None
    product, value = scaled
    source = _centre(value, dims)
    if source is None:
        if centred or not _same(squared, value):
            return None
        x, norm = value if squared is value else _uncast(value), "rms"
    else:
        # What is scaled is the value less its mean; the variance may be taken of either.
        origin = squared if centred and _same(squared, source) else _centre(squared, dims)
        if origin is None or not _same(origin, source):
            return None
        x, norm = source if origin is source else _uncast(source), "layer"
    found = Spelled(node, product, x, norm, epsilon, dims)
    _affine(found)
    _above_casts(found)
    return found


def _power(node: Node) -> float | None:
    """-0.5 for an inverse root, 0.5 for a root."""
    name = operation(node)
    if name in ("rsqrt", "sqrt"):
        return -0.5 if name == "rsqrt" else 0.5
    exponent = scalar(node.args[1]) if name == "pow" and len(node.args) == 2 else None
    return exponent if exponent in (-0.5, 0.5) else None


def _spread(node: Node) -> tuple[Node, tuple[int, ...], float, bool] | None:
    """``mean(square(v), dims) + eps`` or ``var(v, dims) + eps``: v, dims, eps, and whether it was a variance."""
    epsilon = 0.0
    node = _uncast(node)
    if operation(node) == "add" and len(node.args) == 2 and argument(node, "alpha") == 1:
        for term, other in (node.args, node.args[::-1]):
            number = scalar(other)
            if number is not None and isinstance(term, Node):
                node, epsilon = _uncast(term), number
                break
    name = operation(node)
    source = tensor(node.args[0]) if node.args else None
    if source is None or name not in ("mean", "var"):
        return None
    try:
        given, kept = argument(node, "dim"), argument(node, "keepdim")
    except KeyError:
        return None
    if given is None or not kept:
        return None
    given = given if isinstance(given, list | tuple) else [given]
    dims = tuple(sorted(dimension(dim, source.dim()) - source.dim() for dim in given))
    inner: Node = node.args[0]  # type: ignore[assignment]
    if name == "var":
        return (inner, dims, epsilon, True) if _biased(node) else None
    value = _squared(_uncast(inner))
    return None if value is None else (value, dims, epsilon, False)


def _biased(node: Node) -> bool:
    """A variance divided by the count, not by one less."""
    try:
        return argument(node, "correction") == 0
    except KeyError:
        return argument(node, "unbiased") is False


def _squared(node: Node) -> Node | None:
    name = operation(node)
    value = node.args[0] if node.args else None
    if name == "square" or (name == "pow" and scalar(node.args[1]) == 2.0):
        return value if isinstance(value, Node) else None
    if name == "mul" and isinstance(value, Node) and node.args[1] is value:
        return value
    return None


def _scaled(node: Node, power: float) -> tuple[Node, Node] | None:
    """The product with the inverse root (or the quotient by the root), and what is scaled."""
    users = readers(node)
    if len(users) != 1:
        return None
    (user,) = users
    name = operation(user)
    if name in CASTS and tensor(user) is not None:
        return _scaled(user, power) if operation(node) not in CASTS else None
    if power > 0 and name == "reciprocal":
        return _scaled(user, -0.5)
    if power > 0 and name in ("div", "true_divide") and user.args[1] is node and len(user.kwargs) == 0:
        return (user, user.args[0]) if isinstance(user.args[0], Node) else None
    if power < 0 and name == "mul":
        other = user.args[1] if user.args[0] is node else user.args[0]
        return (user, other) if isinstance(other, Node) and other is not node else None
    return None


def _centre(node: Node, dims: tuple[int, ...]) -> Node | None:
    """``x`` where ``node`` is ``x - mean(x, dims)``."""
    node = _uncast(node)
    if operation(node) != "sub" or len(node.args) != 2 or argument(node, "alpha") != 1:
        return None
    source, mean = node.args
    if not isinstance(source, Node) or not isinstance(mean, Node) or operation(mean) != "mean":
        return None
    rank = node.meta["val"].dim()
    try:
        given, kept = argument(mean, "dim"), argument(mean, "keepdim")
    except KeyError:
        return None
    over = tuple(sorted(dimension(dim, rank) - rank for dim in given or ()))
    return source if _same(mean.args[0], source) and kept and over == dims else None


def _same(left: object, right: Node) -> bool:
    return isinstance(left, Node) and _uncast(left) is _uncast(right)


def _uncast(node: Node) -> Node:
    """``node`` before casts and copies."""
    while operation(node) in COPIES or cast_of(node) is not None:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _affine(found: Spelled) -> None:
    """Take in casts, one scale and one shift that follow; each broadcasts over all axes but the normalised ones."""
    here = found.output
    while True:
        users = readers(here)
        if len(users) != 1:
            return
        (user,) = users
        name = operation(user)
        if cast_of(user) is not None:
            here = user
            if here.meta["val"].dtype == found.input.meta["val"].dtype:
                found.output = here
            continue
        if name not in ("mul", "add") or len(user.args) != 2 or (name == "add" and argument(user, "alpha") != 1):
            return
        other = user.args[1] if user.args[0] is here else user.args[0]
        if not isinstance(other, Node) or not _fits(other, found, user) or found.bias is not None:
            return
        if name == "mul":
            if found.weight is not None:
                return
            found.weight = other
        else:
            found.bias = other
        here = found.output = user


def _fits(node: Node, found: Spelled, user: Node) -> bool:
    value, made = tensor(node), tensor(user)
    if value is None or made is None or made.dim() != found.input.meta["val"].dim() or value.dim() == 0:
        return False
    for index, size in enumerate(value.shape):
        axis = index - value.dim()
        if not same(size, made.shape[axis] if axis in found.dims else 1):
            return False
    return True


def _above_casts(found: Spelled) -> None:
    """Start at a value before its widening cast, where nothing but the norm reads the cast."""
    x = found.input
    cast = cast_of(x)
    if cast is None or not cast[0].is_floating_point:
        return
    pending, seen = list(readers(x)), {found.output}
    while pending and len(seen) < _LONGEST:
        node = pending.pop()
        if node.op == "output":
            return
        if node not in seen:
            seen.add(node)
            pending.extend(readers(node))
    if not pending and found.anchor in seen:
        found.input = x.args[0]  # type: ignore[assignment]
