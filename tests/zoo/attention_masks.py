"""Attention with masks and biases: the same mask in many spellings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.attention import Family, heads, made, n, scores_of, split, tokens

LOWEST = torch.finfo(torch.float32).min


def finish(scores: Tensor, v: Tensor) -> Tensor:
    return scores.softmax(-1) @ split(v, n.E)


# --- causal --------------------------------------------------------------------------------------------------------


def fused_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*heads(q, k, v), is_causal=True)


def filled_with_triangle(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    hidden = torch.ones(n.S, n.T, dtype=torch.bool).triu(1)
    return scores_of(q, k).masked_fill(hidden, float("-inf")).softmax(-1) @ split(v, n.E)


def chosen_by_triangle(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    visible = torch.tril(torch.ones(n.S, n.T)).view(1, 1, n.S, n.T)
    return scores_of(q, k).masked_fill(visible == 0, -1e9).softmax(-1) @ split(v, n.E)


def where_positions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    visible = torch.arange(n.T)[None, :] <= torch.arange(n.S)[:, None]
    scores = scores_of(q, k)
    return torch.where(visible, scores, torch.finfo(scores.dtype).min).softmax(-1) @ split(v, n.E)


def added_triangle(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.full((n.S, n.T), float("-inf")).triu(1)
    return (mask + scores_of(q, k)).softmax(-1) @ split(v, n.E)


def causal_window_of_everything(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    place, other = torch.arange(n.S)[:, None], torch.arange(n.T)[None, :]
    visible = (other <= place) & (place - other < n.S) & torch.ones(n.S, n.T, dtype=torch.bool)
    return F.scaled_dot_product_attention(*heads(q, k, v), attn_mask=visible[None, None])


def scores_and_triangle(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return finish(scores_of(q, k) + torch.full((n.S, n.T), LOWEST).triu(diagonal=1), v)


def cut_from_a_buffer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    buffer = torch.tril(torch.ones(16, 16, dtype=torch.bool)).view(1, 1, 16, 16)
    scores = scores_of(q, k)
    lowest = torch.full([], LOWEST, dtype=scores.dtype)
    return finish(torch.where(buffer[:, :, : n.S, : n.T], scores, lowest), v)


def triangle_in_arithmetic(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return finish(scores_of(q, k) + (1.0 - torch.ones(n.S, n.T).tril()) * -1e9, v)


def triangle_by_baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in heads(q, k, v))
    mask = torch.zeros(n.S, n.T).masked_fill(torch.ones(n.S, n.T).tril() == 0, float("-inf"))
    scores = torch.baddbmm(mask, q, k.mT, beta=1, alpha=n.scale)
    return torch.bmm(scores.softmax(-1), v).view(n.B, n.H, n.S, n.E)


def fused_additive_triangle(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.full((n.S, n.T), float("-inf")).triu(1)[None, None]
    return F.scaled_dot_product_attention(*heads(q, k, v), attn_mask=mask)


# --- sliding windows -----------------------------------------------------------------------------------------------


def offsets() -> Tensor:
    return torch.arange(n.T)[None, :] - torch.arange(n.S)[:, None]


def fused_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*heads(q, k, v), attn_mask=(offsets() >= -1) & (offsets() <= 0))


def window_of_two_triangles(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    visible = torch.ones(n.S, n.T, dtype=torch.bool).tril().triu(-1)
    return finish(scores_of(q, k).masked_fill(visible.logical_not(), float("-inf")), v)


def window_where(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    far = (offsets() < -1) | (offsets() > 0)
    return finish(torch.where(far, LOWEST, scores_of(q, k)), v)


# --- padding -------------------------------------------------------------------------------------------------------


def padded() -> tuple[Tensor, ...]:
    keep = torch.arange(n.T)[None, :] < torch.tensor([n.T] * (n.B - 1) + [max(1, n.T - 2)])[:, None]
    return (*tokens(), keep)


def padding_fused(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*heads(q, k, v), attn_mask=keep[:, None, None, :])


def padding_expanded(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*heads(q, k, v), attn_mask=keep[:, None, None, :].expand(n.B, n.H, n.S, n.T))


def padding_filled(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return scores_of(q, k).masked_fill(~keep[:, None, None, :], float("-inf")).softmax(-1) @ split(v, n.E)


def padding_filled_equal(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return scores_of(q, k).masked_fill(keep[:, None, None, :] == 0, -1e9).softmax(-1) @ split(v, n.E)


def padding_where(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep[:, None, None, :], scores_of(q, k), -1e30).softmax(-1) @ split(v, n.E)


def padding_added(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    mask = torch.zeros(n.B, 1, 1, n.T).masked_fill(~keep[:, None, None, :], float("-inf"))
    return (scores_of(q, k) + mask).softmax(-1) @ split(v, n.E)


def padding_added_first(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    mask = torch.where(keep[:, None, None, :], 0.0, torch.finfo(torch.float32).min)
    return (mask + scores_of(q, k)).softmax(-1) @ split(v, n.E)


def padding_in_arithmetic(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    mask = (1.0 - keep[:, None, None, :].to(q.dtype)) * LOWEST
    return finish(scores_of(q, k) + mask, v)


def padding_inverted(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    inverted = torch.ones(n.B, 1, 1, n.T) - keep[:, None, None, :].float()
    mask = inverted.masked_fill(inverted.bool(), LOWEST)
    return finish(scores_of(q, k) + mask, v)


def padding_fused_additive(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    mask = torch.where(keep[:, None, None, :], 0.0, float("-inf")).expand(n.B, 1, n.S, n.T)
    return F.scaled_dot_product_attention(*heads(q, k, v), attn_mask=mask)


def padding_of_one_head_axis(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    q, k, v = (x.reshape(n.B * n.H, x.shape[2], x.shape[3]) for x in heads(q, k, v))
    scores = (q @ k.mT * n.scale).view(n.B, n.H, n.S, n.T).masked_fill(~keep[:, None, None, :], float("-inf"))
    return (scores.softmax(-1).view(n.B * n.H, n.S, n.T) @ v).view(n.B, n.H, n.S, n.E)


# --- biases that are numbers ---------------------------------------------------------------------------------------


def biased() -> tuple[Tensor, ...]:
    return (*tokens(), made(n.H, n.S, n.T, seed=5))


def fused_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*heads(q, k, v), attn_mask=bias)


def bias_behind(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return finish(scores_of(q, k) + bias.unsqueeze(0), v)


def bias_in_front(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return finish(bias + scores_of(q, k), v)


def bias_expanded(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return finish(torch.add(scores_of(q, k), bias[None].expand(n.B, n.H, n.S, n.T)), v)


def bias_by_baddbmm(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in heads(q, k, v))
    bias = bias[None].expand(n.B, n.H, n.S, n.T).reshape(n.B * n.H, n.S, n.T)
    return torch.baddbmm(bias, q, k.mT, alpha=n.scale).softmax(-1).bmm(v).view(n.B, n.H, n.S, n.E)


def bias_then_scale(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    q, k, v = heads(q, k, v)
    return ((q @ k.mT + bias) * n.scale).softmax(-1) @ v


def bias_scaled_first(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return finish(torch.add(scores_of(q, k), bias, alpha=n.scale), v)


def bias_scaled_in_the_product(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in heads(q, k, v))
    bias = bias[None].expand(n.B, n.H, n.S, n.T).reshape(n.B * n.H, n.S, n.T)
    return torch.baddbmm(bias, q, k.mT, beta=n.scale, alpha=n.scale).softmax(-1).bmm(v).view(n.B, n.H, n.S, n.E)


def bias_taken_off(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return finish(scores_of(q, k) - 1e6 * bias, v)


def bias_taken_off_upside_down(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return finish(torch.sub(scores_of(q, k), bias * 1e6), v)


def floored(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = scores_of(q, k) + torch.where(keep[:, None, None, :], 0.0, LOWEST)
    return finish(torch.max(scores, torch.tensor(LOWEST)), v)


def floored_by_clamp(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return finish(scores_of(q, k).masked_fill(~keep[:, None, None, :], LOWEST).clamp(min=LOWEST), v)


def floored_by_maximum(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = torch.where(keep[:, None, None, :], scores_of(q, k), LOWEST)
    return finish(torch.maximum(torch.full((), LOWEST), scores), v)


# --- masks whose batch is finer than that of the heads --------------------------------------------------------------


def windowed() -> tuple[Tensor, ...]:
    return (*tokens(), made(2, n.S, n.T, seed=9))


def windows_cut(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The batch is made of two windows with a mask each."""
    q, k, v = (x.unflatten(0, (-1, 2)).flatten(0, 1) for x in heads(q, k, v))
    scores = (q @ k.mT * n.scale).view(-1, 2, n.H, n.S, n.T) + mask[:, None].unsqueeze(0)
    return scores.view(-1, n.H, n.S, n.T).softmax(-1) @ v


def windows_cut_by_unflatten(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = scores_of(q.clone(), k.clone()).unflatten(0, (n.B // 2, 2)) + mask.view(1, 2, 1, n.S, n.T)
    return finish(scores.flatten(0, 1), v.clone())


def sloped() -> tuple[Tensor, ...]:
    return (*tokens(), 2.0 ** -torch.arange(1, n.H + 1).float())


def distances() -> Tensor:
    return -offsets().abs().float()


def fused_slopes(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    bias = slopes[:, None, None] * distances()
    return F.scaled_dot_product_attention(*heads(q, k, v), attn_mask=bias)


def slopes_behind(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    return finish(scores_of(q, k) + slopes.view(1, n.H, 1, 1) * distances()[None, None], v)


def slopes_in_front(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    return finish(torch.einsum("h,st->hst", slopes, distances()) + scores_of(q, k), v)


def tabled() -> tuple[Tensor, ...]:
    return (*tokens(), made(9, n.H, seed=6))


def buckets() -> Tensor:
    return offsets().clamp(-4, 4) + 4


def fused_table(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    bias = table[buckets()].permute(2, 0, 1)
    return F.scaled_dot_product_attention(*heads(q, k, v), attn_mask=bias)


def table_by_embedding(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    return finish(scores_of(q, k) + F.embedding(buckets(), table).permute(2, 0, 1).unsqueeze(0), v)


def table_by_index(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    bias = table[buckets().view(-1)].view(n.S, n.T, n.H).permute(2, 0, 1).contiguous()
    return finish(scores_of(q, k) + bias[None], v)


CAUSAL = Family(
    "causal",
    (
        fused_causal,
        filled_with_triangle,
        chosen_by_triangle,
        where_positions,
        added_triangle,
        causal_window_of_everything,
        scores_and_triangle,
        cut_from_a_buffer,
        triangle_in_arithmetic,
        triangle_by_baddbmm,
        fused_additive_triangle,
    ),
    tokens,
)
WINDOW = Family(
    "window",
    (fused_window, window_of_two_triangles, window_where),
    tokens,
)
PADDING = Family(
    "padding",
    (
        padding_fused,
        padding_expanded,
        padding_filled,
        padding_filled_equal,
        padding_where,
        padding_added,
        padding_added_first,
        padding_in_arithmetic,
        padding_inverted,
        padding_fused_additive,
        padding_of_one_head_axis,
    ),
    padded,
)
BIAS = Family(
    "bias",
    (fused_bias, bias_behind, bias_in_front, bias_expanded, bias_by_baddbmm),
    biased,
)
SCALED_BIAS = Family("scaled bias", (bias_then_scale, bias_scaled_first, bias_scaled_in_the_product), biased)
TAKEN_OFF = Family("bias taken off", (bias_taken_off, bias_taken_off_upside_down), biased)
FLOORED = Family("floored", (floored, floored_by_clamp, floored_by_maximum), padded)
WINDOWS = Family("windows", (windows_cut, windows_cut_by_unflatten), windowed)
SLOPES = Family(
    "slopes",
    (fused_slopes, slopes_behind, slopes_in_front),
    sloped,
)
TABLE = Family(
    "table",
    (fused_table, table_by_embedding, table_by_index),
    tabled,
)

# --- rows that see no key become zero --------------------------------------------------------------------------------


def kept_for_each() -> tuple[Tensor, ...]:
    keep = made(n.B, 1, n.S, n.T, seed=11) > -0.5
    keep[0, 0, 0] = False
    return (*tokens(), keep)


def emptied_by_fill(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    lowest = torch.finfo(q.dtype).min
    return scores_of(q, k).masked_fill(~keep, lowest).softmax(-1).masked_fill(~keep, 0.0) @ split(v, n.E)


def emptied_by_choice(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    low = torch.where(keep, scores_of(q, k), torch.finfo(q.dtype).min)
    return torch.where(keep, low.softmax(-1), 0.0) @ split(v, n.E)


def emptied_of_nan(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, scores_of(q, k), float("-inf")).softmax(-1).nan_to_num(0.0) @ split(v, n.E)


EMPTIED = Family("emptied", (emptied_by_fill, emptied_by_choice, emptied_of_nan), kept_for_each)


# --- rows and columns of an image with biases of their own ----------------------------------------------------------


def imaged() -> tuple[Tensor, ...]:
    """Queries are two rows of two, keys three rows of two; a bias for each key row and for each key column."""
    q, k, v = made(n.B, 4, n.H * n.D), made(n.B, 6, n.H * n.D, seed=1), made(n.B, 6, n.H * n.E, seed=2)
    return q, k, v, made(n.B, n.H, 2, 2, 3, seed=3), made(n.B, n.H, 2, 2, 2, seed=4)


def rows_then_columns(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    cut = scores_of(q, k).view(n.B, n.H, 2, 2, 3, 2) + rows.unsqueeze(-1) + columns.unsqueeze(-2)
    return cut.view(n.B, n.H, 4, 6).softmax(-1) @ split(v, n.E)


def rows_then_columns_unflattened(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    cut = rows[..., None] + scores_of(q, k).unflatten(-1, (3, 2)).reshape(n.B, n.H, 2, 2, 3, 2)
    return (columns[..., None, :] + cut).flatten(-2).flatten(2, 3).softmax(-1) @ split(v, n.E)


IMAGED = Family("imaged", (rows_then_columns, rows_then_columns_unflattened), imaged)

FAMILIES = [CAUSAL, WINDOW, PADDING, BIAS, SCALED_BIAS, TAKEN_OFF, FLOORED, WINDOWS, SLOPES, TABLE, EMPTIED, IMAGED]
