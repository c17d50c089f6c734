"""Models written here as people write them in one file: for spellings that no library's models have."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .table import Row, given, ids, real

WIDTH, HEADS, DEPTH, WORDS = 48, 4, 3, 120
HEAD = WIDTH // HEADS


def split(x: Tensor) -> Tensor:
    """``[B, N, H * D]`` to ``[B, H, N, D]``."""
    return x.reshape(x.shape[0], x.shape[1], -1, HEAD).permute(0, 2, 1, 3)


def merge(x: Tensor) -> Tensor:
    """``[B, H, N, D]`` to ``[B, N, H * D]``."""
    return x.permute(0, 2, 1, 3).flatten(2)


def hidden_before(tokens: int) -> Tensor:
    """True where a key comes after the query."""
    return torch.ones(tokens, tokens, dtype=torch.bool).triu(1)


class Stack(nn.Module):
    """Words, equal layers one after the other, and a norm."""

    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList([layer() for _ in range(DEPTH)])
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class OneProjection(nn.Module):
    """Attention and feed-forward side by side, one linear layer before both; all heads share their keys."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.all = nn.Linear(WIDTH, WIDTH + 2 * HEAD + 4 * WIDTH, bias=False)
        self.mixed = nn.Linear(WIDTH, WIDTH, bias=False)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value, inner = self.all(self.norm(x)).split((WIDTH, HEAD, HEAD, 4 * WIDTH), -1)
        scores = torch.einsum("bhsd,btd->bhst", split(query) * HEAD**-0.5, key)
        scores = scores.masked_fill(hidden_before(x.shape[1]), -1e9)
        scores = scores - scores.amax(-1, keepdim=True).detach()
        mixed = torch.einsum("bhst,btd->bhsd", scores.softmax(-1), value)
        up, gate = inner.chunk(2, -1)
        return self.mixed(merge(mixed)) + self.down(up * F.gelu(gate)) + x


class Attending(nn.Module):
    """Pre-norm attention without the sum; the softmax by hand."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.packed = nn.Linear(width, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (split(part) for part in self.packed(self.norm(x)).chunk(3, -1))
        scores = torch.einsum("bhsd,bhtd->bhst", query / math.sqrt(HEAD), key)
        raised = torch.exp(scores - scores.amax(-1, keepdim=True))
        return self.out(merge(raised / raised.sum(-1, keepdim=True) @ value))


def feed_forward(width: int = WIDTH) -> nn.Module:
    """Pre-norm feed-forward without the sum."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 96), nn.GELU(), nn.Dropout(0.1), nn.Linear(96, width))


class ListsOfLists(nn.Module):
    """A vision transformer whose layers are lists that the model runs part by part."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(192, WIDTH)
        self.layers = nn.ModuleList([nn.ModuleList([Attending(), feed_forward()]) for _ in range(DEPTH)])

    def forward(self, image: Tensor) -> Tensor:
        cut = image.unflatten(2, (-1, 8)).unflatten(4, (-1, 8)).permute(0, 2, 4, 3, 5, 1)
        x = self.patches(cut.flatten(3).flatten(1, 2))
        for attention, feed in self.layers:
            x = attention(x) + x
            x = feed(x) + x
        return x.mean(1)


class Convolutional(nn.Module):
    """Layers of 1x1 convolutions on images; queries and keys from depthwise convolutions; the norm by hand."""

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean(1, keepdim=True)
            spread = (x - mean).pow(2).mean(1, keepdim=True)
            return self.weight[:, None, None] * ((x - mean) / torch.sqrt(spread + 1e-6)) + self.bias[:, None, None]

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Convolutional.Norm(), Convolutional.Norm()
            self.query, self.key, self.value = (
                nn.Conv2d(WIDTH, WIDTH, 3, stride, 1, groups=WIDTH) for stride in (1, 2, 2)
            )
            self.out, self.up, self.down = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, 96, 1), nn.Conv2d(96, WIDTH, 1)

        def forward(self, x: Tensor) -> Tensor:
            read = self.first(x)
            query, key, value = (layer(read).flatten(2) for layer in (self.query, self.key, self.value))
            query, key, value = (part.unflatten(1, (HEADS, HEAD)).mT for part in (query, key, value))
            mixed = (torch.einsum("bhid,bhjd->bhij", query, key) * HEAD**-0.5).softmax(-1) @ value
            x = x + self.out(mixed.mT.reshape(x.shape))
            return x + self.down(F.gelu(self.up(self.second(x))))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 7, 4, 3)
        self.layers = nn.Sequential(*[self.Layer() for _ in range(DEPTH)])

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(self.stem(image))


class EveryExpert(nn.Module):
    """A layer whose experts all run, each weighted by what the router gave it, in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = Attending(), nn.LayerNorm(WIDTH)
        self.router = nn.Linear(WIDTH, 4, bias=False)
        self.experts = nn.ModuleList([feed_forward()[1:] for _ in range(4)])  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        read = self.norm(x).flatten(0, 1)
        best, chosen = self.router(read).topk(2)
        weights, total = best.softmax(-1), torch.zeros_like(read)
        for number, expert in enumerate(self.experts):
            total = total + expert(read) * (weights * (chosen == number)).sum(-1, keepdim=True)
        return x + total.view_as(x)


class SelectiveLoop(nn.Module):
    """A selective state space whose scan is a loop over time."""

    def __init__(self, inner: int = 64, states: int = 8) -> None:
        super().__init__()
        self.norm, self.enter = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * inner, bias=False)
        self.near = nn.Conv1d(inner, inner, 4, groups=inner, padding=3)
        self.chosen, self.rates = nn.Linear(inner, 4 + 2 * states, bias=False), nn.Linear(4, inner)
        self.decays = nn.Parameter(torch.log(torch.arange(1.0, states + 1).repeat(inner, 1)))
        self.out, self.states = nn.Linear(inner, WIDTH, bias=False), states

    def forward(self, x: Tensor) -> Tensor:
        inner, gate = self.enter(self.norm(x)).chunk(2, -1)
        inner = F.silu(self.near(inner.mT)[..., : x.shape[1]].mT)
        rate, write, read = self.chosen(inner).split((4, self.states, self.states), -1)
        rate = F.softplus(self.rates(rate))
        kept = torch.exp(torch.einsum("btd,dn->btdn", rate, -torch.exp(self.decays)))
        added = torch.einsum("btd,btn,btd->btdn", rate, write, inner)
        state, given_out = torch.zeros_like(added[:, 0]), []
        for time in range(x.shape[1]):
            state = kept[:, time] * state + added[:, time]
            given_out.append(torch.einsum("bdn,bn->bd", state, read[:, time]))
        return x + self.out((torch.stack(given_out, 1) + inner) * F.silu(gate))


class TwoHalves(nn.Module):
    """A reversible layer: each half of the stream is changed by the other."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.feed = Attending(WIDTH // 2), feed_forward(WIDTH // 2)

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, -1)
        one = one + self.attention(other)
        return torch.cat([one, other + self.feed(one)], -1)


class Cached(nn.Module):
    """A decoder layer that keeps the keys and values of tokens read before, and counts them."""

    def __init__(self, places: int = 20, before: int = 3) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.packed, self.feed, self.before = nn.Linear(WIDTH, 3 * WIDTH), feed_forward(), before
        self.register_buffer("keys", torch.zeros(2, HEADS, places, HEAD))
        self.register_buffer("values", torch.zeros(2, HEADS, places, HEAD))
        self.register_buffer("read", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (split(part) for part in self.packed(self.norm(x)).chunk(3, -1))
        here = torch.arange(x.shape[1]) + self.before
        self.read.add_(x.shape[1])
        self.keys[:, :, here], self.values[:, :, here] = key, value
        seen = here[:, None] >= torch.arange(self.keys.shape[2])
        mixed = F.scaled_dot_product_attention(query, self.keys, self.values, attn_mask=seen)
        x = x + self.out(merge(mixed))
        return x + self.feed(x)


def encoder() -> nn.Module:
    """What ``torch.nn`` calls one operator a layer for."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 96, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)


def stack(layer: str) -> nn.Module:
    """A :class:`Stack` of the layers called ``layer``."""
    return Stack(globals()[layer])


def _row(name: str, model: str, inputs: dict[str, Any], **facts: Any) -> Row:
    sizes = {} if model[0].isupper() or model == "encoder" else {"layer": facts.pop("layer")}
    return Row(f"written-{name}", "written by hand", "written", model, sizes, inputs, **facts)


_TOKENS = {"tokens": ids(2, 12)}
_IMAGE = {"image": real(2, 3, 32, 32)}

ROWS = (
    _row("one-projection", "stack", _TOKENS, layer="OneProjection", fast=True),
    _row("lists-of-lists", "ListsOfLists", _IMAGE, fast=True),
    _row("convolutional", "Convolutional", _IMAGE, fast=True),
    _row("every-expert", "stack", _TOKENS, layer="EveryExpert"),
    _row("selective-loop", "stack", _TOKENS, layer="SelectiveLoop", recurrent=("SelectiveLoop",)),
    _row("two-halves", "stack", _TOKENS, layer="TwoHalves"),
    _row("cached", "stack", _TOKENS, layer="Cached", fast=True),
    _row("torch-encoder", "encoder", {"src": real(2, 12, WIDTH)}, fast=True),
    _row(
        "torch-encoder-padded",
        "encoder",
        {"src": real(2, 12, WIDTH), "src_key_padding_mask": given(lambda: torch.arange(12).expand(2, 12) > 8)},
    ),
)
