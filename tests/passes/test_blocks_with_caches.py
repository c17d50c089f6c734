"""Layers that write keys and values into a cache: blocks like any other, which say what they write to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import laconic
from laconic.passes import share_blocks
from laconic.patterns.detect import detect
from laconic.patterns.sites import Block
from tests.backends.test_pieces import captured

WIDTH, HEADS, PLACES, DEPTH = 16, 2, 12, 3


class Cached(nn.Module):
    """Attention over all that was read so far, and a feed-forward layer; ``spelling`` is how the cache is written."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling, self.norm = spelling, nn.LayerNorm(WIDTH)
        self.packed, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.register_buffer("keys", torch.zeros(2, HEADS, PLACES, WIDTH // HEADS))
        self.register_buffer("values", torch.zeros(2, HEADS, PLACES, WIDTH // HEADS))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, places: Tensor, seen: Tensor, cache: tuple[Tensor, Tensor] | None) -> Tensor:
        parts = self.packed(self.norm(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        keys, values = (self.keys, self.values) if cache is None else cache
        if self.spelling == "indexed":
            keys[:, :, places], values[:, :, places] = k, v
        elif self.spelling == "copied":
            keys, values = keys.index_copy_(2, places, k), values.index_copy_(2, places, v)
        elif self.spelling == "counted":
            places = self.count + torch.arange(x.shape[1])
            self.count.add_(x.shape[1])
            keys, values = keys.index_copy_(2, places, k), values.index_copy_(2, places, v)
        else:
            keys[:, :, 2:5], values[:, :, 2:5] = k, v
        mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Decoder(nn.Module):
    """With ``together`` the caches of all layers are one buffer, of which each layer gets a view."""

    def __init__(self, spelling: str, together: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(50, WIDTH), nn.Linear(WIDTH, 8)
        self.layers = nn.ModuleList(Cached(spelling) for _ in range(DEPTH))
        shape = (DEPTH, 2, 2, HEADS, PLACES, WIDTH // HEADS)
        self.register_buffer("cache", torch.zeros(shape) if together else None)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        x = self.words(tokens)
        seen = places[:, None] >= torch.arange(PLACES)
        caches = [None] * DEPTH if self.cache is None else [one.unbind() for one in self.cache.unbind()]
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, places, seen, cache)
        x = self.head(x)
        return x if self.cache is None else x + self.cache.mean()


def steps(model: Any) -> list[Tensor]:
    torch.manual_seed(1)
    lengths = (3, 1, 1)
    return [
        model(torch.randint(0, 50, (2, length)), torch.arange(start, start + length))
        for start, length in zip((0, 3, 4), lengths, strict=True)
    ]


SPELLINGS = ("indexed", "copied", "counted", "sliced")


@torch.no_grad()
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_layer_is_a_block_that_says_what_it_writes(spelling: str) -> None:
    graph, _ = captured(Decoder(spelling).eval(), torch.randint(0, 50, (2, 3)), torch.arange(2, 5))
    blocks = list(detect(graph).of(Block))
    assert [block.module for block in blocks] == [f"layers.{index}" for index in range(DEPTH)]
    assert len({block.fingerprint for block in blocks}) == 1
    written = [node for block in blocks for node in block.writes]
    assert len(set(written)) == len(written) == DEPTH * (3 if spelling == "counted" else 2)


@torch.no_grad()
@pytest.mark.parametrize(("spelling", "together"), [("indexed", False), ("counted", False), ("copied", True)])
def test_one_piece_for_all_layers_writes_each_its_own_cache(spelling: str, together: bool) -> None:
    torch._dynamo.reset()
    model = Decoder(spelling, together).eval()
    fast = copy.deepcopy(model)
    options = {"passes": [share_blocks(overhead=1e9)]}
    compiled = torch.compile(fast, backend="laconic", dynamic=False, options=options)
    for mine, theirs in zip(steps(compiled), steps(model), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    for (name, mine), (_, theirs) in zip(fast.named_buffers(), model.named_buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5, msg=name)
    report = laconic.report(compiled)
    shared = [row for row in report.rewrites if "share_blocks" in row.pass_name and row.status == "applied"]
    # Views of one buffer, taken outside of the layers, are refused: a piece could not know that they are one.
    assert bool(shared) == (not together), str(report)
