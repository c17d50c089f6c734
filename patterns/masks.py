"""What is added to attention scores, or hides some of them: read, simplified and recognised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from .effects import Effects
from .evaluate import constant_value
from .nodes import CASTS, argument, operation, scalar, tensor, unchanged
from .operands import factor_of
from .sites import Bias

# A finite number this low hides a score: its weight underflows to zero beside any visible one.
LOW = -1e4
# Added (not put) in place of a score, only a number this low leaves nothing of the score, even in float64: then a row
# where every key is hidden is the same whichever way the mask was written.
_ABSORBING = -1e20

_NOT = frozenset({"bitwise_not", "logical_not", "__invert__"})
_AND = frozenset({"bitwise_and", "logical_and", "__and__"})
_OR = frozenset({"bitwise_or", "logical_or", "__or__"})
_FILLED = frozenset({"zeros", "zeros_like", "new_zeros", "full", "full_like", "new_full", "scalar_tensor"}) | {
    "ones",
    "ones_like",
    "new_ones",
}


def simplify(bias: Bias, effects: Effects) -> list[Bias]:
    """The plainest biases that together mean ``bias``: causal where that is known, boolean where additive hides."""
    found: list[Bias] = []
    pending = [bias]
    while pending:
        item = pending.pop()
        known = _known(item, effects)
        parts = None if known is not None else _step(item)
        if known is not None:
            found += known
        elif parts is not None:
            pending.extend(reversed(parts))
        else:
            found.append(_shaped(item))
    return found


def hidden_fill(value: Any) -> float | None:
    """The number behind a fill argument when it is low enough to hide a score."""
    number = scalar(value)
    return number if number is not None and number <= LOW else None


def plainest(node: Node) -> Node:
    """The value that means the same as ``node`` under broadcasting, without the expansions in between."""
    while node.op == "call_function" and _only_broadcast(node) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def without_not(mask: Any) -> tuple[Any, bool]:
    """The mask that ``mask`` is or negates, and whether it negates it."""
    inverted = False
    while isinstance(mask, Node) and operation(mask) in _NOT and _boolean(mask.args[0]):
        mask, inverted = mask.args[0], not inverted
    return mask, inverted


def _step(bias: Bias) -> list[Bias] | None:
    """One simplification, or None when there is none."""
    node = bias.value
    if node is None or node.op != "call_function":
        return None
    if _only_broadcast(node) and isinstance(node.args[0], Node):
        return [dataclasses.replace(bias, value=node.args[0])]
    return _additive_step(bias, node) if bias.kind == "additive" else _boolean_step(bias, node)


def _only_broadcast(node: Node) -> bool:
    """True when reading the first argument in place of ``node`` means the same under broadcasting."""
    name = operation(node)
    made, source = tensor(node), tensor(node.args[0]) if node.args else None
    if made is None or source is None or made.dtype != source.dtype or made.device != source.device:
        return False
    if name in CASTS or unchanged(node) or name in ("expand", "expand_as", "broadcast_to"):
        return True
    # Leading axes of size one say nothing.
    if name in ("unsqueeze", "view", "reshape"):
        leading = made.dim() - source.dim()
        return leading >= 0 and tuple(made.shape) == (1,) * leading + tuple(source.shape)
    return False


def _additive_step(bias: Bias, node: Node) -> list[Bias] | None:
    name = operation(node)
    if name in CASTS and isinstance(node.args[0], Node) and operation(node.args[0]) in ("where", "masked_fill"):
        return [dataclasses.replace(bias, value=node.args[0])]
    choice: Any = None
    if name == "where" and len(node.args) == 3 and _boolean(node.args[0]):
        kept, other = (0.0 if _zero(item) else scalar(item) for item in node.args[1:])
        choice = (node.args[0], kept, other)
    elif name == "masked_fill" and (_zero(node.args[0]) or _where_not_zero(node.args[1], node.args[0])):
        choice = (node.args[1], scalar(node.args[2]), 0.0)
    else:
        choice = _scaled_mask(node)
    if choice is None or None in choice:
        return None
    mask, where_true, where_false = choice[0], choice[1] * bias.factor, choice[2] * bias.factor
    if where_true == 0.0 and where_false <= _ABSORBING:
        return [Bias("boolean", mask, fill=where_false)]
    if where_false == 0.0 and where_true <= _ABSORBING:
        return [Bias("hidden", mask, fill=where_true)]
    return None


def _where_not_zero(mask: Any, value: Any) -> bool:
    """True when ``mask`` is ``value`` read as booleans, so that the elements left alone are zeros."""
    return isinstance(mask, Node) and operation(mask) in CASTS and mask.args[0] is value and _boolean(mask)


def _scaled_mask(node: Node) -> tuple[Node, float, float] | None:
    """A boolean mask in arithmetic, such as ``(1 - mask) * lowest``: the mask, and the values where it is 1 and 0."""
    factor, offset = 1.0, 0.0  # the bias is factor * node + offset
    for _ in range(8):
        name = operation(node)
        if _boolean(node):
            return node, factor + offset, offset
        if not node.args or node.op != "call_function":
            return None
        scaled = factor_of(node)
        if scaled is not None:
            node, factor = scaled[0], factor * scaled[1]
        elif name in CASTS or unchanged(node):
            node = node.args[0]  # type: ignore[assignment]
        elif name in ("add", "sub", "rsub") and len(node.args) == 2 and not node.kwargs:
            left, right = node.args if name != "rsub" else node.args[::-1]
            sign = 1.0 if name == "add" else -1.0
            left_number, right_number = _number(left), _number(right)
            if left_number is not None and isinstance(right, Node):
                node, offset, factor = right, offset + factor * left_number, factor * sign
            elif right_number is not None and isinstance(left, Node):
                node, offset = left, offset + factor * sign * right_number
            else:
                return None
        else:
            return None
        if not isinstance(node, Node):
            return None
    return None


def _number(value: Any) -> float | None:
    """A constant, or a tensor filled with one that a mask broadcasts against."""
    number = scalar(value)
    return number if number is not None or not isinstance(value, Node) else filled_with(value)


def _boolean_step(bias: Bias, node: Node) -> list[Bias] | None:
    name = operation(node)
    other = "hidden" if bias.kind == "boolean" else "boolean"
    first: Any = node.args[0] if node.args else None
    operands: Any = node.args
    if name in _NOT and _boolean(first):
        return [dataclasses.replace(bias, kind=other, value=first)]
    if name in ("eq", "ne") and _boolean(first) and scalar(node.args[1]) in (0.0, 1.0):
        kept = (scalar(node.args[1]) == 1.0) == (name == "eq")
        return [dataclasses.replace(bias, kind=bias.kind if kept else other, value=first)]
    numbers = _scaled_mask(first) if isinstance(first, Node) and not _boolean(first) else None
    compared = scalar(node.args[1]) if name in ("eq", "ne") else 0.0 if name in CASTS else None
    if numbers is not None and compared is not None:
        # Arithmetic on a mask compared with one of its two values, or read as booleans.
        mask, where_true, where_false = numbers
        hits = (where_true == compared) == (name == "eq"), (where_false == compared) == (name == "eq")
        if hits[0] != hits[1]:
            return [dataclasses.replace(bias, kind=bias.kind if hits[0] else other, value=mask)]
    if name in (_AND if bias.kind == "boolean" else _OR) and all(_boolean(item) for item in operands):
        return [dataclasses.replace(bias, value=item) for item in operands]
    return None


def _boolean(value: Any) -> bool:
    made = tensor(value)
    return made is not None and made.dtype is torch.bool


def _zero(value: Any) -> bool:
    return _number(value) == 0.0


def filled_with(node: Node) -> float | None:
    """The number that every element of ``node`` has by the operation that makes it."""
    name = operation(node)
    if name not in _FILLED:
        return None
    if "zeros" in name or "ones" in name:
        return float("ones" in name)
    return scalar(argument(node, "s" if name == "scalar_tensor" else "fill_value"))


def _known(bias: Bias, effects: Effects) -> list[Bias] | None:
    """A constant mask as what it is: nothing when it hides nothing, ``causal`` or a window when it hides just that.

    None when it is not constant, or an additive one that may still turn out to be boolean.
    """
    node = bias.value
    if node is None:
        return [bias]
    if scalar(node) == _NOTHING[bias.kind]:
        return []
    if filled_with(node) == _NOTHING[bias.kind] and not effects.is_written(node):
        return []  # of any size, known or not
    value = constant_value(node) if node in effects.constants else None
    if value is None:
        return None
    visible = _VISIBLE[bias.kind](value * bias.factor if bias.kind == "additive" else value)
    if visible is None:
        return None
    if bool(visible.all()):
        return []
    band = _band(visible)
    if band == (None, 0):
        return [Bias("causal", None, "causal", fill=bias.fill)]
    if bias.kind == "additive":
        return None
    return [_shaped(bias) if band is None else dataclasses.replace(bias, structure="window", window=band)]


def _shaped(bias: Bias) -> Bias:
    return bias if bias.value is None else dataclasses.replace(bias, structure=_structure(bias.value))


def _hides(value: Tensor) -> Tensor | None:
    low = value <= LOW
    return ~low if bool(((value == 0) | low).all()) else None


# The number that hides nothing and adds nothing.
_NOTHING = {"additive": 0.0, "boolean": 1.0, "hidden": 0.0}

_VISIBLE: dict[str, Callable[[Tensor], Tensor | None]] = {
    "additive": _hides,
    "boolean": lambda value: value,
    "hidden": lambda value: ~value,
}


def _band(visible: Tensor) -> tuple[int | None, int | None] | None:
    """``(left, right)`` when exactly the keys from ``row - left`` to ``row + right`` are visible (None: no limit)."""
    while visible.dim() > 2:
        if visible.shape[0] != 1 and not bool((visible == visible[:1]).all()):
            return None
        visible = visible[0]
    if visible.dim() != 2 or 1 in visible.shape:
        return None
    rows, columns = visible.shape
    count = visible.sum(dim=1)
    if bool((count == 0).any()):
        return None
    first = visible.to(torch.uint8).argmax(dim=1)
    last = columns - 1 - visible.to(torch.uint8).flip(1).argmax(dim=1)
    place = torch.arange(rows)
    left, right = int((place - first).max()), int((last - place).max())
    interval = torch.equal(last - first + 1, count)
    starts = torch.equal(first, (place - left).clamp(min=0))
    ends = torch.equal(last, (place + right).clamp(max=columns - 1))
    if not (interval and starts and ends):
        return None
    return (None if left >= rows - 1 else left), (None if right >= columns - 1 else right)


def _structure(node: Node) -> str:
    made = tensor(node)
    if made is None or made.dim() == 0:
        return "unknown"
    across_queries = made.dim() >= 2 and made.shape[-2] != 1
    if made.shape[-1] == 1:
        return "unknown"
    return "full" if across_queries else "padding"
