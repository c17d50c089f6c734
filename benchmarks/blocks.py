"""Regional compilation: cold compile time and run time of a deep transformer, beside Inductor's whole-graph compile.

    python benchmarks/blocks.py [--depths 2 8 24 32] [--threads 1] [--colds 7] [--training] [--marked]

Every cold compile is a process of its own with an empty cache folder, timed from the first call to its result, after a
small unrelated model was compiled (imports, compiler probes); the median of ``--colds`` such processes, in turns. No
module is marked in any way; ``--marked`` adds what a user reaches who marks the layer by hand:
``nested_compile_region``, and one compiled layer called in a loop. Then, in one process, run times interleaved: laconic
against Inductor, and pieces whose cached regions never reuse against the unsplit graph.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import timing
import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 6


class Layer(nn.Module):
    """A pre-norm transformer layer, [batch, tokens, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        heads = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """``depth`` layers between two linear ones; the result has the input's shape, [batch, tokens, 16]."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(16, width), nn.Linear(width, 16)
        self.layers = nn.ModuleList(Layer(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def once(backend: str, depth: int, options: argparse.Namespace) -> dict[str, float]:
    """Cold compile of one model in this process: seconds on the clock, CPU seconds with all child processes."""
    import laconic

    small = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    torch.compile(small)(torch.randn(2, 4)).sum().backward()
    torch._dynamo.reset()
    model, x = Transformer(depth, options.width), torch.randn(1, options.tokens, 16)
    with torch.set_grad_enabled(options.training):
        expected = model(x)
        compiled = _compiled(model, backend)
        used, begin = _cpu_seconds(), time.perf_counter()
        result = compiled(x)
        if options.training:
            result.sum().backward()
        figures = {"seconds": time.perf_counter() - begin, "cpu": _cpu_seconds() - used}
        figures["error"] = float((result - expected).norm() / expected.norm())
    if backend == "laconic":
        (graph,) = laconic.report(compiled).graphs
        figures["run"], figures["compiled"] = graph.pieces
        figures["own"] = sum(graph.seconds.values())
    return figures


def median(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """The figures of several runs in one: the median of each, and the seconds of all."""
    middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return middle | {"all": sorted(round(run["seconds"], 3) for run in runs)}


MARKED = ("nested_compile_region", "one layer by hand")


def _compiled(model: nn.Module, backend: str) -> Any:
    if backend == MARKED[0]:
        Layer.forward = torch.compiler.nested_compile_region(Layer.forward)
        return torch.compile(model)
    if backend == MARKED[1]:
        layer = torch.compile(Layer.forward)
        Layer.__call__ = lambda self, x: layer(self, x)
        return model
    return torch.compile(model, backend=backend)


def _cpu_seconds() -> float:
    rows = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(row.ru_utime + row.ru_stime for row in rows)


def cold(backend: str, depth: int, options: argparse.Namespace) -> dict[str, float]:
    """:func:`once` in a fresh process with a fresh cache folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--once", backend, "--depths", str(depth)]
        command += ["--width", str(options.width), "--tokens", str(options.tokens), "--threads", str(options.threads)]
        command += ["--training"] if options.training else []
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_times(depth: int, options: argparse.Namespace) -> dict[str, timing.Timing]:
    """Run time per call beside Inductor's whole graph, interleaved."""
    import laconic

    model, x = Transformer(depth, options.width), torch.randn(1, options.tokens, 16)
    unsplit = laconic.disable("share_blocks")
    backends: dict[str, Any] = {
        "inductor, whole graph": "inductor",
        "laconic, one block shared": laconic.Backend(),
        "laconic, whole graph": laconic.Backend([unsplit]),
        "cached network, no reuse": laconic.Backend([unsplit, laconic.cache("easycache", threshold=0)]),
        "cached blocks, no reuse": laconic.Backend([laconic.cache("first-block", threshold=0)]),
    }
    calls: dict[str, Callable[[], Any]] = {}
    for name, backend in backends.items():
        torch._dynamo.reset_code_caches()
        compiled = torch.compile(_copy(model), backend=backend)
        calls[name] = lambda compiled=compiled: compiled(x)
        with torch.no_grad():
            calls[name]()
    return timing.interleaved(calls, baseline="inductor, whole graph", rounds=options.rounds)


def _copy(model: nn.Module) -> nn.Module:
    """Another module with the same weights, under a class of its own so that compiled code is not shared."""
    kind = type("Copy", (Transformer,), {})
    copy = kind.__new__(kind)
    copy.__dict__ = model.__dict__
    return copy


def main() -> None:
    """Print cold compile times by depth, then run times of the deepest model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", nargs="*", type=int, default=[2, 8, 24, 32])
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--run-depth", type=int, default=24, help="0: compile times only")
    parser.add_argument("--colds", type=int, default=7, help="cold compiles of which the median is taken")
    parser.add_argument("--training", action="store_true", help="compile forward and backward")
    parser.add_argument("--marked", action="store_true", help="beside what a user reaches who marks the layer")
    parser.add_argument("--once", help=argparse.SUPPRESS)
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.once:
        print(json.dumps(once(options.once, options.depths[0], options)))
        return
    figures: dict[str, Any] = {}
    title = "forward and backward" if options.training else "forward"
    print(f"cold compile, {title}, width {options.width}, {options.tokens} tokens  (load {os.getloadavg()[0]:.2f})")
    print(f"  {'layers':>6}{'inductor s':>12}{'laconic s':>11}{'faster':>8}{'by CPU s':>10}   pieces    error")
    for depth in options.depths:
        pairs = [[cold(backend, depth, options) for backend in ("inductor", "laconic")] for _ in range(options.colds)]
        theirs, ours = (median(runs) for runs in zip(*pairs, strict=True))
        figures[f"{depth} layers"] = {"inductor": theirs, "laconic": ours}
        faster, by_cpu = (theirs[key] / ours[key] for key in ("seconds", "cpu"))
        pieces = f"{ours['run']:.0f} run, {ours['compiled']:.0f} compiled"
        head = f"  {depth:>6}{theirs['seconds']:>12.2f}{ours['seconds']:>11.2f}{faster:>7.1f}x{by_cpu:>9.1f}x"
        print(f"{head}   {pieces}   {ours['error']:.1e}", flush=True)
        for way in MARKED if options.marked else ():
            marked = figures[f"{depth} layers"][way] = cold(way, depth, options)
            print(f"  {'':>6}{marked['seconds']:>23.2f}   {way}", flush=True)
    if options.run_depth:
        timings = run_times(options.run_depth, options)
        timing.show(f"run time, {options.run_depth} layers", timings, baseline="inductor, whole graph")
        figures |= timings
    timing.save(options.json, "blocks", figures)


if __name__ == "__main__":
    main()
