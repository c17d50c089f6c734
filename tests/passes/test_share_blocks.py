"""share_blocks(): one compiled block called for every layer computes what the whole graph does, gradients too."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import laconic
from laconic.backends import runner
from laconic.backends.cutting import cut
from laconic.passes import share_blocks as share_blocks_verb
from laconic.passes.cached_regions import around_branch, stacks
from laconic.passes.plan import Cut
from laconic.passes.share_blocks import ShareBlocks
from laconic.patterns.detect import detect
from laconic.patterns.sites import Attention, Block, FeedForward
from tests.backends.test_pieces import captured
from tests.models.repeated import REPEATED

WIDTH, HEADS = 16, 2
EVERYTHING = [share_blocks_verb(overhead=1e9)]
_INT8 = laconic.quantize("int8", min_features=1, min_products=0)


class Layer(nn.Module):
    def __init__(self, gated: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.modulation = nn.Linear(WIDTH, 2 * WIDTH) if gated else None
        self.dropout = dropout

    def forward(self, x: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        batch, tokens, _ = x.shape
        gates: tuple[Any, Any] = (1.0, 1.0)
        if self.modulation is not None and condition is not None:
            gates = self.modulation(condition).chunk(2, -1)  # type: ignore[assignment]
        heads = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask)
        x = x + gates[0] * self.out(mixed.transpose(1, 2).reshape(batch, tokens, WIDTH))
        hidden = F.dropout(F.gelu(self.up(self.norm2(x))), self.dropout, self.training)
        return x + gates[1] * self.down(hidden)


class Stack(nn.Module):
    def __init__(self, depth: int = 4, gated: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 8)
        self.layers = nn.ModuleList(Layer(gated, dropout) for _ in range(depth))

    def forward(self, x: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x, condition, mask)
        return self.head(x)


@dataclass
class Compiled:
    """The pieces that were compiled, and how often any ran."""

    pieces: list[torch.fx.GraphModule] = field(default_factory=list)
    runs: int = 0


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiled]:
    """Run pieces as they are instead of through Inductor."""
    torch._dynamo.reset()
    count = Compiled()

    def compile_graph(module: torch.fx.GraphModule, inputs: Any, options: Any) -> Callable[..., Any]:
        module.graph.lint()
        count.pieces.append(module)

        def run(*args: Any) -> Any:
            count.runs += 1
            return module(*args)

        return run

    monkeypatch.setattr(runner, "compile_graph", compile_graph)
    yield count
    torch._dynamo.reset()


def fast(model: nn.Module, *passes: Any, **options: Any) -> Any:
    chosen = [*passes, *EVERYTHING] if not any(item.name == "share_blocks" for item in passes) else list(passes)
    dynamic = options.pop("dynamic", False)
    return torch.compile(model, backend="laconic", dynamic=dynamic, options={"passes": chosen, **options})


def shared(compiled: Any) -> list[str]:
    return [row.op for row in laconic.report(compiled).rewrites if "share_blocks" in row.pass_name]


@torch.no_grad()
def test_between_cached_layers_one_piece_runs_whatever_block_it_ends_or_begins(eager: Compiled) -> None:
    model, x = Stack(4).eval().requires_grad_(False), torch.randn(2, 5, 8)
    compiled = fast(model, laconic.cache("taylor", level="layers", interval=1))
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-6)
    # Eight layers and what lies before, between and behind them; equal ones are compiled once all the same.
    assert eager.runs == 17 and len(eager.pieces) < 8
    assert shared(compiled) == []


@torch.no_grad()
def test_a_block_is_compiled_once_and_runs_for_every_layer(eager: Compiled) -> None:
    model, x = Stack(6).eval(), torch.randn(2, 5, 8)
    mask = torch.randn(5, 5)
    compiled = fast(model)
    torch.testing.assert_close(compiled(x, None, mask), model(x, None, mask), rtol=0, atol=1e-6)
    assert (len(eager.pieces), eager.runs) == (3, 8)
    assert shared(compiled) == ["6 pieces of equal blocks"] and "8 run, 3 compiled" in str(laconic.report(compiled))
    # Nothing of a weight is fixed: another instance and changed weights run through the same pieces.
    other = Stack(6).eval()
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.5)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(compiled(x, None, mask), other(x, None, mask), rtol=0, atol=1e-6)
    assert len(eager.pieces) == 3


@torch.no_grad()
def test_small_blocks_are_left_in_the_whole_or_taken_several_at_a_time(
    eager: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 5, 8)
    compiled = torch.compile(Stack(5).eval(), backend="laconic")
    compiled(x)
    assert len(eager.pieces) == 1 and shared(compiled) == []
    codes = [row.code for row in laconic.report(compiled).refusals if row.pass_name == "share_blocks"]
    assert codes == ["not-faster"]
    # Calls may cost a hundredth: two, three and four blocks at a time, what is left over stays in the piece before.
    for depth, seconds, pieces, runs in ((7, 0.6, 3, 5), (7, 0.45, 3, 4), (7, 0.3, 1, 1)):
        torch._dynamo.reset()
        eager.pieces.clear()
        eager.runs = 0
        model = Stack(depth).eval()
        module = sys.modules[ShareBlocks.__module__]
        monkeypatch.setattr(module, "block_seconds", lambda block, seconds=seconds: seconds)
        monkeypatch.setattr(module, "call_seconds", lambda block: 0.01)
        compiled = torch.compile(model, backend="laconic")
        assert torch.equal(compiled(x), model(x))
        assert (len(eager.pieces), eager.runs) == (pieces, runs), depth


@torch.no_grad()
def test_disabled_it_is_the_whole_graph(eager: Compiled) -> None:
    compiled = fast(Stack().eval(), laconic.disable("share_blocks"))
    compiled(torch.randn(2, 5, 8))
    assert len(eager.pieces) == eager.runs == 1


@torch.no_grad()
def test_any_length_through_one_graph(eager: Compiled) -> None:
    model = Stack(4, gated=True).eval()
    compiled = fast(model, dynamic=True)
    for batch, tokens in ((2, 5), (3, 7), (2, 9)):
        x, condition = torch.randn(batch, tokens, 8), torch.randn(batch, 1, WIDTH)
        torch.testing.assert_close(compiled(x, condition), model(x, condition), rtol=0, atol=1e-6)
    assert len(eager.pieces) == 3 and len(laconic.report(compiled).graphs) == 1


@torch.no_grad()
def test_kinds_of_layers_in_turn_and_blocks_with_constants(eager: Compiled) -> None:
    class Scaled(Layer):
        def forward(self, x: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
            return super().forward(x + 0.1 * torch.tensor([1.0, 2.0] * (WIDTH // 2)), condition, mask)

    model = Stack(0).eval()
    model.layers.extend([Layer() if index % 2 else Scaled() for index in range(6)])
    compiled, x = fast(model), torch.randn(1, 4, 8)
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-6)
    assert shared(compiled) and len(eager.pieces) < 6


@torch.no_grad()
def test_packed_weights_go_to_their_own_block(eager: Compiled) -> None:
    model, x = Stack(5).eval(), torch.randn(2, 5, 8)
    quantize = laconic.quantize("int8", min_features=8, min_products=0)
    whole = fast(model, quantize, laconic.disable("share_blocks"))(x)
    assert len(eager.pieces) == 1
    compiled = fast(model, quantize)
    torch.testing.assert_close(compiled(x), whole, rtol=0, atol=1e-6)
    assert len(eager.pieces) - 1 <= 4 and eager.runs - 1 == 7
    target = torch.ops.laconic.int8_linear.default
    counts = [len(piece.graph.find_nodes(op="call_function", target=target)) for piece in eager.pieces[1:]]
    assert max(counts) == 4


@pytest.mark.parametrize(
    ("name", "layers", "passes", "dynamic", "pieces"),
    [
        ("vit", 4, (_INT8,), True, 4),
        ("jamba", 8, (_INT8,), False, 8),
        ("dit", 3, (_INT8, laconic.sparse_attention("window", size=4)), False, 3),
    ],
    ids=["vit", "jamba", "dit"],
)
@torch.no_grad()
def test_blocks_are_found_again_after_other_passes(
    eager: Compiled, name: str, layers: int, passes: tuple[Any, ...], dynamic: bool, pieces: int
) -> None:
    model, args, kwargs = REPEATED[name](layers)
    compiled = fast(model.eval(), *passes, dynamic=dynamic)
    compiled(*args, **kwargs)
    assert shared(compiled) == [f"{pieces} pieces of equal blocks"], str(laconic.report(compiled))


@torch.no_grad()
def test_cached_regions_cut_the_same_graph(eager: Compiled) -> None:
    model, x = Stack(6).eval(), torch.randn(2, 5, 8)
    compiled = fast(model, laconic.cache("first-block", threshold=1e9, warmup=1, max_consecutive=1))
    with laconic.session(compiled, steps=4) as here:
        results = [compiled(x) for _ in range(4)]
    assert all(torch.allclose(result, model(x), atol=1e-5) for result in results)
    summary = here.summary()
    assert summary.reused > 0 and len(eager.pieces) == 3
    # A reused call runs what is before and behind the region and the first block; a computed one all six.
    assert eager.runs == summary.computed * 8 + summary.reused * 3


@pytest.mark.parametrize("kind", [Attention, FeedForward])
def test_branches_of_blocks_are_regions_of_their_own(kind: Any) -> None:
    graph, _ = captured(Stack(3, gated=True).eval(), torch.randn(2, 5, 8), torch.randn(2, 1, WIDTH))
    sites = detect(graph)
    regions = [around_branch(graph, ShareBlocks(), site, site.id) for site in sites.of(kind)]
    (stack,) = stacks(sites)
    assert len(regions) == len(stack) == 3
    cuts = [Cut(nodes=block.interior, policy=ShareBlocks(), site=block) for block in stack]
    cutting = cut(graph, regions, cuts)  # type: ignore[arg-type]
    # Before, between and behind them one part each, whatever block it ends or begins.
    assert not cutting.refused and len(cutting.regions()) == 3 and len(cutting.parts) == 7 and not cutting.cuts
    for region in cutting.regions():
        # Before the gate: what leaves is the projection itself, what comes in is the stream.
        assert region.exits[0].target is torch.ops.aten.linear.default
        assert region.entries[0].target in (torch.ops.aten.linear.default, torch.ops.aten.add.Tensor)


def gradients(model: nn.Module, run: Any, x: Tensor, *args: Any) -> list[Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_(True)
    run(x, *args).square().sum().backward()
    assert x.grad is not None
    return [x.grad, *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)]


def test_gradients_through_inductor() -> None:
    torch._dynamo.reset()
    model, x, condition = Stack(4, gated=True), torch.randn(2, 5, 8), torch.randn(2, 1, WIDTH)
    compiled = fast(model)
    expected = gradients(model, model, x, condition)
    found = gradients(model, compiled, x, condition)
    assert len(found) == len(expected) == 1 + len(list(model.parameters()))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    (graph,) = laconic.report(compiled).graphs
    assert graph.pieces == (6, 3)


def test_what_needs_no_gradient_is_another_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen first layer: its input and weights carry no gradient, so its code is not that of the others."""
    torch._dynamo.reset()
    needs: list[tuple[bool, ...]] = []

    def compile_graph(module: torch.fx.GraphModule, inputs: Any, options: Any) -> Callable[..., Any]:
        needs.append(tuple(value.requires_grad for value in inputs if isinstance(value, Tensor)))
        return module

    monkeypatch.setattr(runner, "compile_graph", compile_graph)
    model, x = Stack(4), torch.randn(2, 5, 8)
    model.embed.requires_grad_(False)
    model.layers[0].requires_grad_(False)
    compiled = fast(model)
    compiled(x).sum().backward()
    blocks = [row for row in needs if len(row) > 5]
    assert len(blocks) == 3 and not any(blocks[0]) and blocks[1].count(False) == 1 and all(blocks[2])
    reference = copy.deepcopy(model)
    reference.zero_grad()
    reference(x).sum().backward()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad)


def test_random_numbers_come_in_the_same_order(eager: Compiled) -> None:
    model, x = Stack(4, dropout=0.5).train(), torch.randn(2, 5, 8)
    compiled = fast(model)
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    assert torch.equal(compiled(x), expected) and len(eager.pieces) == 3


def test_under_no_grad_inside_and_writes(eager: Compiled) -> None:
    class Switched(Stack):
        def forward(self, x: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
            with torch.no_grad():
                scale = torch.sigmoid(self.embed(x)).mean()
            return super().forward(x * scale, condition, mask)

    class Written(Stack):
        def forward(self, x: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
            x = self.embed(x)
            for layer in self.layers:
                x = layer(x)
                total = x.clone()
                total.add_(1)
                x = x + 0.1 * total
            return self.head(x)

    x = torch.randn(2, 5, 8)
    for model in (Switched(4), Written(4)):
        torch._dynamo.reset()
        compiled = fast(model)
        expected = gradients(model, model, x)
        for mine, theirs in zip(gradients(model, compiled, x), expected, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_code_that_holds_weights_is_not_shared(eager: Compiled) -> None:
    model, x = Stack(4).eval(), torch.randn(2, 5, 8)
    with torch.no_grad():
        compiled = fast(model, inductor={"freezing": True})
        torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-6)
    assert len(eager.pieces) == 1
    assert "tied-to-weights" in [row.code for row in laconic.report(compiled).refusals]


def test_settings() -> None:
    assert repr(laconic.share_blocks()) == "laconic.share_blocks()"
    with pytest.raises(ValueError, match="overhead"):
        laconic.share_blocks(overhead=-1)
    with pytest.raises(TypeError, match="overhead"):
        laconic.share_blocks(overhead="little")
    assert Block in ShareBlocks.kinds
