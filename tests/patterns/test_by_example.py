"""What is read only for its type or sizes is not an operand."""

from __future__ import annotations

import torch
from torch import Tensor

from laconic.patterns.by_example import without_examples
from tests.patterns.graphs import normal


def test_casts_and_shapes_by_example() -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.type_as(y), x[:1].expand_as(x), x.view_as(y)

    inputs = [torch.randn(2, 3), torch.zeros(3, 2, dtype=torch.float64)]
    graph = normal(function, *inputs).module
    assert without_examples(graph.graph) == 3
    graph.graph.lint()
    graph.recompile()
    (example,) = graph.graph.find_nodes(op="placeholder")[1:]
    assert not example.users
    torch.testing.assert_close(graph(*inputs), function(*inputs), rtol=0, atol=0)
