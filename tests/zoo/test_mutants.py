"""The mutation harness can see what it is for: a detector that does not look, and a site that is not proven."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import torch
from torch import Tensor

from laconic.patterns import proof
from laconic.patterns.graph import NormalGraph
from laconic.patterns.sites import Attention, Sites
from tests.patterns.graphs import attentions, normal
from tests.zoo.mutants import judge, mutants


def attend(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = (q @ k.transpose(-2, -1) * 0.5).masked_fill(~keep, float("-inf"))
    return scores.softmax(-1) @ v


@pytest.fixture(scope="module")
def graph() -> NormalGraph:
    return normal(attend, *(torch.randn(3, 3, 3, 3) for _ in range(3)), torch.ones(3, 3, dtype=torch.bool))


def test_every_part_is_changed(graph: NormalGraph) -> None:
    texts = [mutant.edit.text for mutant in mutants(graph)]
    for part in ("matmul", "transpose", "mul", "softmax", "masked_fill", "bitwise_not"):
        assert any(text.startswith(part) for text in texts), part
    assert {"softmax: dim -1 -> 2", "mul -> div", "mul: other 0.5 -> 0.75", "transpose: dim0 -2 -> 0"} <= set(texts)
    assert len(texts) == len(set(texts)) > 30


def test_an_honest_detector_passes(graph: NormalGraph) -> None:
    tally = judge(graph, attentions)
    assert not tally.wrong
    assert tally.changed > 25 and tally.accepted > 10


def test_a_detector_that_reads_nothing_is_caught(graph: NormalGraph) -> None:
    """It reports the original's site on every mutant, and its proof is switched off."""
    (site,) = attentions(graph).of(Attention)

    def blind(mutant: NormalGraph) -> Sites:
        nodes = {node.name: node for node in mutant.module.graph.nodes}
        if any(node.name not in nodes for node in (*site.inputs, *site.outputs)):
            return Sites()
        return Sites([_moved(site, nodes)])

    with mock.patch.object(proof, "prove", return_value=None):
        tally = judge(graph, blind)
    assert len(tally.wrong) >= tally.accepted > 10
    # With the proof on, the same detector can say nothing wrong.
    assert not judge(graph, blind).wrong


def _moved(site: Attention, nodes: dict[str, torch.fx.Node]) -> Attention:
    """``site`` as it would be written for another graph with nodes of the same names."""

    def there(value: object) -> object:
        if isinstance(value, torch.fx.Node):
            return nodes[value.name]
        if isinstance(value, tuple):
            return tuple(there(item) for item in value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.replace(
                value, **{f.name: there(getattr(value, f.name)) for f in dataclasses.fields(value)}
            )
        return value

    fields = {f.name: there(getattr(site, f.name)) for f in dataclasses.fields(site)}
    fields["interior"] = frozenset(nodes[node.name] for node in site.interior if node.name in nodes)
    fields["axes"] = {nodes[node.name]: axes for node, axes in site.axes.items() if node.name in nodes}
    return Attention(**fields)  # type: ignore[arg-type]
