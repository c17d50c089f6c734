"""On models nobody here wrote: as many attention sites as eager makes attention calls, and every site proven."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from laconic.patterns import proof, spec
from laconic.patterns.detect import detect
from laconic.patterns.graph import NormalGraph
from laconic.patterns.normalize import normalize
from laconic.patterns.sites import Attention
from tests.models.builders import BUILDERS, SPELLINGS
from tests.patterns.graphs import attentions

ALL = {**BUILDERS, **SPELLINGS}


class Calls(TorchFunctionMode):
    """Counts what eager calls: fused attention, and softmax written out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("scaled_dot_product_attention", "softmax"):
            # F.softmax calls Tensor.softmax; only the outer one is a call of the model.
            self.count += 1
            with torch._C.DisableTorchFunction():
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def normal_forms(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], **options: Any) -> list[NormalGraph]:
    found: list[NormalGraph] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graph = normalize(gm, inputs)
        assert isinstance(graph, NormalGraph), graph
        found.append(graph)
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(module, backend=backend, **options)(*args, **kwargs)
    return found


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_attention_is_found_and_proven(name: str) -> None:
    module, args, kwargs = ALL[name]()
    with torch.no_grad(), Calls() as calls:
        module(*args, **kwargs)
    attentions: list[Attention] = []
    paths = {path for path, _ in module.named_modules()}
    for graph in normal_forms(module, args, kwargs):
        assert spec.check(graph) == []
        sites = detect(graph)
        for site in sites:
            reason = proof.prove(site, graph)
            assert reason is None, (site.id, str(reason))
        found = sites.of(Attention)
        assert all(site.module in paths and ":" in site.source for site in found)
        attentions += found
    assert len(attentions) == calls.count
    assert (name == "convnext") == (calls.count == 0)


@pytest.mark.parametrize(
    ("one", "other"), [("bert", "bert-eager"), ("gpt2", "gpt2-eager"), ("llama-sdpa", "llama-eager")]
)
def test_fused_and_written_out_mean_the_same(one: str, other: str) -> None:
    def meanings(name: str) -> list[Any]:
        (graph,) = normal_forms(*ALL[name]())
        return [
            (site.module, site.scale, site.groups, [(b.kind, b.structure) for b in site.biases], site.flops)
            for site in attentions(graph).of(Attention)
        ]

    assert meanings(one) == meanings(other)


def test_work_grows_with_the_model() -> None:
    """Four times the layers are about four times as many calls; a clock would measure the machine."""
    calls = {}
    for layers in (3, 12):
        (graph,) = normal_forms(*BUILDERS["llama-eager"](layers))
        proof._PROVEN.clear()
        counted = itertools.count()
        sys.setprofile(lambda frame, event, argument, counted=counted: next(counted))
        try:
            sites = detect(graph)
            proven = [proof.prove(site, graph) is None for site in sites]
        finally:
            sys.setprofile(None)
        calls[layers] = next(counted)
        assert all(proven) and len(sites.of(Attention)) == layers
    assert calls[12] < 6 * calls[3]


def test_the_form_is_checked() -> None:
    (graph,) = normal_forms(*BUILDERS["vit"]())
    softened = next(node for node in graph.module.graph.nodes if node.op == "call_function" and node.users)
    kept = softened.meta.pop("val")
    assert [reason.nodes for reason in spec.check(graph)] == [(softened.name,)]
    softened.meta["val"] = torch.zeros(kept.shape)
    assert "real" in spec.check(graph)[0].text
    softened.meta["val"] = kept
    softened.target = torch.cat
    assert spec.check(graph) and spec.check(graph)[0].code == "not-normalised"
