"""On models nobody here wrote: as many feed-forward sites as layers that eager execution runs, each one proven."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.patterns import proof
from laconic.patterns.detect import detect
from laconic.patterns.sites import FeedForward
from tests.models.builders import BUILDERS
from tests.patterns.test_real_models import normal_forms
from tests.zoo.eager_feedforward import counting


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_every_feedforward_is_found_and_proven(name: str) -> None:
    module, args, kwargs = BUILDERS[name]()
    with counting(module) as calls:
        module(*args, **kwargs)
    found: list[FeedForward] = []
    paths = {path for path, _ in module.named_modules()}
    for graph in normal_forms(module, args, kwargs):
        for site in detect(graph).of(FeedForward):
            assert proof.prove(site, graph) is None, site.id
            assert site.module in paths and ":" in site.source
            found.append(site)
    assert len(found) == calls.count > 0


class Counted(nn.Module):
    """What is a feed-forward layer and what is none, for the counter itself."""

    def __init__(self, forward: Any, *widths: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleList(nn.Linear(*pair) for pair in zip(widths, widths[1:], strict=False))])
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x, *self.blocks[0])


@pytest.mark.parametrize(
    ("count", "body", "widths"),
    [
        pytest.param(1, lambda x, up, down: x + down(F.gelu(up(x))), (4, 9, 4), id="plain"),
        pytest.param(1, lambda x, up, down: x + down(up(x) * torch.sigmoid(up(x))), (4, 9, 4), id="by hand"),
        pytest.param(0, lambda x, up, down: x + down(up(x)), (4, 9, 4), id="no activation"),
        pytest.param(0, lambda x, up, down: down(F.gelu(up(x))), (4, 9, 5), id="another width"),
        pytest.param(0, lambda x, up, down: x + down(F.layer_norm(F.gelu(up(x)), (9,))), (4, 9, 4), id="norm between"),
        pytest.param(0, lambda x, up, down: x + down(F.gelu(up(x)) + x[..., :1]), (4, 9, 4), id="sum between"),
        pytest.param(0, lambda x, a, b, c: x + c(F.relu(b(F.relu(a(x))))), (4, 4, 4, 4), id="three layers"),
    ],
)
def test_the_counter_counts(count: int, body: Any, widths: tuple[int, ...]) -> None:
    module = Counted(body, *widths)
    with counting(module) as calls:
        module(torch.randn(2, 4))
    assert calls.count == count
