"""Attention whose heads are shared, packed or missing: fewer key heads, one projection for all operands, no batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.attention import Family, heads, made, n, split, tokens


def finish(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``[B, H, S, D]``, ``[B, H, T, D]``, ``[B, H, T, E]``, or axes that broadcast."""
    return (q @ k.mT * n.scale).softmax(-1) @ v


# --- fewer key heads than query heads ------------------------------------------------------------------------------


def grouped() -> tuple[Tensor, ...]:
    return tokens(groups=n.G)


def grouped_flag(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*heads(q, k, v), enable_gqa=True)


def grouped_expand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    k = k[:, :, None].expand(n.B, n.H, n.G, n.T, n.D).reshape(n.B, n.G * n.H, n.T, n.D)
    v = v[:, :, None].expand(n.B, n.H, n.G, n.T, n.E).reshape(n.B, n.G * n.H, n.T, n.E)
    return finish(q, k, v)


def grouped_repeat(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    k, v = k.repeat_interleave(n.G, dim=1), v.repeat_interleave(n.G, dim=1)
    return F.scaled_dot_product_attention(q, k, v)


def grouped_five_axes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    q = q.view(n.B, n.H, n.G, n.S, n.D)
    return finish(q, k.unsqueeze(2), v.unsqueeze(2)).view(n.B, n.G * n.H, n.S, n.E)


def grouped_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    q = q.unflatten(1, (n.H, n.G))
    weights = (torch.einsum("bhgsd,bhtd->bhgst", q, k) * n.scale).softmax(-1)
    return torch.einsum("bhgst,bhte->bhgse", weights, v).flatten(1, 2)


# --- one key head for all ------------------------------------------------------------------------------------------


def shared() -> tuple[Tensor, ...]:
    q, k, v = tokens()
    return q, k[..., : n.D].contiguous(), v[..., : n.E].contiguous()


def shared_flag(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(split(q, n.D), k.unsqueeze(1), v.unsqueeze(1), enable_gqa=True)


def shared_broadcast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return finish(split(q, n.D), k.view(n.B, n.T, 1, n.D).transpose(1, 2), v.view(n.B, n.T, 1, n.E).transpose(1, 2))


def shared_expand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k = k.unsqueeze(1).expand(n.B, n.H, n.T, n.D)
    return finish(split(q, n.D), k, v.unsqueeze(1).expand(-1, n.H, -1, -1))


def shared_repeat(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return finish(split(q, n.D), k[:, None].repeat(1, n.H, 1, 1), v[:, None].repeat(1, n.H, 1, 1))


def shared_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (torch.einsum("bhsd,btd->bhst", split(q, n.D), k) * n.scale).softmax(-1)
    return torch.einsum("bhst,bte->bhse", weights, v)


# --- one projection for all operands -------------------------------------------------------------------------------


def packed() -> tuple[Tensor, ...]:
    return (made(n.B, n.S, 3 * n.H * n.D),)


def packed_chunk(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*(split(part, n.D) for part in x.chunk(3, dim=-1)))


def packed_split(x: Tensor) -> Tensor:
    return finish(*(split(part, n.D) for part in x.split(n.H * n.D, dim=2)))


def packed_unbind(x: Tensor) -> Tensor:
    q, k, v = x.reshape(n.B, n.S, 3, n.H, n.D).permute(2, 0, 3, 1, 4).unbind(0)
    return finish(q, k, v)


def packed_select(x: Tensor) -> Tensor:
    x = x.view(n.B, n.S, 3, n.H, n.D)
    return finish(*(x[:, :, part].transpose(1, 2) for part in range(3)))


def packed_slices(x: Tensor) -> Tensor:
    w = n.H * n.D
    return finish(split(x[..., :w], n.D), split(x[..., w : 2 * w], n.D), split(x.narrow(-1, 2 * w, w), n.D))


def packed_by_head(x: Tensor) -> Tensor:
    q, k, v = x.view(n.B, n.S, n.H, 3 * n.D).transpose(1, 2).chunk(3, dim=-1)
    return finish(q, k, v)


# --- keys written into a cache ---------------------------------------------------------------------------------------


def cached() -> tuple[Tensor, ...]:
    q, k, v = heads(*tokens())
    return (
        q.transpose(1, 2).contiguous(),
        k.contiguous(),
        v.contiguous(),
        made(n.B, n.H, 2, n.D),
        made(n.B, n.H, 2, n.E),
    )


def cached_written_before(q: Tensor, k: Tensor, v: Tensor, new_k: Tensor, new_v: Tensor) -> Tensor:
    k[:, :, :2], v[:, :, :2] = new_k, new_v
    return F.scaled_dot_product_attention(q.transpose(1, 2), k, v)


def cached_written_behind_the_query(q: Tensor, k: Tensor, v: Tensor, new_k: Tensor, new_v: Tensor) -> Tensor:
    q = q.transpose(1, 2) * n.scale
    k[:, :, :2], v[:, :, :2] = new_k, new_v
    return (q @ k.mT).softmax(-1) @ v


def cached_written_by_index(q: Tensor, k: Tensor, v: Tensor, new_k: Tensor, new_v: Tensor) -> Tensor:
    q, turned = q.transpose(1, 2), k.mT
    place = torch.arange(2, device=q.device)
    k[:, :, place] = new_k
    v[:, :, place] = new_v
    return (q @ turned * n.scale).softmax(-1) @ v


# --- no batch, one batch -------------------------------------------------------------------------------------------


def bare() -> tuple[Tensor, ...]:
    return made(n.S, n.D, seed=1), made(n.T, n.D, seed=2), made(n.T, n.E, seed=3)


def bare_fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def bare_mm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.mm(torch.mm(q, k.t()).mul(n.scale).softmax(1), v)


def bare_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("st,te->se", (torch.einsum("sd,td->st", q, k) * n.scale).softmax(-1), v)


def one_batch() -> tuple[Tensor, ...]:
    return tuple(x[:1] for x in tokens())


def one_batch_fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*heads(q, k, v))


def one_batch_matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return finish(*heads(q, k, v))


def one_batch_flattened(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.reshape(-1, x.shape[2], x.shape[3]) for x in heads(q, k, v))
    return torch.bmm(torch.bmm(q, k.mT).mul(n.scale).softmax(-1), v).view(1, n.H, n.S, n.E)


def _family(name: str, inputs: Callable[[], tuple[Tensor, ...]], *spellings: Callable[..., Tensor]) -> Family:
    return Family(name, spellings, inputs)


FAMILIES = [
    _family("grouped", grouped, grouped_flag, grouped_expand, grouped_repeat, grouped_five_axes, grouped_einsum),
    _family("shared", shared, shared_flag, shared_broadcast, shared_expand, shared_repeat, shared_einsum),
    _family("packed", packed, packed_chunk, packed_split, packed_unbind, packed_select, packed_slices, packed_by_head),
    _family("cached", cached, cached_written_before, cached_written_behind_the_query, cached_written_by_index),
    _family("bare", bare, bare_fused, bare_mm, bare_einsum),
    _family("one batch", one_batch, one_batch_fused, one_batch_matmul, one_batch_flattened),
]
