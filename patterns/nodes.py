"""Reading single nodes of the normal form: which operation, which arguments, which constants, who reads the value."""

from __future__ import annotations

import math
import operator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .describe import constant_tensor, same

SIZE_READERS = frozenset({"sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "_assert_tensor_metadata"})
CONTRACTIONS = frozenset({"matmul", "bmm", "mm", "baddbmm", "addmm", "einsum"})
CASTS = frozenset({"to", "_to_copy", "type_as", "float", "double", "half", "bfloat16"})
COPIES = frozenset({"contiguous", "clone", "alias"})
RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as"})
PERMUTES = frozenset({"permute", "transpose", "t", "mT", "movedim", "moveaxis", "swapaxes", "swapdims", "numpy_T"})
EXPANSIONS = frozenset({"expand", "expand_as", "broadcast_to", "repeat_interleave", "repeat"})
DROPOUTS = frozenset({"dropout", "native_dropout"})
MOVEMENTS = RESHAPES | PERMUTES | COPIES

# Operations whose result may share memory with their first argument even where the schema does not say so.
_MAY_ALIAS = frozenset({"reshape", "contiguous", "to", "flatten", "unflatten", "expand_as", "view_as", "type_as"})


@lru_cache(maxsize=4096)
def _name(target: Any) -> str:
    name = target.name() if isinstance(target, torch._ops.OpOverload) else ""
    namespace, _, rest = name.partition("::")
    return rest.partition(".")[0] if namespace == "aten" else ""


def operation(node: Node) -> str:
    """The ATen operation without overload (``"softmax"``), or "" for anything that is not one."""
    return _name(node.target) if node.op == "call_function" else ""


@lru_cache(maxsize=4096)
def _parameters(target: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((item.name, item.default_value) for item in target._schema.arguments)


def argument(node: Node, name: str) -> Any:
    """An argument of an ATen node by its schema name, wherever it was written; its default if it was not.

    Raises:
        KeyError: the overload has no such argument.
    """
    for index, (parameter, default) in enumerate(_parameters(node.target)):
        if parameter == name:
            return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)
    raise KeyError(f"{node.target} has no argument {name}")


@lru_cache(maxsize=4096)
def _mutates(target: Any) -> bool:
    # Detaching in place changes no element.
    return isinstance(target, torch._ops.OpOverload) and bool(target._schema.is_mutable) and _name(target) != "detach_"


def mutates(node: Node) -> bool:
    """True for operations that write to an argument."""
    return node.op == "call_function" and _mutates(node.target)


def written(node: Node) -> list[Node]:
    """The nodes whose memory a mutating operation writes."""
    found = []
    for index, item in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if item.alias_info is not None and item.alias_info.is_write:
            value: Any = node.args[index] if index < len(node.args) else node.kwargs.get(item.name)
            found += [value] if isinstance(value, Node) else [v for v in value or () if isinstance(v, Node)]
    return found


@lru_cache(maxsize=4096)
def _aliased_argument(target: Any) -> int | None:
    if not isinstance(target, torch._ops.OpOverload):
        return 0 if target is operator.getitem else None
    if _name(target) in _MAY_ALIAS:
        return 0
    for index, item in enumerate(target._schema.arguments):
        if item.alias_info is not None:
            return index
    return None


def aliased(node: Node) -> Node | None:
    """The argument whose memory the result of ``node`` is, or may be, part of."""
    index = _aliased_argument(node.target) if node.op == "call_function" else None
    value = node.args[index] if index is not None and index < len(node.args) else None
    return value if isinstance(value, Node) else None


def readers(node: Node) -> list[Node]:
    """The users of ``node`` that read its elements (and not only its sizes)."""
    return [user for user in node.users if operation(user) not in SIZE_READERS]


def drop_unread_items(graph: Graph) -> None:
    """Erase items of tuples that nobody reads. A tracer records every item, and a dead one would tie its tuple down."""
    for node in reversed(list(graph.find_nodes(op="call_function", target=operator.getitem))):
        if not node.users:
            graph.erase_node(node)


def drop_unchanged(graph: Graph) -> None:
    """Erase conversions that had nothing to do and returned their operand, as ``x.to(x.dtype)`` does, and full slices.

    A tracer takes what they return for a new value and has everybody after read that: a mask converted by each layer
    would lead through all of them. ``x[:, i]`` is a slice of its own in every step where the first size is symbolic.
    """
    for node in [node for node in graph.nodes if operation(node) in ("to", "type_as", "contiguous", "slice")]:
        source = node.args[0]
        if operation(node) == "slice" and (not unchanged(node) or any(map(_wants_a_view, node.users))):
            continue
        before, after = tensor(source), tensor(node)
        if isinstance(source, Node) and before is not None and after is not None and _one_tensor(before, after):
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _wants_a_view(user: Node) -> bool:
    """Whether ``user`` can tell a view of a tensor from the tensor."""
    return user.op == "output" or mutates(user)


def _one_tensor(source: Tensor, made: Tensor) -> bool:
    """Whether a conversion of ``source`` is ``source``: what is converted lies elsewhere in memory."""
    if source.layout is not torch.strided or made.layout is not torch.strided:
        return False
    return source.dtype == made.dtype and source.untyped_storage()._cdata == made.untyped_storage()._cdata


def tensor(node: Any) -> Tensor | None:
    """The fake tensor of a node, or None when it computes something else."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def unchanged(node: Node) -> bool:
    """True for a copy, or a slice that takes everything."""
    name = operation(node)
    if name != "slice":
        return name in COPIES
    made, source = tensor(node), tensor(node.args[0])
    return (
        made is not None
        and source is not None
        and made.dim() == source.dim()
        and all(map(same, made.shape, source.shape))
    )


def dimension(index: int, rank: int) -> int:
    """An axis index counted from the front."""
    return index + rank if index < 0 else index


_UNARY = {
    "sqrt": math.sqrt,
    "rsqrt": lambda x: 1.0 / math.sqrt(x),
    "reciprocal": lambda x: 1.0 / x,
    "neg": operator.neg,
}
_BINARY = {"mul": operator.mul, "div": operator.truediv, "true_divide": operator.truediv, "pow": operator.pow}
_SAME = CASTS | COPIES | RESHAPES | {"lift_fresh", "lift_fresh_copy", "detach", "detach_", "expand"}


def scalar(value: Any, depth: int = 8) -> float | None:
    """The number behind an argument: a Python number, or a one-element tensor made from constants only."""
    if isinstance(value, bool | int | float):
        return float(value)
    if not isinstance(value, Node) or depth == 0:
        return None
    held = constant_tensor(value)
    if held is not None:
        known = held.numel() == 1 and type(held) is Tensor and not held.is_complex() and not held.is_meta
        return float(held.item()) if known else None
    made = tensor(value)
    if value.op != "call_function" or made is None or made.dim() > 1 or made.numel() != 1 or mutates(value):
        return None
    name = operation(value)
    try:
        if name in _SAME:
            return scalar(value.args[0], depth - 1)
        if name in ("full", "scalar_tensor"):
            return scalar(value.args[-1], depth - 1)
        if name in ("zeros", "ones", "new_zeros", "new_ones"):
            return float(name.endswith("ones"))
        if name in _UNARY:
            inner = scalar(value.args[0], depth - 1)
            return None if inner is None else _UNARY[name](inner)
        if name in _BINARY and len(value.args) == 2:
            left, right = (scalar(item, depth - 1) for item in value.args)
            return None if left is None or right is None else _BINARY[name](left, right)
    except (ArithmeticError, ValueError):
        return None
    return None


def cast_of(node: Node) -> tuple[torch.dtype, torch.dtype] | None:
    """The dtypes a cast goes between; None when ``node`` is not a cast, or moves between devices."""
    if operation(node) not in CASTS or not isinstance(node.args[0], Node):
        return None
    before, after = tensor(node.args[0]), tensor(node)
    if before is None or after is None or before.device != after.device:
        return None
    return before.dtype, after.dtype
