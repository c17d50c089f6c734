"""Sparse attention: each query reads some of the keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..patterns.operands import permuted
from ..patterns.reasons import Reason
from ..patterns.sites import ATTENTIONS, Attention, Site
from .base import PlanContext, Policy, positive, register
from .ops.block_sparse import block_sparse_attention
from .plan import Fidelity, Rewrite
from .preconditions import (
    has_softmax,
    no_dropout,
    no_gradient,
    one_set_of_tokens,
    operand_shape,
    plain_softmax,
    same_batch,
    static_sizes,
)

_BLOCK = 64
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Window(Policy):
    """A band around the diagonal: query ``i`` reads the keys ``i - size .. i + size``, causal ones ``i - size .. i``.

    ``size``: keys visible on each side. A size that covers every key leaves the site as it is, which is exact.
    Self-attention without a mask, or with a causal one or a window of its own (the band is then what both allow; a
    model's own window inside ``size`` is kept exactly, and is faster). Tokens are neighbours in the order they come in.
    Source: Beltagy et al., Longformer: The Long-Document Transformer (2020), section 3.1, sliding window.
    """

    kinds: ClassVar[tuple[type[Site], ...]] = ATTENTIONS
    fidelity: ClassVar[Fidelity] = Fidelity.APPROXIMATE

    size: int

    def __post_init__(self) -> None:
        positive("size", self.size)

    def rewrite(self, site: Attention, context: PlanContext) -> Rewrite | Reason | None:
        reason = has_softmax(site) or _supported(site, context)
        if reason is not None:
            return reason
        tokens, own = operand_shape(site.query)[-2], _own_band(site)
        assert own is not None
        left, right = (self.size if side is None else min(side, self.size) for side in own)
        narrowed = (left, right) != tuple(tokens - 1 if side is None else side for side in own)
        if self.size >= tokens - 1 and all(side in (None, 0) for side in own):
            text = f"a window of {self.size} covers all {tokens} tokens: dense attention is kept"
            return Reason("identity", text, _names(site))
        return Rewrite(
            site=site,
            inputs=tuple(dict.fromkeys((site.query.node, site.key.node, site.value.node))),
            outputs=site.outputs,
            replacement=_windowed(site, left, right),
            op=block_sparse_attention.qualified_name,
            # A site whose own mask is at least as narrow keeps its meaning: the hidden keys are skipped, not dropped.
            fidelity=self.fidelity if narrowed else Fidelity.REORDERED,
        )


def _supported(site: Attention, context: PlanContext) -> Reason | None:
    """Why a site has no band, if it has none."""
    query, key, value = operand_shape(site.query), operand_shape(site.key), operand_shape(site.value)
    dtype = site.query.node.meta["val"].dtype
    if dtype not in _DTYPES:
        return Reason("unsupported-dtype", f"attention in {dtype}", _names(site))
    if _own_band(site) is None:
        return Reason("unsupported-mask", "the scores carry a mask or bias besides causality or a window", _names(site))
    if not 2 <= len(query) <= 4 or not same_batch(query, key, value, site.groups):
        return Reason("unsupported-shape", f"batch axes of query {query} and key {key} do not pair up", _names(site))
    unknown = static_sizes("a window", (query[-2], key[-2]), site.output)
    if unknown is not None:
        return unknown
    if query[-2] != key[-2]:
        return Reason("unsupported-shape", f"{query[-2]} queries read {key[-2]} keys: no diagonal", _names(site))
    return (
        plain_softmax(site)
        or one_set_of_tokens(site, context.graph)
        or no_dropout(site.dropout, site.output)
        or no_gradient(site, context.graph, "block-sparse attention")
    )


def _own_band(site: Attention) -> tuple[int | None, int | None] | None:
    """The keys around its own position that a query sees by the site's own masks; None: they are not a band."""
    left: int | None = None
    right: int | None = None
    for bias in site.biases:
        limits = (None, 0) if bias.kind == "causal" else bias.window
        if limits is None:
            return None
        left, right = _tighter(left, limits[0]), _tighter(right, limits[1])
    if (left is not None and left < 0) or (right is not None and right < 0):
        return None
    return left, right


def _tighter(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)


def _names(site: Site) -> tuple[str, ...]:
    return tuple(node.name for node in site.outputs)


def _windowed(site: Attention, left: int, right: int) -> Any:
    operands = (site.query, site.key, site.value)
    nodes = list(dict.fromkeys(operand.node for operand in operands))
    sources = [(nodes.index(operand.node), operand.permutation) for operand in operands]
    scale, back = site.scale, site.output_permutation

    def replacement(*values: Tensor) -> Tensor:
        read = [permuted(values[index], order) for index, order in sources]
        axes = read[0].dim()
        for _ in range(4 - axes):
            # Missing batch axes go in front: [S, D] becomes [1, 1, S, D], and heads stay the second axis.
            read = [x.unsqueeze(0) for x in read]
        out = block_sparse_attention(*read, None, None, _BLOCK, left, right, scale)
        for _ in range(4 - axes):
            out = out.squeeze(0)
        return permuted(out, back)

    return replacement


sparse_attention = register("sparse_attention", {"window": Window})
