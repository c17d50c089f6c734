"""Layers that are not equal: which of them make a stack, where it begins and ends, and what is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from laconic.patterns.detect import detect
from laconic.patterns.sites import Block
from tests.backends.test_pieces import captured

WIDTH = 16


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.packed, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.packed(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v))


class Feed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Layer(nn.Module):
    """``scale`` is a constant of the layer; ``twice`` attends a second time; ``shift`` moves the tokens it mixes."""

    def __init__(self, scale: float = 1.0, twice: bool = False, shift: int = 0) -> None:
        super().__init__()
        self.norm, self.attend, self.feed = nn.LayerNorm(WIDTH), Attend(), Feed()
        self.again = Attend() if twice else None
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        y = self.attend(y.roll(self.shift, 1)).roll(-self.shift, 1) if self.shift else self.attend(y)
        x = x + self.scale * y
        if self.again is not None:
            x = x + self.again(x)
        return x + self.feed(self.norm(x))


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Stack(nn.Module):
    def __init__(self, layers: Sequence[nn.Module], table_after: int | None = None) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 8)
        self.layers = nn.ModuleList(layers)
        self.table = nn.Parameter(torch.randn(WIDTH))
        self.table_after = table_after

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index == self.table_after:
                x = x + self.table
        return self.head(x)


class Joint(nn.Module):
    """Two streams that attend to each other; the last of its kind hands on only the first."""

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.attend, self.one, self.other, self.last = Attend(), Feed(), Feed(), last

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        both = self.attend(torch.cat([x, y], 1))
        x = x + both[:, : x.shape[1]]
        x = x + self.one(x)
        if self.last:
            return x, None
        y = y + both[:, x.shape[1] :]
        return x, y + self.other(y)


class Streams(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Linear(8, WIDTH), nn.Linear(8, WIDTH), nn.Linear(WIDTH, 8)
        self.layers = nn.ModuleList(Joint(index == depth - 1) for index in range(depth))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.one(x), self.other(y)
        for layer in self.layers:
            x, y = layer(x, y)
        return self.head(x)


class Turns(nn.Module):
    """Layers of two lists that take turns, seen as images by one and as tokens by the other."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 1)
        self.convolutions = nn.ModuleList(Residual(nn.Conv2d(WIDTH, WIDTH, 3, padding=1)) for _ in range(depth))
        self.attentions = nn.ModuleList(Residual(Attend()) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for convolution, attention in zip(self.convolutions, self.attentions, strict=True):
            x = convolution(x)
            x = attention(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
        return x


class Mixed(nn.Module):
    """A layer made of two wrappers of one class that hold different things."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Residual(nn.Conv1d(WIDTH, WIDTH, 3, padding=1))
        self.work = Residual(nn.Sequential(nn.Conv1d(WIDTH, 32, 1), nn.InstanceNorm1d(32), nn.Conv1d(32, WIDTH, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.work(self.mix(x))


class Stages(nn.Module):
    """Between its layers and the next stage are wrappers like those in them, in a module with a layer of its own."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Mixed() for _ in range(depth))
        down = Mixed()
        self.down = nn.Sequential(down.mix, down.work, nn.Conv1d(WIDTH, 2 * WIDTH, 2, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.down(x)


class Past(Stack):
    """Calls the ``forward`` of its layers past the modules."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer.forward(x)
        return self.head(x)


class Split(nn.Module):
    """Attention and feed-forward, each with its sum, called one after the other."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.mix, self.work = Residual(nn.Sequential(nn.LayerNorm(WIDTH), Attend())), Residual(Feed())
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return self.work(self.mix(x + self.shift))


class Masked(Stack):
    """Every layer converts the mask to the type it has."""

    def forward(self, x: Tensor) -> Tensor:
        keep = (x.mean(-1) > 0).to(x.dtype)
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x * keep.to(x.dtype).unsqueeze(-1))
        return self.head(x)


class Parts(nn.Module):
    """Two lists of parts in turns; the caller adds what they return. ``lateral``: to a value they do not read."""

    def __init__(self, depth: int, normed: bool = False, lateral: bool = False) -> None:
        super().__init__()
        self.embed, self.other = nn.Embedding(9, WIDTH), nn.Embedding(9, WIDTH)
        self.mixing = nn.ModuleList(Attend() for _ in range(depth))
        self.working = nn.ModuleList(Feed() for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(depth))
        self.normed, self.lateral = normed, lateral

    def forward(self, ids: Tensor) -> Tensor:
        x, y = self.embed(ids[:, 1:]), self.other(ids[:, 1:])
        for index, (mix, work, norm) in enumerate(zip(self.mixing, self.working, self.norms, strict=True)):
            if self.lateral:
                y = y + (index + 0.5) * work(x)
                continue
            x = x + F.dropout(mix(norm(x) if self.normed else x), 0.1, self.training)
            x = norm(x + work(x))
        return y if self.lateral else x


class Groups(nn.Module):
    """Layers that are lists of parts. ``skips``: the last ones begin by joining what an earlier one read."""

    def __init__(self, depth: int, scale: float = 1.0, post: bool = False, skips: bool = False) -> None:
        super().__init__()
        self.embed, self.scale, self.depth = nn.Linear(8, WIDTH), scale, depth
        self.layers = nn.ModuleList()
        for index in range(depth):
            joins = nn.Linear(2 * WIDTH, WIDTH) if skips and index >= depth // 2 else None
            self.layers.append(nn.ModuleList([joins, Attend(), Feed()]))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * depth)) if post else None

    def forward(self, x: Tensor) -> Tensor:
        x, read = self.embed(x), []
        for index, (join, attend, feed) in enumerate(self.layers):
            if join is None:
                read.append(x)
            else:
                x = join(torch.cat([read.pop(), x], -1))
            for number, part in enumerate((attend, feed)):
                # By depth, so that no two layers are equal.
                x = x * (self.scale + 0.1 * index) + part(x)
                x = x if self.norms is None else self.norms[2 * index + number](x)
        return x


def blocks(model: nn.Module, *inputs: Tensor) -> list[Block]:
    torch.manual_seed(0)
    graph, *_ = captured(model.eval(), *inputs)
    return list(detect(graph).of(Block))


def seen(found: Sequence[Block]) -> list[tuple[int, str, int]]:
    return [(block.stack, str(block.module), block.variant) for block in found]


def layers(*variants: int) -> list[tuple[int, str, int]]:
    return [(0, f"layers.{index}", variant) for index, variant in enumerate(variants)]


CASES: dict[str, tuple[Stack, list[tuple[int, str, int]]]] = {
    "the first does more": (Stack([Layer(twice=True), Layer(), Layer()]), layers(0, 1, 1)),
    "the last does more": (Stack([Layer(), Layer(), Layer(twice=True)]), layers(0, 0, 1)),
    "constants by depth": (Stack([Layer(0.9), Layer(0.8), Layer(0.7)]), layers(0, 1, 2)),
    "two kinds, each once": (Stack([Layer(), Layer(shift=2)]), layers(0, 1)),
    "two kinds in turns": (Stack([Layer(), Layer(shift=2), Layer(), Layer(shift=2)]), layers(0, 1, 0, 1)),
    "a table after the first": (Stack([Layer(), Layer(), Layer()], table_after=0), layers(0, 0, 0)),
    # Not layers of a stack: one layer written as two, a single one, no stream, another stream.
    "one layer in two": (Stack([Residual(Attend()), Residual(Feed())]), []),
    "one": (Stack([Layer()]), []),
    "no sums": (Stack([Attend(), Attend()]), []),
    "a projection between": (Stack([Layer(), nn.Linear(WIDTH, WIDTH), Layer(shift=2)]), []),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_layers_that_agree_make_a_stack(name: str) -> None:
    model, wanted = CASES[name]
    found = blocks(model, torch.randn(2, 6, 8))
    assert seen(found) == wanted
    assert all(len(block.entries) == len(block.exits) == 1 for block in found)
    by_variant: dict[int, set[str]] = {}
    for block in found:
        by_variant.setdefault(block.variant, set()).add(block.fingerprint)
    assert all(len(prints) == 1 for prints in by_variant.values())


def test_a_stream_may_end_in_the_last_layer() -> None:
    found = blocks(Streams(4), torch.randn(2, 6, 8), torch.randn(2, 3, 8))
    assert seen(found) == layers(0, 0, 0, 1)
    assert [(len(block.entries), len(block.exits)) for block in found] == [(2, 2)] * 3 + [(2, 1)]
    for one, other in zip(found, found[1:], strict=False):
        assert one.exits == other.entries
    # What goes on is the first stream, in every block.
    assert found[-1].exits[0].meta["val"].shape == found[0].entries[0].meta["val"].shape == (2, 6, WIDTH)


def test_lists_that_take_turns_are_one_stack() -> None:
    found = blocks(Turns(3), torch.randn(2, 3, 4, 4))
    assert [block.variant for block in found] == [0, 1] * 3
    assert {block.stack for block in found} == {0} and {block.period for block in found} == {1}


def test_towers_that_run_in_turns_are_two_stacks() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.ModuleList([Layer(0.9), Layer(0.8)])
            self.other = nn.ModuleList([Layer(0.7), Layer(0.6)])
            self.first, self.second = nn.Linear(8, WIDTH), nn.Linear(8, WIDTH)

        def forward(self, x: Tensor, y: Tensor) -> Any:
            x, y = self.first(x), self.second(y)
            for one, other in zip(self.one, self.other, strict=True):
                x, y = one(x), other(y)
            return x, y

    found = blocks(Towers(), torch.randn(2, 6, 8), torch.randn(2, 6, 8))
    assert sorted(seen(found)) == [(0, "one.0", 0), (0, "one.1", 1), (1, "other.0", 0), (1, "other.1", 1)]


@pytest.mark.parametrize("depth", [2, 3])
def test_wrappers_within_layers_and_between_stages_are_no_blocks(depth: int) -> None:
    found = blocks(Stages(depth), torch.randn(2, WIDTH, 8))
    assert seen(found) == layers(*[0] * depth)


@pytest.mark.parametrize("shift", [0, 1])
def test_layers_called_past_their_modules_are_found(shift: int) -> None:
    """Dynamo then notes only the modules in them: what holds equal children in one list is a layer."""
    model = Past([Split(), Split(shift), Split()])
    found = blocks(model, torch.randn(2, 6, 8))
    assert [(block.module, len(block.members) > 0) for block in found] == [
        (f"layers.{index}", True) for index in range(3)
    ]


def test_conversions_that_change_nothing_do_not_tell_layers_apart() -> None:
    found = blocks(Masked([Layer(), Layer(), Layer()]), torch.randn(2, 6, 8))
    assert seen(found) == layers(0, 0, 0)
    assert all(len(block.outputs) == 1 for block in found)


@pytest.mark.parametrize("normed", [False, True])
def test_parts_that_their_caller_adds_up_are_layers(normed: bool) -> None:
    found = blocks(Parts(3, normed), torch.randint(9, (2, 7)))
    assert [(block.stack, block.module) for block in found] == [
        (0, f"{part}.{index}") for index in range(3) for part in ("mixing", "working")
    ]
    assert [block.variant for block in found] == [0, 1] * 3
    assert all(one.exits != one.entries and len(one.exits) == 1 for one in found)


def test_what_is_added_to_another_value_is_no_layer() -> None:
    assert blocks(Parts(3, lateral=True), torch.randint(9, (2, 7))) == []


@pytest.mark.parametrize("post", [False, True])
def test_lists_of_parts_end_with_the_sum_their_caller_makes(post: bool) -> None:
    """The norm behind it, of another list, is no part of the layer; the one between its parts is."""
    found = blocks(Groups(3, 2.0, post), torch.randn(2, 6, 8))
    assert seen(found) == layers(0, 1, 2)
    assert all(len(block.entries) == len(block.exits) == len(block.outputs) == 1 for block in found)
    assert all("add" in block.exits[0].name for block in found)
    assert [block.parts for block in found] == [("attention", "feedforward")] * 3


def test_lists_of_parts_agree_when_some_hold_more() -> None:
    found = blocks(Groups(4, skips=True), torch.randn(2, 6, 8))
    assert [block.module for block in found] == [f"layers.{index}" for index in range(4)]


def test_a_list_that_runs_again_and_again_is_a_layer_each_time() -> None:
    class Again(Groups):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            for time in range(3):
                for _, attend, feed in self.layers:
                    x = x + (1 + time) * attend(x)
                    x = x + feed(x)
            return x

    found = blocks(Again(2), torch.randn(2, 6, 8))
    assert [block.module for block in found] == ["layers.0", "layers.1"] * 3
