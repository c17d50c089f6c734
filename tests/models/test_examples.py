"""The examples about caching run, and do what they say."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from laconic.backends import runner

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))


@pytest.fixture(autouse=True)
def eager_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces run as they are: Inductor has its own tests."""
    torch._dynamo.reset()

    def compile_graph(module: torch.fx.GraphModule, inputs: Any, options: Any) -> Callable[..., Any]:
        return module

    monkeypatch.setattr(runner, "compile_graph", compile_graph)


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


def script(name: str, *arguments: str) -> str:
    """What an example prints when it is run by itself, through Inductor."""
    # The torchvision beside this torch may come without its operators, which diffusers would trip over.
    code = (
        "import runpy, sys; from tests.models.timm_support import declare_torchvision_operators as declare; declare();"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=EXAMPLES.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_scripts_run() -> None:
    printed = script("custom_policy.py", "--steps", "12")
    assert float(re.findall(r"relative error ([\d.]+)", printed)[0]) < 0.1 and "#." in printed
    printed = script("diffusers_pipeline.py", "--steps", "6", "--blocks", "1")
    for guidance in ("with", "without"):
        difference = re.findall(rf"{guidance} guidance: largest difference of a pixel ([\d.]+)", printed)
        assert len(difference) == 1 and float(difference[0]) < 0.05
    # The first step, every second and the last are computed, by each of the streams.
    assert printed.count("##.#.#") == 0 and len(re.findall(r"  #\.#\.##", printed)) == 3, printed
