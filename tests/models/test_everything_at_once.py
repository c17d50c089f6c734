"""Shared blocks under every other pass at once, on models nobody here wrote: nothing but rounding may change."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import laconic
from laconic.passes import share_blocks
from tests.models.repeated import REPEATED
from tests.models.support import relative, tensors, with_batch
from tests.without_inductor import run_graphs_as_they_are, use_aot_autograd_only

pytestmark = pytest.mark.slow

EVERYTHING = [
    laconic.quantize("int8", min_features=1, min_products=0),
    laconic.merge_tokens("tome", r=4),
    laconic.sparse_attention("window", size=2),
    laconic.scan(),
]
# Tiny blocks are not worth their calls; here they are shared all the same.
SHARED = share_blocks(overhead=1e9)
ALONE = laconic.disable("share_blocks")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def compiled(model: Any, *passes: Any, dynamic: bool = False) -> Any:
    return torch.compile(model, backend="laconic", dynamic=dynamic, options={"passes": list(passes)})


def applied(fast: Any) -> set[str]:
    """The verbs of what was rewritten."""
    rows = [row for row in laconic.report(fast).rewrites if row.status == "applied"]
    return {row.pass_name.split("(")[0].removeprefix("laconic.") for row in rows}


def assert_same(got: Any, expected: Any, tolerance: float) -> None:
    for value, wanted in zip(tensors(got), tensors(expected), strict=True):
        assert relative(value, wanted) <= tolerance


_, MERGE, WINDOW, SCAN = EVERYTHING

# The layers of each model, the passes asked for, and the verbs that find something to do. Attention over merged tokens
# has no window any more, and a causal or recurrent model merges no tokens.
ROWS: dict[str, tuple[str, int, list[laconic.Pass], set[str]]] = {
    "dit-merged": ("dit", 4, EVERYTHING, {"quantize", "merge_tokens"}),
    "dit-window": ("dit", 4, [WINDOW, SCAN], {"sparse_attention"}),
    "jamba": ("jamba", 8, [WINDOW, SCAN], {"scan", "sparse_attention"}),
}


@torch.no_grad()
@pytest.mark.parametrize("row", ROWS)
def test_every_pass_in_one_compile(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = run_graphs_as_they_are(monkeypatch)
    name, layers, passes, verbs = ROWS[row]
    model, args, kwargs = REPEATED[name](layers)
    model.eval()
    whole = compiled(model, *passes, ALONE)
    expected = whole(*args, **kwargs)
    alone = len(graphs)
    fast = compiled(model, *passes, SHARED)
    assert_same(fast(*args, **kwargs), expected, 1e-6)
    assert applied(fast) >= {*verbs, "share_blocks"} and applied(whole) >= verbs
    run, made = next(graph.pieces for graph in laconic.report(fast).graphs if graph.pieces[0] > 1)
    assert made < run and len(graphs) - alone == made + len(laconic.report(fast).graphs) - 1
    # Weights changed after the compile, and a second instance, go through the same pieces.
    other = copy.deepcopy(model)
    for weight in other.parameters():
        weight.mul_(1.1)
    model.load_state_dict(other.state_dict())
    count = len(graphs)
    changed = whole(*args, **kwargs)
    assert_same(fast(*args, **kwargs), changed, 1e-6)
    assert any(relative(a, b) > 1e-3 for a, b in zip(tensors(changed), tensors(expected), strict=True))
    assert_same(compiled(other, *passes, SHARED)(*args, **kwargs), changed, 1e-6)
    assert len(graphs) == count


@torch.no_grad()
def test_any_batch_through_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    run_graphs_as_they_are(monkeypatch)
    model, args, kwargs = REPEATED["vit"](4)
    model.eval()
    passes = [MERGE, WINDOW, SCAN]
    fast, whole = compiled(model, *passes, SHARED, dynamic=True), compiled(model, *passes, ALONE, dynamic=True)
    for batch in (2, 3, 5):
        these = with_batch(args, batch)
        assert_same(fast(*these, **kwargs), whole(*these, **kwargs), 1e-6)
    assert "share_blocks" in applied(fast) and len(laconic.report(fast).graphs) == 1


@pytest.mark.parametrize(("name", "layers"), [("dit", 4), ("jamba", 8)])
def test_training_through_shared_blocks(name: str, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use_aot_autograd_only(monkeypatch)
    model, args, kwargs = REPEATED[name](layers)
    passes = [laconic.sparse_attention("window", size=10_000), laconic.scan(), SHARED]

    def gradients(run: Any) -> list[Tensor]:
        model.zero_grad()
        outputs = [value for value in tensors(run(*args, **kwargs)) if value.requires_grad]
        torch.stack([value.square().mean() for value in outputs]).sum().backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    model.eval()
    expected = gradients(model)
    fast = compiled(model, *passes)
    got = gradients(fast)
    largest = max(float(value.norm()) for value in expected)
    for mine, wanted in zip(got, expected, strict=True):
        assert float((mine - wanted).norm()) <= 1e-4 * float(wanted.norm()) + 1e-6 * largest
    assert "share_blocks" in applied(fast)


@torch.no_grad()
def test_through_inductor() -> None:
    """Merged tokens and int8 in shared pieces."""
    model, args, kwargs = REPEATED["dit"](3)
    model.eval()
    fast, whole = compiled(model, *EVERYTHING, SHARED), compiled(model, *EVERYTHING, ALONE)
    assert_same(fast(*args, **kwargs), whole(*args, **kwargs), 1e-4)
    assert applied(fast) >= {"quantize", "merge_tokens", "share_blocks"}
