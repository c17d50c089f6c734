"""The router: mixing with scores of one is the model, cost closes layers, and the table replays what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import laconic
from laconic.backends import runner
from laconic.passes.harmonica import _Training, train_router

STEPS = 5


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.gate = nn.Linear(16, 16)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        q, k, v = self.qkv(F.layer_norm(x, (16,))).chunk(3, -1)
        gate = self.gate(c).unsqueeze(1)
        x = x + gate * self.out(F.scaled_dot_product_attention(q, k, v))
        return x + gate * self.down(F.gelu(self.up(F.layer_norm(x, (16,)))))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.time = nn.Linear(1, 16)
        self.requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c = torch.tanh(self.time(t.expand(len(x), 1)))
        for block in self.blocks:
            x = block(x, c)
        return x


@torch.no_grad()
def sampler(network: Any, seed: int) -> Tensor:
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(seed))
    for step in range(STEPS):
        x = x - network(x, torch.tensor([step / STEPS])) / STEPS
    return x


def test_scores_of_one_are_the_model() -> None:
    torch._dynamo.reset()
    training = _Training(Network(), STEPS, 0.1)
    torch.testing.assert_close(training.sample(sampler, 0, on=0), sampler(Network(), 0))
    assert training.layers() == 6
    training.logits = list(torch.full((STEPS, 6), -50.0))  # everything reused after the first step
    assert not torch.allclose(training.sample(sampler, 0, on=STEPS), sampler(Network(), 0))


def test_cost_closes_layers_and_fidelity_opens_them() -> None:
    torch._dynamo.reset()
    settings = {"steps": STEPS, "iterations": 25, "rate": 0.3, "reweigh": 20}
    dear = train_router(Network(), sampler, cost=10.0, **settings)
    free = train_router(Network(), sampler, cost=0.0, **settings)
    assert dear.scores.shape == (STEPS, 6) and dear.scores[1:].mean() < 0.2 < free.scores[1:].mean()
    assert all(dear.table()[0]) and free.scores[1:].mean() > 0.5
    again = train_router(Network(), sampler, cost=10.0, **settings)
    assert torch.equal(again.scores, dear.scores)


def test_steps_are_weighed_by_what_switching_them_on_does_to_the_samples() -> None:
    torch._dynamo.reset()
    training = _Training(Network(), STEPS, 0.1)
    training.sample(sampler, 0, on=0)
    logits = torch.randn(STEPS, 6, generator=torch.Generator().manual_seed(0))
    logits[2] = 200.0  # computes everything, so it changes nothing
    training.logits = list(logits)
    ends = [training.sample(sampler, 3, on=on) for on in range(STEPS)]
    expected = torch.stack([(one - other).square().mean() for one, other in zip(ends[1:], ends, strict=False)])
    training.weigh(sampler, 3)
    torch.testing.assert_close(training.weights[1:], expected / expected.mean())
    assert training.weights[2] == 0 and training.weights[1] > 0


def test_a_router_begins_with_a_table_and_each_step_learns_alone() -> None:
    torch._dynamo.reset()
    table = laconic.interval_table(STEPS, 2)
    settings = {"steps": STEPS, "iterations": 1, "rate": 1e-6, "order": 1}
    assert train_router(Network(), sampler, start=table, **settings).table() == tuple(row * 6 for row in table)
    # One iteration moves each logit by the rate, whatever the size of its gradient; more would be the steps' of others.
    settings["rate"] = 0.5
    one = train_router(Network(), sampler, start=table, cost=100.0, **settings)
    still = train_router(Network(), sampler, start=table, **settings | {"rate": 1e-6})
    moved = torch.logit(one.scores[1:]) - torch.logit(still.scores[1:])
    torch.testing.assert_close(moved, torch.full_like(moved, -0.5), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="has 4 rows, not 5"):
        train_router(Network(), sampler, start=laconic.interval_table(4, 2), **settings)
    with pytest.raises(ValueError, match="3 columns, and there are 6 layers"):
        train_router(Network(), sampler, start=[[1, 1, 1]] * STEPS, **settings)


@pytest.mark.parametrize("order", [0, 1])
def test_the_table_is_replayed(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What static computes and keeps is what the router's own hard mixing does."""
    torch._dynamo.reset()
    training = _Training(Network(), STEPS, 0.5, order)
    training.sample(sampler, 0, on=0)
    table = torch.rand(STEPS, 6, generator=torch.Generator().manual_seed(1)) > 0.5
    table[0] = True
    training.logits = list(torch.where(table, 200.0, -200.0))
    expected = training.sample(sampler, 0, on=STEPS)
    monkeypatch.setattr(runner, "compile_graph", lambda graph, inputs, options: graph)
    torch._dynamo.reset()
    options = {"passes": [laconic.cache("static", table=table, order=order)]}
    fast = torch.compile(Network(), backend="laconic", options=options, fullgraph=True)
    with laconic.session(fast, steps=STEPS) as session:
        torch.testing.assert_close(sampler(fast, 0), expected)
    assert session.summary().computed == int(table.sum())
    with pytest.raises(ValueError, match="5 rows and the session 4"), laconic.session(fast, steps=4):
        sampler(fast, 0)


def test_mistakes_are_named() -> None:
    torch._dynamo.reset()
    with pytest.raises(laconic.UserError, match="5 times, not 7"):
        train_router(Network(), sampler, steps=7, iterations=1)
    with pytest.raises(Exception, match="no repeated blocks"):
        train_router(
            nn.Linear(16, 16).requires_grad_(False),
            lambda network, _: network(torch.ones(2, 16)),
            steps=1,
            iterations=1,
        )
