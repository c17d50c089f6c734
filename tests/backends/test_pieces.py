"""Cutting a graph at regions: the pieces compute what the whole did, and only what they may is skipped."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import laconic
from laconic.backends.cut_report import note
from laconic.backends.cutting import cut
from laconic.backends.pieces import compile_pieces
from laconic.passes.base import PlanContext
from laconic.passes.cache_easycache import EasyCache
from laconic.passes.cached_regions import region_nodes
from laconic.passes.plan import CachedRegion, Cut, Plan
from laconic.passes.report import GraphReport
from laconic.passes.reuse import CachePolicy, Moment, Tracker
from laconic.patterns.graph import NormalGraph
from laconic.patterns.normalize import normalize


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.gate = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return x + self.gate(condition) * self.down(torch.relu(self.up(x)))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.blocks = nn.Linear(8, 8), nn.ModuleList(Block() for _ in range(3))
        self.requires_grad_(False)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        condition, x = torch.tanh(c), self.embed(x)
        for block in self.blocks:
            x = block(x, condition)
        return x * condition.mean()


def captured(model: Any, *args: Any, dynamic: bool = False) -> tuple[NormalGraph, list[Any]]:
    found: list[Any] = []

    def keep(module: Any, inputs: Any) -> Any:
        found.append((normalize(module, inputs), list(inputs)))
        return module

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=keep, fullgraph=True, dynamic=dynamic)(*args)
    assert isinstance(found[0][0], NormalGraph), found[0][0]
    return found[0]


def streams(graph: NormalGraph) -> list[Any]:
    """The residual additions, in order."""
    return [n for n in graph.module.graph.nodes if n.target is torch.ops.aten.add.Tensor]


def between(entry: Any, *exits: Any) -> CachedRegion:
    return CachedRegion(entries=(entry,), exits=exits, policy=EasyCache(0.0))


def assembled(graph: NormalGraph, args: Any, regions: Any, compile_piece: Any, share: bool = False) -> Any:
    """The callable of the graph cut at regions, and its report."""
    report, cutting = GraphReport(0, 0), cut(graph, regions)
    note(cutting, "", report, lambda site: site.id)
    cutting.share = share
    return compile_pieces(graph, args, cutting, compile_piece, report), report


def test_regions_become_pieces_that_compute_the_same() -> None:
    inputs = (torch.randn(2, 5, 8), torch.randn(2, 1, 8))
    graph, args = captured(Stack(), *inputs)
    first, second, third = streams(graph)
    regions = [between(first, second), between(second, third)]
    pieces = cut(graph, regions).parts
    assert [piece.region for piece in pieces] == [None, *regions, None]
    # The condition is read outside the blocks, each block's own gate only inside it.
    assert "tanh" in str(pieces[0].nodes) and sum("linear" in node.name for node in pieces[1].nodes) == 3
    modules = []

    def compile_piece(module: torch.fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        module.graph.lint()
        modules.append(module)
        return module

    run, report = assembled(graph, args, regions, compile_piece)
    assert torch.equal(run(*args)[0], graph.module(*args)[0]) and len(modules) == 4
    assert [row.pass_name for row in report.rewrites] == ["laconic.cache('easycache', threshold=0.0)"] * 2


def test_a_value_read_outside_is_not_part_of_the_region() -> None:
    class Leaky(Stack):
        def forward(self, x: Tensor, c: Tensor) -> Any:
            hidden = torch.relu(self.embed(x))
            y = x + self.embed(torch.sin(hidden))
            return y * 2, hidden

    graph, args = captured(Leaky(), torch.randn(3, 8), torch.randn(3, 8))
    (total,) = streams(graph)
    inside = region_nodes(graph, between(graph.placeholders[0], total))
    assert sorted(node.name for node in inside) == ["add", "linear_1", "sin"]
    run, _ = assembled(graph, args, [between(graph.placeholders[0], total)], lambda m, _: m)
    for mine, whole in zip(run(*args), graph.module(*args), strict=True):
        assert torch.equal(mine, whole)


@pytest.mark.parametrize("read_outside", [False, True])
def test_only_tensors_go_from_piece_to_piece(read_outside: bool) -> None:
    def function(x: Tensor) -> Any:
        values, places = torch.topk(torch.sin(x), 3)
        y = x[:, :3] + torch.exp(places if read_outside else values)
        return (y, values) if read_outside else (y,)

    graph, args = captured(function, torch.randn(2, 8))
    (total,) = streams(graph)
    seen = []

    def compile_piece(module: torch.fx.GraphModule, examples: Sequence[Any]) -> Any:
        seen.append(module)
        assert all(isinstance(value, Tensor) for value in examples)
        return module

    region = between(graph.placeholders[0], total)
    run, _ = assembled(graph, args, [region], compile_piece)
    for mine, whole in zip(run(*args), graph.module(*args), strict=True):
        assert torch.equal(mine, whole)
    # Without a reader outside, the tuple and what it comes from are skipped with the rest.
    assert len(seen) == (2 if read_outside else 1)


def test_a_cut_takes_the_items_of_its_tuples_along_and_leaves_those_of_others() -> None:
    def function(x: Tensor) -> Tensor:
        first, second = torch.chunk(torch.sin(x), 2, -1)
        low, high = torch.chunk(first * 2, 2, -1)
        return torch.cat([low, high * second.mean()], -1)

    graph, args = captured(function, torch.randn(2, 8))
    nodes = {node.name: node for node in graph.module.graph.nodes}
    (_, second), (low, _) = (
        [user for user in nodes[name].users if user.target is operator.getitem] for name in ("chunk", "chunk_1")
    )
    inside = frozenset({nodes["mul"], nodes["chunk_1"], second})
    (part,) = [
        row for row in cut(graph, [], [Cut(nodes=inside, policy=EasyCache(0.0))]).parts if nodes["mul"] in row.nodes
    ]
    assert low in part.nodes and second not in part.nodes
    assert all(isinstance(node.meta["val"], Tensor) for node in (*part.inputs, *part.outputs))


def test_regions_run_in_the_order_they_need_and_what_does_not_fit_is_given_up() -> None:
    graph, args = captured(Stack(), torch.randn(3, 8), torch.randn(3, 8))
    first, second, third = streams(graph)
    swapped = [between(second, third), between(first, second)]
    assert [part.region for part in cut(graph, swapped).parts] == [None, swapped[1], swapped[0], None]
    twice = [between(first, second), between(first, second), between(second, third)]
    run, report = assembled(graph, args, twice, lambda m, _: m)
    assert torch.equal(run(*args)[0], graph.module(*args)[0])
    assert [(row.code, "same values" in row.text) for row in report.refusals] == [("rolled-back", True)]
    assert len(report.rewrites) == 2


def test_values_are_freed_after_their_last_reader() -> None:
    import weakref

    inputs = (torch.randn(2, 8), torch.randn(2, 8))
    graph, args = captured(Stack(), *inputs)
    first, second, third = streams(graph)
    alive: list[weakref.ref[Tensor]] = []
    seen = []

    def compile_piece(module: torch.fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        def run(*values: Any) -> Any:
            seen.append([ref() is not None for ref in alive])
            out = module(*values)
            alive.append(weakref.ref(out[0]))
            return out

        return run

    assembled(graph, args, [between(first, second), between(second, third)], compile_piece)[0](*args)
    assert seen[3] == [seen[3][0], False, True]


@dataclass(frozen=True)
class EverySecond(CachePolicy):
    """Runs the middle of a stack on even steps only and repeats its increment on odd ones."""

    def tracker(self, role: str = "") -> Tracker:
        return Repeat()

    def plan(self, context: PlanContext) -> Plan:
        first, second, third = streams(context.graph)
        return Plan(regions=[CachedRegion(entries=(first,), exits=(third,), policy=self)])


class Repeat(Tracker):
    def __init__(self) -> None:
        self.increment = torch.zeros(())

    def decide(self, moment: Moment, entries: Sequence[Tensor]) -> bool:
        return moment.step % 2 == 1

    def observe(self, moment: Moment, entries: Sequence[Tensor], exits: Sequence[Tensor]) -> None:
        self.increment, self.ready = exits[0] - entries[0], True

    def predict(self, moment: Moment, entries: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (entries[0] + self.increment,)


def test_blocks_are_skipped_through_inductor_at_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    from laconic.passes.base import FACTORIES, Factory, Pass

    monkeypatch.setitem(FACTORIES, "cache", Factory("cache", {"every-second": EverySecond}, None, ""))
    torch._dynamo.reset()
    model = Stack()
    passes = [Pass("cache", "every-second", EverySecond())]
    fast = torch.compile(model, backend="laconic", dynamic=True, options={"passes": passes})
    condition = torch.tanh(c := torch.randn(2, 1, 8))

    def expected(x: Tensor, increment: Tensor | None) -> tuple[Tensor, Tensor]:
        first = model.blocks[0](model.embed(x), condition)
        if increment is None:
            increment = model.blocks[2](model.blocks[1](first, condition), condition) - first
        return (first + increment) * condition.mean(), increment

    with torch.no_grad(), laconic.session(fast, steps=6) as here:
        increment = None
        for step in range(6):
            x = torch.randn(2, 5 if step < 4 else 7, 8)
            if step == 4:
                increment = None
            wanted, increment = expected(x, None if step % 2 == 0 else increment)
            torch.testing.assert_close(fast(x, c), wanted, rtol=1e-4, atol=1e-5)
    assert [call.reused for call in here.summary().calls] == [False, True] * 3


def test_threshold_zero_is_the_pieces_alone_and_the_unsplit_compile() -> None:
    torch._dynamo.reset()
    model, inputs = Stack(), (torch.randn(2, 5, 8), torch.randn(2, 1, 8))

    def made(threshold: float) -> Any:
        passes = [laconic.cache("easycache", threshold=threshold, warmup=0)]
        return torch.compile(model, backend="laconic", options={"passes": passes})

    zero, tiny = made(0), made(1e-30)
    with torch.no_grad():
        unsplit = torch.compile(model)(*inputs)
        outside = tiny(*inputs)  # no session: the pieces without their policy
        with laconic.session(zero, tiny, steps=8):
            for _ in range(6):
                assert torch.equal(zero(*inputs), outside)
                assert torch.equal(tiny(*inputs), outside)
    torch.testing.assert_close(outside, unsplit, rtol=1e-5, atol=1e-5)
