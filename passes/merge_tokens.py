"""Token merging: attention over fewer tokens, and every token gets its result back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..patterns.reasons import Reason
from ..patterns.sites import Attention, Site
from .base import PlanContext, Policy, positive, register
from .ops.tokens import Merging, bipartite_match, match_tokens, merge, merge_limit, unmerge
from .plan import Fidelity, Rewrite
from .preconditions import no_dropout, no_gradient, operand_shape, permuted, same_batch, static_sizes


@dataclass(frozen=True)
class ToMe(Policy):
    """Bipartite soft matching: the ``r`` most redundant tokens share an attention row with their nearest neighbour.

    Tokens are compared by their keys, averaged over heads, after any rotary embedding. Queries, keys and values of
    merged tokens are averaged before the attention and its output is copied back to every token after it, so shapes
    outside are unchanged.

    ``r``: tokens merged in each attention, or a ratio of all tokens (a float up to 0.5). 0 leaves every site as it is.
    ``protect``: this many leading tokens (a class token, registers) are never merged.
    ``proportional``: a merged key counts as many times as it has tokens, by adding ``log(size)`` to its scores.
    With it, merging tokens that are equal changes nothing; without, attention is a little cheaper.

    Sources: Bolya et al., Token Merging: Your ViT But Faster (2023), section 3 and equation 1; Bolya and Hoffman,
    Token Merging for Fast Stable Diffusion (2023), section 4, for restoring the tokens.
    """

    kinds: ClassVar[tuple[type[Site], ...]] = (Attention,)
    fidelity: ClassVar[Fidelity] = Fidelity.APPROXIMATE

    r: int | float
    protect: int = 0
    proportional: bool = True

    def __post_init__(self) -> None:
        positive("r", self.r, kind=float)
        if isinstance(self.r, float) and self.r > 0.5:
            raise ValueError(f"r as a ratio is at most 0.5 (every second token), not {self.r!r}; a count is an integer")
        positive("protect", self.protect)
        if not isinstance(self.proportional, bool):
            raise TypeError(f"proportional must be True or False, not {self.proportional!r}")

    def rewrite(self, site: Attention, context: PlanContext) -> Rewrite | Reason | None:
        names = tuple(node.name for node in site.outputs)
        if self.r == 0:
            return Reason("identity", "r is 0: no token is merged", names)
        reason = _supported(site, context)
        if reason is not None:
            return reason
        tokens = operand_shape(site.query)[-2]
        r = int(self.r * tokens) if isinstance(self.r, float) else self.r
        if r == 0:
            return Reason("identity", f"{self.r:g} of {tokens} tokens is none", names)
        limit = merge_limit(tokens, self.protect)
        if r > limit:
            text = f"r={r} is above {limit}, all that {tokens} tokens with {self.protect} protected allow"
            return Reason("unsupported-shape", text, names)
        return _around_attention(self, site, r)


def _supported(site: Attention, context: PlanContext) -> Reason | None:
    """Why the tokens of a site cannot be merged, if they cannot."""
    names = tuple(node.name for node in site.outputs)
    query, key, value = operand_shape(site.query), operand_shape(site.key), operand_shape(site.value)
    dtype = site.query.node.meta["val"].dtype
    if not dtype.is_floating_point:
        return Reason("unsupported-dtype", f"attention in {dtype}", names)
    if site.causal:
        return Reason("unsupported-mask", "a merged token has no single place in a causal order", names)
    if site.biases:
        return Reason("unsupported-mask", "the scores carry a mask or bias, which has one entry for each token", names)
    if not 2 <= len(query) <= 4 or not same_batch(query, key, value, site.groups):
        return Reason("unsupported-shape", f"batch axes of query {query} and key {key} do not pair up", names)
    unknown = static_sizes("token merging", (query[-2], key[-2]), site.output)
    if unknown is not None:
        return unknown
    if query[-2] != key[-2]:
        return Reason("unsupported-shape", f"{query[-2]} queries read {key[-2]} keys: not one set of tokens", names)
    return no_dropout(site.dropout, site.output) or no_gradient(site, context.graph, "token merging")


def _around_attention(policy: ToMe, site: Attention, r: int) -> Rewrite:
    """Merge queries, keys and values, attend, restore."""
    permutations = (site.query.permutation, site.key.permutation, site.value.permutation)
    scale, back, protect, proportional = site.scale, site.output_permutation, policy.protect, policy.proportional

    def replacement(*operands: Tensor) -> Tensor:
        read = [permuted(x, order) for x, order in zip(operands, permutations, strict=True)]
        shape = (*read[0].shape[:-1], read[2].shape[-1])
        query, key, value = (_with_heads(x, site.groups) for x in read)
        merging = match_tokens(key.mean(1), r, protect)
        out = attend(merge(query, merging), merge(key, merging), merge(value, merging), merging, scale, proportional)
        return permuted(unmerge(out, merging).reshape(shape), back)

    return Rewrite(
        site=site,
        inputs=(site.query.node, site.key.node, site.value.node),
        outputs=site.outputs,
        replacement=replacement,
        op=bipartite_match.qualified_name,
        fidelity=policy.fidelity,
    )


def _with_heads(x: Tensor, groups: int) -> Tensor:
    """``[B, H, S, D]``. A lone batch axis counts as ``B`` (each row matches its own tokens) unless heads share keys."""
    if x.dim() == 3:
        return x.unsqueeze(1 if groups == 1 else 0)
    return x[None, None] if x.dim() == 2 else x


def attend(query: Tensor, key: Tensor, value: Tensor, merging: Merging, scale: float, proportional: bool) -> Tensor:
    """Attention over merged tokens, ``[B, H, R, D]``; proportional: each key weighs as much as the tokens in it."""
    mask = merging.size.log().to(query.dtype)[:, None, None, :] if proportional else None
    return F.scaled_dot_product_attention(
        query, key, value, mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


merge_tokens = register("merge_tokens", {"tome": ToMe})
