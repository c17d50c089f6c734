"""A detector that fails, or asks for a size that is not known, costs the sites of its kind and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laconic.patterns import detect
from laconic.patterns.graph import NormalGraph
from laconic.patterns.sites import Sites
from tests.zoo.measure import capture


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


def graph(dynamic: bool) -> NormalGraph:
    (captured,), given_up = capture(Layer(), {"x": torch.randn(3, 5, 8)}, dynamic=dynamic)
    assert not given_up
    return captured.graph


def fails(graph: NormalGraph, sites: Sites) -> Any:
    raise RuntimeError("not today")


def asks(graph: NormalGraph, sites: Sites) -> Any:
    values = [node.meta["val"] for node in graph.placeholders]
    return [] if any(value.shape[0] == 7 for value in values if isinstance(value, Tensor)) else []


@pytest.mark.parametrize(("detector", "dynamic"), [(fails, False), (asks, True)])
def test_the_others_are_heard(monkeypatch: pytest.MonkeyPatch, detector: Any, dynamic: bool) -> None:
    made = graph(dynamic)
    wanted = sorted(site.kind for site in detect.detect(made).sites)
    sizes = made.fake_mode.shape_env
    guards = len(sizes.guards)
    monkeypatch.setattr(detect, "DETECTORS", [detector, *detect.DETECTORS])
    sites = detect.detect(made)
    assert sorted(site.kind for site in sites.sites) == wanted
    assert [reason.code for reason in sites.refusals] == ["detector-failed"]
    assert len(sizes.guards) == guards
