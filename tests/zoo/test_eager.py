"""The counter of the zoo, on small modules whose counts are plain to see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from .eager import observe
from .table import Row


class Attend(nn.Module):
    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.packed, self.out, self.fused = nn.Linear(8, 24), nn.Linear(8, 8), fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.packed(x).chunk(3, -1)
        if self.fused:
            return self.out(functional.scaled_dot_product_attention(q, k, v))
        scores = (q @ k.transpose(-2, -1)).masked_fill(torch.ones(4, 4).triu(1).bool(), -1e9) / 8**0.5
        return self.out(scores.softmax(-1) @ v)


class Feed(nn.Module):
    def __init__(self, gated: bool = False, wide: int = 8) -> None:
        super().__init__()
        self.up, self.gate, self.down, self.gated = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, wide), gated

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.silu(self.gate(x)) * self.up(x) if self.gated else functional.gelu(self.up(x))
        return self.down(hidden)


class Layer(nn.Module):
    def __init__(self, fused: bool = True, gated: bool = False) -> None:
        super().__init__()
        self.attend, self.feed, self.norm = Attend(fused), Feed(gated), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm(x))
        return x + 0.5 * self.feed(self.norm(x))


class Stack(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Router(nn.Module):
    """A softmax over a linear layer's output that weighs experts picked for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.route = nn.Linear(8, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 8, 16)), nn.Parameter(torch.randn(4, 16, 8))

    def forward(self, x: Tensor) -> Tensor:
        share, index = self.route(x).softmax(-1).topk(1)
        hidden = functional.relu(torch.einsum("btd,btdf->btf", x, self.up[index[..., 0]]))
        return x + share * torch.einsum("btf,btfd->btd", hidden, self.down[index[..., 0]])


class Pool(nn.Module):
    """A softmax over scores of a linear layer, multiplied element by element: pooling, not attention."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.score(x).softmax(1) * x).sum(1)


class Talking(nn.Module):
    """Squeeze and excite: looks like a feed-forward layer, but multiplies what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.feed = Feed()

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.feed(x.mean(1, keepdim=True)))


class Past(Stack):
    """Calls ``forward`` past the module, which runs no hook."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer.forward(x)
        return x


class Short(Stack):
    """Runs a last layer whose result nobody reads."""

    def forward(self, x: Tensor) -> Tensor:
        *layers, last = self.layers
        for layer in layers:
            x = layer(x)
        last(x)
        return x


CASES: dict[str, tuple[nn.Module, dict[str, int]]] = {
    "fused": (Residual(Attend()), {"attention": 1}),
    "written-out": (Residual(Attend(False)), {"attention": 1}),
    "stack": (Stack(Layer(), Layer(False)), {"attention": 2, "feedforward": 2, "block": 2}),
    "gated": (Stack(Layer(gated=True), Layer(gated=True)), {"attention": 2, "feedforward": 2, "block": 2}),
    "past-the-module": (Past(Layer(), Layer()), {"attention": 2, "feedforward": 2, "block": 2}),
    "one-layer": (Stack(Layer()), {"attention": 1, "feedforward": 1}),
    "no-residual": (Feed(), {}),
    "another-width": (nn.Sequential(Feed(wide=6)), {}),
    "residual": (Residual(Feed()), {"feedforward": 1}),
    "unlike-layers": (Stack(Residual(Feed()), Residual(Attend())), {"attention": 1, "feedforward": 1}),
    "router": (Router(), {"moe": 1}),
    "pooling": (Pool(), {}),
    "excite": (Talking(), {}),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_counts(name: str) -> None:
    module, wanted = CASES[name]
    row = Row(name, "", "", "", recurrent=("Pool",))
    inputs: dict[str, Any] = {"x": torch.randn(2, 4, 8)}
    counts = observe(row, module.eval(), inputs).counts
    assert {kind: number for kind, number in counts.items() if number and kind != "scan"} == wanted
    assert counts["scan"] == (name == "pooling")


class Streams(nn.Module):
    """Two streams with an attention and a feed-forward layer each, of which the second is read by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer(False)])

    def forward(self, x: Tensor) -> Tensor:
        first, second = (layer(x) for layer in self.layers)
        assert second.shape == x.shape
        return first


def test_what_nobody_reads_is_counted_apart() -> None:
    found = observe(Row("streams", "", "", ""), Streams().eval(), {"x": torch.randn(2, 4, 8)})
    for counts in (found.counts, found.unread):
        assert {kind: counts[kind] for kind in ("attention", "feedforward")} == {"attention": 1, "feedforward": 1}


def test_a_member_that_ran_for_nothing_is_told_from_the_others() -> None:
    found = observe(Row("", "", "", ""), Short(Layer(), Layer(), Layer()).eval(), {"x": torch.randn(2, 4, 8)})
    assert (found.blocks, found.unread_blocks) == (["layers.0", "layers.1"], ["layers.2"])
