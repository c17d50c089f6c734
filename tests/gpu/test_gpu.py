"""The kernels on a GPU, bfloat16 included: ``make gpu``. Skipped where there is none."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_module(ROOT / "benchmarks" / "_checkout.py")
CHECKS = _module(Path(__file__).parent / "checks.py").CHECKS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CHECKS)
def test_kernel(name: str) -> None:
    torch.manual_seed(0)
    CHECKS[name]("cuda", False)


@pytest.mark.slow
def test_the_gpu_command_runs_here_with_small_sizes(tmp_path: Path) -> None:
    """The whole of ``benchmarks/gpu.py`` in Triton's interpreter, so that it cannot fail first on the borrowed GPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--rehearse", "--json", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert (tmp_path / "gpu.json").exists()
    assert "failed" not in done.stdout, done.stdout
