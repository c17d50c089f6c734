"""Linear layers that only relabel axes away from an attention site, found by dataflow.

A token-wise linear layer commutes with averaging and copying tokens, so a pass that shortens the sequence at the site
may do it before the layers that feed the site and after the one that follows it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..patterns.operands import permuted
from ..patterns.sites import Attention, Operand
from .preconditions import operand_shape

aten = torch.ops.aten

# Operations whose result holds the same numbers under other axes. A copy is one too: only memory differs.
_COPIES = (aten.clone.default, aten.contiguous.default, aten.alias.default)
_RELABELS = (
    *_COPIES,
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.transpose.int,
    aten.permute.default,
    aten.movedim.int,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.select.int,
    aten.slice.Tensor,
    aten.narrow.default,
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
    operator.getitem,
)
_LONGEST = 16


@dataclass(frozen=True, eq=False)
class Projection:
    """A linear layer beside an attention operand ``[B, H, N, D]``.

    Before it: ``operand[b, h, n, d] = linear(x, weight[rows], bias[rows])[b, n, h * D + d]`` where ``rows`` is
    ``first .. first + count`` and ``x`` is read as ``[B, N, C]``. After it: the layer reads ``[B, N, H * D]``.
    ``chain`` holds the nodes from the layer to the operand, or from the operand to the layer, both included.
    """

    linear: Node
    x: Node
    weight: Node
    bias: Node | None
    first: int
    count: int
    chain: tuple[Node, ...]

    @classmethod
    def of(cls, linear: Node, chain: Sequence[Node], first: int, count: int) -> Projection | None:
        """The projection through ``linear``, or None if its operands are not plain values."""
        x, weight, bias = (*linear.args, None)[:3]
        if not isinstance(x, Node) or not isinstance(weight, Node) or not (bias is None or isinstance(bias, Node)):
            return None
        return cls(linear, x, weight, bias, first, count, tuple(chain))


def projection_of(operand: Operand) -> Projection | None:
    """The linear layer an operand ``[B, H, N, D]`` comes from, if only axes were relabelled in between."""
    chain = [operand.node]
    while chain[-1].target in _RELABELS and len(chain) < _LONGEST:
        source = chain[-1].args[0]
        if not isinstance(source, Node):
            return None
        chain.append(source)
    chain.reverse()
    linear = chain[0]
    if linear.target is not aten.linear.default or not _static(operand.node, linear):
        return None
    shape = operand_shape(operand)
    if len(shape) != 4:
        return None
    base = torch.empty(linear.meta["val"].shape, device="meta")
    view = _follow(base, chain[1:])
    if view is None:
        return None
    view = permuted(view, operand.permutation)
    batch, heads, tokens, depth = shape
    features = base.shape[-1]
    # The view's strides say which element of the linear layer's output each element of the operand is.
    wanted = (tokens * features, depth, features, 1)
    if base.numel() != batch * tokens * features or not _strided(view, wanted):
        return None
    first = view.storage_offset()
    if first + heads * depth > features:
        return None
    return Projection.of(linear, chain, int(first), heads * depth)


def projection_after(site: Attention) -> Projection | None:
    """The linear layer that reads the site's output ``[B, H, N, E]`` as ``[B, N, H * E]``, if nothing else reads it."""
    node = site.output
    value = node.meta["val"]
    if value.dim() != 4 or not _static(node):
        return None
    chain = [node]
    while chain[-1].target is not aten.linear.default:
        if len(chain) == _LONGEST or len(chain[-1].users) != 1:
            return None
        (user,) = chain[-1].users
        if user.args[:1] != (chain[-1],) or user.target not in (*_RELABELS, aten.linear.default):
            return None
        if any(argument is chain[-1] for argument in user.args[1:]):
            return None
        chain.append(user)
    order = site.output_permutation or (0, 1, 2, 3)
    inverse = sorted(range(4), key=order.__getitem__)
    batch, heads, tokens, depth = (value.shape[axis] for axis in inverse)
    # Laid out as [B, N, H, E], the output is what the linear layer reads if it comes out as that very memory.
    base = torch.empty(batch, tokens, heads, depth, device="meta")
    view = _follow(base.transpose(1, 2).permute(order), chain[1:-1])
    features = heads * depth
    if view is None or view.shape[-1] != features or not view.is_contiguous() or view.storage_offset() != 0:
        return None
    return Projection.of(chain[-1], chain, 0, chain[-1].meta["val"].shape[-1])


def private(chains: Sequence[Projection], interior: Iterable[Node], outputs: Iterable[Node]) -> frozenset[Node]:
    """``interior``, ``outputs`` and those nodes of the chains that nothing outside reads."""
    grown = {*interior, *outputs}
    nodes = sorted({node for item in chains for node in item.chain}, reverse=True)
    for node in nodes:
        if all(user in grown for user in node.users):
            grown.add(node)
    return frozenset(grown)


def _static(*nodes: Node) -> bool:
    return all(isinstance(size, int) for node in nodes for size in node.meta["val"].shape)


def _follow(base: Tensor, chain: Sequence[Node]) -> Tensor | None:
    """``base`` through the chain's relabellings, or None if one of them moves memory."""
    value: Any = base
    for node in chain:
        if node.target in _COPIES:
            continue
        rest = [*node.args[1:], *node.kwargs.values()]
        if any(isinstance(item, Node) for item in rest) or not callable(node.target):
            return None
        try:
            value = node.target(value, *node.args[1:], **node.kwargs)
        except (RuntimeError, ValueError):
            return None
    same = isinstance(value, Tensor) and value.untyped_storage()._cdata == base.untyped_storage()._cdata
    return value if same else None


def _strided(view: Tensor, strides: Sequence[int]) -> bool:
    """Whether ``view`` has these strides on every axis longer than one."""
    pairs = zip(view.shape, view.stride(), strides, strict=True)
    return all(size == 1 or have == want for size, have, want in pairs)
