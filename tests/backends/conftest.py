"""What tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from laconic.backends import runner


@pytest.fixture
def node_by_node(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rewritten graphs and pieces run node by node: nobody waits for a compiler."""
    torch._dynamo.reset()
    monkeypatch.setattr(runner, "compile_graph", lambda module, inputs, options: module)
    yield
    torch._dynamo.reset()
