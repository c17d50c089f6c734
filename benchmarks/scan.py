"""scan() and selective_scan() on transformers' Mamba: laconic beside torch.compile, run time and cold compile.

    python benchmarks/scan.py [--spelling loop associative] [--length 64 256] [--no-baseline] [--json PATH]

4 layers, hidden 256, state 16, batch 1. The promise: loop spelling at 64 steps, cold compile >= 5x and run >= 3x better
than torch.compile; associative spelling at 256 steps, run >= 3x and cold compile >= 2x better; loop at 256 steps
compiles in at most 1.5x of Dynamo's own tracing time plus 30 s. Without arguments those three are measured.

Cold compiles run in fresh processes with fresh cache folders, one after the other; wall and CPU seconds of the first
call are printed beside Dynamo's trace alone. Run times are interleaved in one process, which finds torch.compile's code
in the cache folder that its cold compile filled. torch.compile of the loop at 256 steps takes too long to wait for: its
row is left out there (or anywhere with ``--no-baseline``).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timing
import torch

from tests.models.timm_support import declare_torchvision_operators

PROMISED = (("loop", 64), ("associative", 256), ("loop", 256))
LONGEST_LOOP = 128
"""Steps of the loop spelling up to which torch.compile alone is measured."""


def build(spelling: str, length: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """The model and its tokens; equal in every process."""
    # transformers imports torchvision, whose wheel may come without its operators.
    declare_torchvision_operators()
    from transformers import MambaConfig, MambaModel

    torch.manual_seed(0)
    config = MambaConfig(
        num_hidden_layers=4,
        hidden_size=256,
        state_size=16,
        vocab_size=1000,
        use_cache=False,
        use_associative_scan=spelling == "associative",
    )
    return MambaModel(config).eval(), torch.randint(0, 1000, (1, length))


def cold(spelling: str, length: int, backend: str) -> dict[str, float]:
    """Wall and CPU seconds of the first call in this process."""
    model, tokens = build(spelling, length)
    compiled = torch.compile(model, backend=backend)
    used = sum(_cpu())
    begin = time.perf_counter()
    with torch.no_grad():
        compiled(tokens)
    return {"wall": time.perf_counter() - begin, "cpu": sum(_cpu()) - used}


def _cpu() -> list[float]:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return [item.ru_utime + item.ru_stime for item in usage]


def in_fresh_process(spelling: str, length: int, backend: str, folder: str) -> dict[str, float]:
    """:func:`cold` with nothing cached but what is in ``folder``."""
    command = [sys.executable, __file__, "--cold", backend, "--spelling", spelling, "--length", str(length)]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(spelling: str, length: int, baseline: bool, rounds: int) -> dict[str, Any]:
    """Cold compiles, then run times, of one case."""
    figures: dict[str, Any] = {}
    backends = ["eager", "laconic", *(["inductor"] if baseline else [])]
    with tempfile.TemporaryDirectory() as root:
        folders = {backend: str(Path(root, backend)) for backend in backends}
        print(f"{spelling}, {length} steps: cold compile  (load {os.getloadavg()[0]:.2f})")
        for backend in backends:
            figures[backend] = in_fresh_process(spelling, length, backend, folders[backend])
            name = "Dynamo's trace alone" if backend == "eager" else backend
            wall, cpu = figures[backend]["wall"], figures[backend]["cpu"]
            print(f"  {name:<32}{wall:10.1f} s wall {cpu:10.1f} s CPU", flush=True)
        trace, own = figures["eager"], figures["laconic"]
        figures["bound"] = 1.5 * trace["wall"] + 30
        print(f"  laconic is {own['wall']:.1f} s of the {figures['bound']:.1f} s that 1.5x the trace plus 30 s allows")
        if baseline:
            figures["cold_ratio"] = {key: figures["inductor"][key] / own[key] for key in ("wall", "cpu")}
            ratio = figures["cold_ratio"]
            print(f"  torch.compile / laconic: {ratio['wall']:.2f}x wall, {ratio['cpu']:.2f}x CPU")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folders[backends[-1]]
        torch._dynamo.reset()
        model, tokens = build(spelling, length)
        variants = {"eager": model}
        if baseline:
            variants["inductor"] = torch.compile(model)
        variants["laconic"] = torch.compile(model, backend="laconic")
        with torch.no_grad():
            exact = model(tokens).last_hidden_state
            result = variants["laconic"](tokens).last_hidden_state
        figures["error"] = float(torch.linalg.vector_norm(result - exact) / torch.linalg.vector_norm(exact))
        calls = {name: (lambda run=run: run(tokens)) for name, run in variants.items()}
        base = "inductor" if baseline else "eager"
        runs = timing.interleaved(calls, baseline=base, rounds=rounds)
        timing.show(
            f"{spelling}, {length} steps: run, relative L2 to eager {figures['error']:.1e}", runs, baseline=base
        )
    return {**figures, **{f"run_{name}": value.__dict__ for name, value in runs.items()}}


def main() -> None:
    """Print the figures of each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spelling", nargs="*", choices=("loop", "associative"))
    parser.add_argument("--length", nargs="*", type=int)
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json")
    parser.add_argument("--cold", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cold:
        print(json.dumps(cold(options.spelling[0], options.length[0], options.cold)))
        return
    cases = PROMISED
    if options.spelling or options.length:
        lengths = options.length or [64, 256]
        cases = tuple((name, length) for name in options.spelling or ("loop", "associative") for length in lengths)
    figures = {}
    for spelling, length in cases:
        baseline = not options.no_baseline and not (spelling == "loop" and length > LONGEST_LOOP)
        figures[f"{spelling}-{length}"] = measure(spelling, length, baseline, options.rounds)
    timing.save(options.json, "scan", figures)


if __name__ == "__main__":
    main()
