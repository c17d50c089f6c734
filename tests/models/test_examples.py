"""The examples about caching run, and do what they say."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from laconic.backends import entry, runner

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))


@pytest.fixture(autouse=True)
def eager_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces run as they are: Inductor has its own tests."""
    torch._dynamo.reset()

    def compile_graph(module: torch.fx.GraphModule, inputs: Any, options: Any) -> Callable[..., Any]:
        return module

    monkeypatch.setattr(runner, "compile_graph", compile_graph)
    monkeypatch.setattr(entry, "compile_graph", compile_graph)


def test_a_policy_of_ones_own() -> None:
    error, summary = importlib.import_module("custom_policy").main(12)
    assert summary.reused > 0 and 0 < error < 0.1


def test_a_diffusers_pipeline_with_and_without_guidance() -> None:
    example = importlib.import_module("diffusers_pipeline")
    rows = example.run("taylor", {"interval": 2}, steps=6)
    assert set(rows) == {"with guidance", "without guidance"}
    for name, row in rows.items():
        calls = 6 * (2 if name == "with guidance" else 1)
        assert row["summary"].reused + row["summary"].computed == calls
        assert row["summary"].reused == calls // 3, str(row["summary"])
        assert 0 < row["difference"] < 0.05
