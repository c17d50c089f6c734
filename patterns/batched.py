"""Operators with a leading time axis: what one step computes, computed for all steps at once.

A rule turns a step's call into a call over stacked operands. Functions here run on tensors (real or fake); axis 0 of a
stacked operand is time and the axes behind it are those of one step.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg

from .reasons import Reason

if TYPE_CHECKING:
    from .lift import Value

aten = torch.ops.aten

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def take(source: Tensor, dim: int, start: int, stride: int, length: int, keep: bool) -> Tensor:
    """Elements ``start, start + stride, ...`` of ``source`` along ``dim`` as axis 0.

    ``keep`` leaves an axis of size 1 where ``dim`` was.
    """
    moved = source.movedim(dim, 0)
    if stride < 0:
        lowest = start + (length - 1) * stride
        moved = moved[lowest : start + 1 : -stride].flip(0)
    elif not (start == 0 and stride == 1 and length == source.shape[dim]):
        moved = moved[start : start + (length - 1) * stride + 1 : stride]
    return moved.unsqueeze(dim + 1) if keep else moved


def align(value: Tensor, rank: int) -> Tensor:
    """A stacked value of fewer axes than ``rank`` (per step), with singleton axes behind time so that it broadcasts."""
    return value[(slice(None), *(None,) * (rank + 1 - value.dim()))] if value.dim() < rank + 1 else value


def pointwise(target: Callable[..., Any], rank: int, lifted: Sequence[int], *args: Any, **kwargs: Any) -> Any:
    """An elementwise operator; ``lifted`` are the positions of stacked arguments."""
    aligned = [align(item, rank) if index in lifted else item for index, item in enumerate(args)]
    return target(*aligned, **kwargs)


def matmul(a: Tensor, b: Tensor, ranks: tuple[int, int], lifted: tuple[bool, bool]) -> Tensor:
    """``a @ b`` in each step, of operands with ``ranks`` axes per step."""
    if ranks[1] == 1:
        b = b.unsqueeze(-1)
    if ranks[0] == 1:
        a = a.unsqueeze(-2)
    rank = max(*ranks, 2)
    out = torch.matmul(align(a, rank) if lifted[0] else a, align(b, rank) if lifted[1] else b)
    if ranks[1] == 1:
        out = out.squeeze(-1)
    return out.squeeze(-1 if ranks[1] == 1 else -2) if ranks[0] == 1 else out


def einsum(equation: str, operands: Sequence[Tensor], lifted: Sequence[bool]) -> Tensor:
    """``torch.einsum`` in each step."""
    letter = next(item for item in "zyxwvutsrqponmlkjihgfedcbaZYXWVUTSRQPONMLKJIHGFEDCBA" if item not in equation)
    sides, _, result = equation.replace(" ", "").partition("->")
    marked = [letter + side if stacked else side for side, stacked in zip(sides.split(","), lifted, strict=True)]
    return torch.einsum(f"{','.join(marked)}->{letter}{result}", *operands)


def reshape(value: Tensor, sizes: Sequence[Any]) -> Tensor:
    """The view of each step."""
    return value.reshape(value.shape[0], *sizes)


def expand(value: Tensor, sizes: Sequence[Any]) -> Tensor:
    """The expansion of each step."""
    return align(value, len(sizes)).expand(value.shape[0], *sizes)


def part(values: Sequence[Any], position: int) -> Any:
    """One of several results."""
    return values[position]


def stack(value: Tensor, dim: int, first: Tensor | None = None, last: Tensor | None = None) -> Tensor:
    """``torch.stack`` of the steps (with one more value in front or behind) along ``dim``."""
    return _ended(value, first, last).movedim(0, dim)


def concatenate(value: Tensor, dim: int, first: Tensor | None = None, last: Tensor | None = None) -> Tensor:
    """``torch.cat`` of the steps (with one more value in front or behind) along ``dim``."""
    dim %= value.dim() - 1
    joined = value.movedim(0, dim).flatten(dim, dim + 1)
    if first is None and last is None:
        return joined
    return torch.cat([item for item in (first, joined, last) if item is not None], dim)


def _ended(value: Tensor, first: Tensor | None, last: Tensor | None) -> Tensor:
    if first is None and last is None:
        return value
    parts = (None if first is None else first.unsqueeze(0), value, None if last is None else last.unsqueeze(0))
    return torch.cat([item for item in parts if item is not None], 0)


# Elementwise in effect, though not tagged so.
_LIKE_POINTWISE = {
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.alias.default,
    aten._to_copy.default,
    aten.softplus.default,
    aten.dropout.default,
}
# Operators of one stacked tensor whose named argument is an axis (or a list of axes) of a step: name -> position.
_WITH_AXES: dict[Any, tuple[int, ...]] = {
    aten.select.int: (1,),
    aten.slice.Tensor: (1,),
    aten.squeeze.dim: (1,),
    aten.transpose.int: (1, 2),
    aten.sum.dim_IntList: (1,),
    aten.mean.dim: (1,),
    aten.softmax.int: (1,),
    aten.log_softmax.int: (1,),
    aten.chunk.default: (2,),
    aten.split.Tensor: (2,),
    aten.split_with_sizes.default: (2,),
    aten.flatten.using_ints: (1, 2),
    aten.flip.default: (1,),
}
_DEFAULT_AXIS = {aten.slice.Tensor: 0, aten.chunk.default: 0, aten.split.Tensor: 0, aten.split_with_sizes.default: 0}
_MATMULS = {aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default}
_OTHERS = {
    aten.linear.default,
    aten.unsqueeze.default,
    aten.permute.default,
    aten.view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.stack.default,
    aten.cat.default,
    aten.layer_norm.default,
    aten.einsum.default,
    operator.getitem,
}


def has_rule(target: Any) -> bool:
    """Whether the operator has a form with a time axis. Operators that mutate or draw random numbers have none."""
    return _is_pointwise(target) or target in _WITH_AXES or target in _MATMULS or target in _OTHERS


def is_repeatable(target: Any) -> bool:
    """Whether equal arguments give equal results and nothing else happens."""
    if target is operator.getitem:
        return True
    if not isinstance(target, OpOverload) or target._schema.is_mutable or target is aten.dropout.default:
        return False
    return torch.Tag.nondeterministic_seeded not in target.tags


def _is_pointwise(target: Any) -> bool:
    if target in _LIKE_POINTWISE:
        return True
    return is_repeatable(target) and isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags


def rule(node: Node, values: Mapping[Node, Value], length: int) -> Call | Reason:
    """The call over stacked operands that stands for ``length`` steps shaped like ``node``."""
    target: Any = node.target
    args: list[Any] = list(map_arg(tuple(node.args), lambda item: values[item].node))
    kwargs = map_arg(dict(node.kwargs), lambda item: values[item].node)
    if target in _LIKE_POINTWISE or _is_pointwise(target):
        if target is aten.dropout.default and node.args[2]:
            return Reason("dropout-active", "a step draws random numbers", (node.name,))
        lifted = [index for index, item in enumerate(node.args) if isinstance(item, Node) and values[item].lifted]
        if any(isinstance(item, Node) and values[item].lifted for item in node.kwargs.values()):
            return Reason("unsupported-op", f"{target} takes a step's value by keyword", (node.name,))
        return pointwise, (target, node.meta["val"].dim(), tuple(lifted), *args), kwargs
    if target in _MATMULS:
        a, b = (values[item] for item in node.args[:2] if isinstance(item, Node))
        return matmul, (a.node, b.node, (a.rank, b.rank), (a.lifted, b.lifted)), {}
    if target is aten.einsum.default:
        equation: Any = node.args[0]
        operands: list[Node] = list(node.args[1])  # type: ignore[arg-type]
        if "->" not in equation:
            return Reason("unsupported-op", "an einsum that does not name its result", (node.name,))
        lifted_operands = tuple(values[item].lifted for item in operands)
        return einsum, (equation, [values[item].node for item in operands], lifted_operands), {}
    head = node.args[0]
    if not (isinstance(head, Node) and values[head].lifted) or any(
        value.lifted for item, value in values.items() if item is not head
    ):
        return _joined(node, values)
    rank = values[head].rank
    if target is operator.getitem:
        return operator.getitem, tuple(args), {}
    if target in _WITH_AXES:
        if target in _DEFAULT_AXIS and len(args) <= _WITH_AXES[target][0]:
            if "dim" in kwargs:
                kwargs["dim"] = _shift(kwargs["dim"], rank)
            else:
                while len(args) < _WITH_AXES[target][0]:
                    return Reason("unsupported-op", f"{target} without its arguments", (node.name,))
                args.append(_shift(_DEFAULT_AXIS[target], rank))
            return target, tuple(args), kwargs
        for position in _WITH_AXES[target]:
            if position >= len(args):
                return Reason("unsupported-op", f"{target} over all axes", (node.name,))
            args[position] = _shift(args[position], rank)
        return target, tuple(args), kwargs
    if target is aten.unsqueeze.default:
        return target, (args[0], _shift(args[1], None if rank is None else rank + 1)), kwargs
    if target is aten.permute.default:
        return target, (args[0], [0, *_shift(args[1], rank)]), kwargs
    if target in (aten.view.default, aten.reshape.default):
        return reshape, tuple(args), {}
    if target is aten.expand.default:
        return expand, tuple(args), {}
    if target in (aten.linear.default, aten.layer_norm.default):
        return target, tuple(args), kwargs
    return Reason("unsupported-op", f"{target} has no form with a time axis", (node.name,))


def _joined(node: Node, values: Mapping[Node, Value]) -> Call | Reason:
    """``stack`` and ``cat`` inside a step, of stacked tensors only."""
    if node.target not in (aten.stack.default, aten.cat.default) or not all(value.lifted for value in values.values()):
        return Reason("unsupported-op", f"{node.target} mixes values of a step with constants", (node.name,))
    parts: Any = node.args[0]
    rank = values[parts[0]].rank
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if node.target is aten.stack.default and rank is not None:
        rank += 1
    return node.target, ([values[item].node for item in parts], _shift(dim, rank)), {}


def _shift(axes: Any, rank: int | None) -> Any:
    """Axes of one step as axes of the stack."""
    if isinstance(axes, list | tuple):
        return [_shift(axis, rank) for axis in axes]
    return axes + 1 if axes >= 0 or rank is None else axes + rank + 1
