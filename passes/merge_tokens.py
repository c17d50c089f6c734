"""Token merging: attention over fewer tokens, and every token gets its result back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from ..patterns.graph import NormalGraph
from ..patterns.operands import permuted
from ..patterns.provenance import differentiated
from ..patterns.reasons import Reason
from ..patterns.sites import ATTENTIONS, Attention, Operand, Site
from .base import PlanContext, Policy, positive, register
from .ops.tokens import Merging, bipartite_match, match_tokens, merge, merge_limit, unmerge
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
from .projections import Projection, private, projection_after, projection_of


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

    kinds: ClassVar[tuple[type[Site], ...]] = ATTENTIONS
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
        reason = has_softmax(site) or _supported(site, context)
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
        return _merged(self, site, r, context.graph)


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
    return (
        plain_softmax(site)
        or one_set_of_tokens(site, context.graph)
        or no_dropout(site.dropout, site.output)
        or no_gradient(site, context.graph, "token merging")
    )


def _merged(policy: ToMe, site: Attention, r: int, graph: NormalGraph) -> Rewrite:
    """Merge queries, keys and values, attend, restore.

    Where an operand is a linear layer of the tokens, its input is merged and the layer runs on what is left; where one
    reads the output, tokens are restored after it. Averaging and copying tokens commute with such layers, so the result
    is the same up to rounding. Keys are computed for every token in any case: they are the metric.
    """
    before = _before(site)
    after = projection_after(site)
    if after is not None and {after.weight, after.bias} & differentiated(graph):
        after = None
    used = [*before.values(), *([after] if after else [])]
    nodes = [operand.node for name, operand in _operands(site).items() if name not in before]
    nodes += [item.x for item in before.values()] + [node for item in used for node in (item.weight, item.bias) if node]
    inputs = tuple(dict.fromkeys(nodes))
    scale, back, protect, proportional = site.scale, site.output_permutation, policy.protect, policy.proportional
    operands, groups = _operands(site), site.groups

    def whole(name: str, env: Mapping[Node, Tensor]) -> Tensor:
        """An operand for every token, ``[B, H, N, D]``."""
        if name in before:
            return _project(env[before[name].x], before[name], env, operand_shape(operands[name]))
        return _with_heads(permuted(env[operands[name].node], operands[name].permutation), groups)

    def replacement(*values: Tensor) -> Tensor:
        env = dict(zip(inputs, values, strict=True))
        key = whole("key", env)
        merging = match_tokens(key.mean(1), r, protect)
        tokens: dict[Node, Tensor] = {}

        def fewer(name: str) -> Tensor:
            """An operand for merged tokens, ``[B, H, R, D]``."""
            if name not in before:
                return merge(whole(name, env), merging)
            item, (batch, heads, count, depth) = before[name], operand_shape(operands[name])
            if item.x not in tokens:
                tokens[item.x] = merge(env[item.x].reshape(batch, count, -1), merging)
            return _project(tokens[item.x], item, env, (batch, heads, count - r, depth))

        out = attend(fewer("query"), merge(key, merging), fewer("value"), merging, scale, proportional)
        if after is not None:
            bias = None if after.bias is None else env[after.bias]
            out = F.linear(out.transpose(1, 2).flatten(2), env[after.weight], bias)
            return unmerge(out, merging).reshape(after.linear.meta["val"].shape)
        out = unmerge(out, merging)
        # The batch axes that were missing go again.
        rank = len(operand_shape(operands["query"]))
        return permuted(out if rank == 4 else out.flatten(0, 1) if rank == 3 else out[0, 0], back)

    if used:
        outputs = (after.linear,) if after is not None else site.outputs
        site = replace(site, inputs=inputs, outputs=outputs, interior=private(used, site.interior, outputs))
    return Rewrite(
        site=site,
        inputs=inputs,
        outputs=site.outputs,
        replacement=replacement,
        op=bipartite_match.qualified_name,
        fidelity=policy.fidelity,
    )


def _operands(site: Attention) -> dict[str, Operand]:
    return {"query": site.query, "key": site.key, "value": site.value}


def _before(site: Attention) -> dict[str, Projection]:
    """The operands to compute from merged tokens: their linear layer is read by nothing but this site.

    The key is among them only when it shares its layer with another operand, which would otherwise run whole.
    """
    found = {name: item for name, operand in _operands(site).items() if (item := projection_of(operand))}
    interior = private(list(found.values()), site.interior, site.outputs)
    found = {name: item for name, item in found.items() if item.linear in interior}
    shared = {item.linear for name, item in found.items() if name != "key"}
    return {name: item for name, item in found.items() if name != "key" or item.linear in shared}


def _project(x: Tensor, item: Projection, env: Mapping[Node, Tensor], shape: tuple[Any, ...]) -> Tensor:
    """The linear layer's rows for one operand on ``x [B, tokens, C]``, as ``shape`` ``[B, H, tokens, D]``."""
    batch, heads, tokens, depth = shape
    weight = env[item.weight].narrow(0, item.first, item.count)
    bias = None if item.bias is None else env[item.bias].narrow(0, item.first, item.count)
    out = F.linear(x.reshape(batch, tokens, -1), weight, bias)
    return out.reshape(batch, tokens, heads, depth).transpose(1, 2)


def _with_heads(x: Tensor, groups: int) -> Tensor:
    """``[B, H, N, D]``. A lone batch axis counts as ``B`` (each row matches its own tokens) unless heads share keys."""
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
