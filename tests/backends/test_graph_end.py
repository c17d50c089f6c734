"""The report says where Dynamo ended a graph, in which layer, and why; and nothing where it did not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import laconic
from tests.zoo.rows import ROWS


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.asks = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x).relu()
        if self.asks and hidden.sum() > 0:
            hidden = hidden * 2
        return x + self.down(hidden)


def ends(model: nn.Module, *inputs: Tensor, **named: Tensor) -> list[str]:
    torch._dynamo.reset()
    with torch.no_grad():
        graphs = laconic.explain(model, *inputs, **named).to_dict()["graphs"]
    return [row["text"] for graph in graphs for row in graph["refusals"] if row["code"] == "graph-break"]


def test_a_layer_that_asks_for_a_value() -> None:
    model = nn.Sequential(Layer(), Layer())
    assert ends(model, torch.ones(2, 8)) == []
    model[1].asks = True
    (text,) = ends(model, torch.ones(2, 8))
    assert text.startswith("Dynamo ends the graph at test_graph_end.py:")
    assert " in up: " in text


def test_experts_that_are_asked_for_in_python() -> None:
    module, inputs = ROWS["switch"].build()
    assert any("Dynamic shape operator" in text for text in ends(module, **inputs))
