"""Sparse attention: each query reads some of the keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..patterns.reasons import Reason
from ..patterns.sites import Attention, Site
from .base import PlanContext, Policy, positive, register
from .ops.block_sparse import block_sparse_attention
from .plan import Fidelity, Rewrite
from .preconditions import no_dropout, no_gradient, operand_shape, permuted, same_batch, static_sizes

_BLOCK = 64
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Window(Policy):
    """A band around the diagonal: query ``i`` reads the keys ``i - size .. i + size``, causal ones ``i - size .. i``.

    ``size``: keys visible on each side. A size that covers every key leaves the site as it is, which is exact.
    Self-attention without a mask or with a causal one; the order of tokens is taken to be their neighbourhood.
    Source: Beltagy et al., Longformer: The Long-Document Transformer (2020), section 3.1, sliding window.
    """

    kinds: ClassVar[tuple[type[Site], ...]] = (Attention,)
    fidelity: ClassVar[Fidelity] = Fidelity.APPROXIMATE

    size: int

    def __post_init__(self) -> None:
        positive("size", self.size)

    def rewrite(self, site: Attention, context: PlanContext) -> Rewrite | Reason | None:
        size = self.size
        reason = _supported(site, context)
        if reason is not None:
            return reason
        tokens = operand_shape(site.query)[-2]
        if size >= tokens - 1:
            return Reason(
                "identity", f"a window of {size} covers all {tokens} tokens: dense attention is kept", _names(site)
            )
        left, right = size, 0 if site.causal else size
        return Rewrite(
            site=site,
            inputs=(site.query.node, site.key.node, site.value.node),
            outputs=site.outputs,
            replacement=_windowed(site, left, right),
            op=block_sparse_attention.qualified_name,
            fidelity=self.fidelity,
        )


def _supported(site: Attention, context: PlanContext) -> Reason | None:
    """Why a site has no band, if it has none."""
    query, key, value = operand_shape(site.query), operand_shape(site.key), operand_shape(site.value)
    dtype = site.query.node.meta["val"].dtype
    if dtype not in _DTYPES:
        return Reason("unsupported-dtype", f"attention in {dtype}", _names(site))
    if any(bias.kind != "causal" for bias in site.biases):
        return Reason("unsupported-mask", "the scores carry a mask or bias besides causality", _names(site))
    if not 2 <= len(query) <= 4 or not same_batch(query, key, value, site.groups):
        return Reason("unsupported-shape", f"batch axes of query {query} and key {key} do not pair up", _names(site))
    unknown = static_sizes("a window", (query[-2], key[-2]), site.output)
    if unknown is not None:
        return unknown
    if query[-2] != key[-2]:
        return Reason("unsupported-shape", f"{query[-2]} queries read {key[-2]} keys: no diagonal", _names(site))
    return no_dropout(site.dropout, site.output) or no_gradient(site, context.graph, "block-sparse attention")


def _names(site: Site) -> tuple[str, ...]:
    return tuple(node.name for node in site.outputs)


def _windowed(site: Attention, left: int, right: int) -> Any:
    permutations = (site.query.permutation, site.key.permutation, site.value.permutation)
    scale, back = site.scale, site.output_permutation

    def replacement(*operands: Tensor) -> Tensor:
        read = [permuted(x, order) for x, order in zip(operands, permutations, strict=True)]
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
