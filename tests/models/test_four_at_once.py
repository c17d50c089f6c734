"""The four approximate passes active in one compile through Inductor, cached across steps; and all of them off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import laconic
from tests.models.builders import BUILDERS
from tests.models.policy_rows import Architecture
from tests.models.support import relative
from tests.without_inductor import run_graphs_as_they_are

pytestmark = pytest.mark.slow

STEPS = 6
ACTIVE = [
    laconic.quantize("int8", min_features=1, min_products=0),
    laconic.sparse_attention("window", size=3),
    laconic.cache("taylor", level="layers", interval=2),
]
MERGE = laconic.merge_tokens("tome", r=4)
OFF = [
    laconic.quantize("int8", min_features=1 << 30),
    laconic.sparse_attention("window", size=10_000),
    laconic.cache("taylor", level="layers", interval=1),
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model(merge: laconic.Pass) -> Architecture:
    """A diffusers DiT whose first block merges tokens: attention over merged tokens has no window.

    The two blocks behind it are equal, and their layers are cached.
    """
    torch.manual_seed(0)
    architecture = Architecture.of(BUILDERS["dit"](3))
    first: nn.Module = architecture.model.transformer_blocks[0]
    # A class of its own, so that the decorator reaches one block.
    first.__class__ = merge(type("Merging", (type(first),), {}))
    return architecture


def cached(architecture: Architecture, passes: Any) -> tuple[Any, Tensor, int]:
    torch._dynamo.reset()
    fast = torch.compile(architecture.model, backend="laconic", options={"passes": passes}, fullgraph=True)
    with laconic.session(fast, steps=STEPS) as here:
        end = architecture.trajectory(fast, STEPS)
    return fast, end, here.summary().reused


def applied(fast: Any) -> set[str]:
    rows = [row for row in laconic.report(fast).rewrites if row.status == "applied" and row.fidelity == "approximate"]
    return {row.pass_name.split("(")[0].removeprefix("laconic.") for row in rows}


def test_all_four_active() -> None:
    architecture = model(MERGE)
    fast, end, reused = cached(architecture, ACTIVE)
    assert applied(fast) == {"quantize", "sparse_attention", "merge_tokens", "cache"}
    # Two attentions and two feed-forward layers, each reused in every second step but the last.
    assert reused == 4 * 2
    plain = architecture.trajectory(architecture.model, STEPS)
    assert 1e-5 < relative(end, plain) < 0.2
    # What Inductor made is the rewritten graph.
    with pytest.MonkeyPatch.context() as patch:
        run_graphs_as_they_are(patch)
        assert relative(end, cached(architecture, ACTIVE)[1]) < 1e-3


def test_all_four_at_their_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    run_graphs_as_they_are(monkeypatch)
    architecture = model(laconic.merge_tokens("tome", r=0))
    fast, end, reused = cached(architecture, OFF)
    assert applied(fast) == set() and reused == 0
    assert relative(end, architecture.trajectory(architecture.model, STEPS)) < 1e-6


def test_layers_are_cached_whatever_became_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in 8 bits and attention in a window are no sites any more, but branches of their blocks all the same."""
    run_graphs_as_they_are(monkeypatch)
    architecture = model(laconic.merge_tokens("tome", r=0))
    fast, _, reused = cached(architecture, ACTIVE)
    rows = [row for row in laconic.report(fast).rewrites if row.op == "reuse across steps"]
    assert len(rows) == 6 and reused == 6 * 2
    off, end, _ = cached(architecture, [*ACTIVE[:2], OFF[2]])
    assert len([row for row in laconic.report(off).rewrites if row.op == "reuse across steps"]) == 6
    assert relative(end, cached(architecture, ACTIVE[:2])[1]) < 1e-6
