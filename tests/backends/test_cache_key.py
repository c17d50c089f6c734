"""Inductor's FX graph cache: a second process hits it, and a changed byte in our sources misses it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import json, sys, torch
import laconic
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)).eval()
passes = eval(sys.argv[1])
with torch.no_grad():
    fast = torch.compile(model, backend="laconic", options={"passes": passes})
    fast(torch.randn(4, 32))
counters = torch._dynamo.utils.counters["inductor"]
print(json.dumps([counters["fxgraph_cache_hit"], counters["fxgraph_cache_miss"],
                  sum(row.status == "applied" for row in laconic.report(fast).rewrites)]))
"""


def run(package_parent: Path, cache: Path, passes: str) -> list[int]:
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "PYTHONPATH": str(package_parent),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, passes], env=environment, capture_output=True, text=True, cwd=package_parent
    )
    assert done.returncode == 0, done.stderr[-2000:]
    values: list[int] = json.loads(done.stdout.strip().splitlines()[-1])
    return values


@pytest.mark.parametrize(
    ("passes", "applied", "changed"),
    [
        ("[]", 0, "backends/kernels/launch.py"),
        ("[laconic.quantize('int8', min_features=1, min_products=0)]", 2, "passes/ops/int8.py"),
    ],
)
def test_second_process_hits_and_a_changed_byte_misses(tmp_path: Path, passes: str, applied: int, changed: str) -> None:
    # A copy of the package, so that a source file can be changed.
    package = tmp_path / "laconic"
    for wing in ("patterns", "passes", "backends"):
        shutil.copytree(ROOT / wing, package / wing, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__init__.py", package)
    cache = tmp_path / "cache"
    assert run(tmp_path, cache, passes) == [0, 1, applied]
    assert run(tmp_path, cache, passes) == [1, 0, applied]
    source = package / changed
    source.write_bytes(source.read_bytes() + b"\n")
    assert run(tmp_path, cache, passes) == [0, 1, applied]
