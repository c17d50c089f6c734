"""Ranks with different data decide alike, as collectives inside a model need; without a group each decides alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

RANK = """
import json, sys
sys.path[:0] = [{root!r}, {benchmarks!r}]
import _checkout
import torch, laconic
from torch import distributed
from laconic.backends import runner

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
runner.compile_graph = lambda module, inputs, options: module
torch.manual_seed(0)
layer = torch.nn.Linear(8, 8).requires_grad_(False)

def network(x, t):
    return torch.tanh(layer(x)) * (1 + t) - x

passes = [laconic.cache("easycache", threshold=0.1, warmup=3)]
fast = torch.compile(network, backend="laconic", options=dict(passes=passes))
found = []
for group in (None, False):
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(rank)) * (1 + 5 * rank)
    with torch.no_grad(), laconic.session(fast, steps=30, group=group) as here:
        for step in range(30):
            x = x + fast(x, torch.tensor(step / 30)) / (30 - 12 * rank)
    found.append([call.reused for call in here.summary().calls])
open(out, "w").write(json.dumps(found))
distributed.destroy_process_group()
"""


def test_two_ranks_with_different_data_make_the_same_decisions(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(root=str(ROOT), benchmarks=str(ROOT / "benchmarks")))
    outs = [tmp_path / f"{rank}.json" for rank in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "store"), str(outs[rank])],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=240)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    (together, alone), (other, other_alone) = (json.loads(out.read_text()) for out in outs)
    assert together == other and any(together)
    assert alone != other_alone
    # Reused together only where each would have.
    assert sum(together) <= min(sum(alone), sum(other_alone)) + 2
