"""The Triton kernels on a GPU: first against their plain-torch meaning, then timed beside what torch offers.

    python benchmarks/gpu.py                        # needs torch >= 2.11, its Triton and a CUDA device; no network
    TRITON_INTERPRET=1 python benchmarks/gpu.py --rehearse   # every line of it on CPU with small sizes; no timings

Writes ``benchmarks/results/gpu-<device>-<date>.json``. Timings are medians of ``triton.testing.do_bench`` (L2 flushed
between runs, device time with the launch). A peer that cannot run here is listed with its error.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _checkout  # makes the checkout importable as laconic
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(_checkout.ROOT / "tests" / "gpu"))

Runs = dict[str, Callable[[], Any]]


class Bench:
    """Collects rows: an operation at a size, several ways, each in milliseconds or with the error that stopped it."""

    def __init__(self, device: str, rehearse: bool) -> None:
        self.device, self.rehearse = device, rehearse
        self.rows: list[dict[str, Any]] = []

    def randn(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, device=self.device).to(dtype)

    def seconds(self, run: Callable[[], Any]) -> float:
        run()
        if self.rehearse:
            return math.nan
        import triton

        return float(triton.testing.do_bench(run, warmup=50, rep=200, return_mode="median")) / 1e3

    def measure(self, name: str, case: str, runs: Runs, *, operations: float = 0, bytes_moved: float = 0) -> None:
        """Time every variant; the first is ours. ``operations`` and ``bytes_moved`` are the least the task needs."""
        print(f"\n{name}  {case}")
        first = math.nan
        for variant, run in runs.items():
            torch._dynamo.reset()
            row: dict[str, Any] = {"operation": name, "case": case, "variant": variant}
            try:
                with torch.no_grad():
                    taken = self.seconds(run)
            except Exception as error:
                row["error"] = (
                    f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"
                )
                print(f"  {variant:<34} not available: {row['error'][:90]}")
                self.rows.append(row)
                continue
            first = taken if variant == next(iter(runs)) else first
            row |= {"ms": taken * 1e3, "over_ours": taken / first}
            text = f"  {variant:<34}{taken * 1e3:9.4f} ms  {taken / first:6.2f} of ours"
            if operations:
                row["tera_operations_per_second"] = operations / taken / 1e12
                text += f"  {row['tera_operations_per_second']:7.1f} T/s"
            if bytes_moved:
                row["gigabytes_per_second"] = bytes_moved / taken / 1e9
                text += f"  {row['gigabytes_per_second']:7.0f} GB/s"
            print(text, flush=True)
            self.rows.append(row)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """What Inductor makes of plain torch, for exactly these shapes."""
    return torch.compile(function, dynamic=False)


def int8_linear(bench: Bench) -> None:
    from laconic.passes.ops.int8 import quantize_rows

    triton_ops = torch.ops.laconic_triton
    shapes = [(32, 64, 48)] if bench.rehearse else [
        (16, 4096, 4096), (256, 768, 3072), (1024, 768, 3072), (4096, 3072, 3072), (16384, 3072, 12288)
    ]  # fmt: skip
    for rows, depth, columns in shapes:
        x, weight, bias = bench.randn(rows, depth), bench.randn(columns, depth), bench.randn(columns)
        values, scale = quantize_rows.body(x)
        packed, weight_scale = quantize_rows.body(weight)
        weight_scale = weight_scale.squeeze(-1)

        def product(values=values, scale=scale, packed=packed, weight_scale=weight_scale, bias=bias) -> Tensor:
            out = torch._int_mm(values, packed.t()).float()
            return (out * scale * weight_scale + bias.float()).to(torch.bfloat16)

        def float8(x=x, weight=weight, bias=bias) -> Callable[[], Tensor]:
            left, right = x.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn).t()
            ones = torch.ones(x.shape[0], 1, device=x.device), torch.ones(1, weight.shape[0], device=x.device)
            return lambda: torch._scaled_mm(
                left, right, *ones, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
            )

        runs: Runs = {
            "triton int8_linear": functools.partial(
                triton_ops.int8_linear, values, scale, packed, weight_scale, bias, torch.bfloat16
            ),
            "torch._int_mm, eager scales": product,
            "torch._int_mm, Inductor scales": compiled(product),
            "bf16 F.linear (cuBLASLt)": lambda x=x, weight=weight, bias=bias: F.linear(x, weight, bias),
            "fp8 torch._scaled_mm, by row": _lazily(float8),
            "triton quantize_rows + int8_linear": lambda x=x, packed=packed, weight_scale=weight_scale, bias=bias: (
                triton_ops.int8_linear(*triton_ops.quantize_rows(x), packed, weight_scale, bias, torch.bfloat16)
            ),
        }
        bench.measure("int8_linear", f"{rows} x {depth} -> {columns}", runs, operations=2 * rows * depth * columns)


def _lazily(make: Callable[[], Callable[[], Any]]) -> Callable[[], Any]:
    """Build a peer's operands at its first call, so that a machine without it fails there and not before."""
    made: list[Callable[[], Any]] = []

    def run() -> Any:
        if not made:
            made.append(make())
        return made[0]()

    return run


def quantize_rows(bench: Bench) -> None:
    from laconic.passes.ops.int8 import quantize_rows as operator

    for rows, columns in [(8, 64)] if bench.rehearse else [(1024, 768), (4096, 3072), (16384, 12288)]:
        x = bench.randn(rows, columns)

        def normed(x: Tensor) -> Tensor:
            return F.layer_norm(x, x.shape[-1:])

        fused = compiled(lambda x: operator.body(normed(x)))
        opaque = compiled(lambda x: torch.ops.laconic_triton.quantize_rows(normed(x)))
        runs: Runs = {
            "triton quantize_rows": functools.partial(torch.ops.laconic_triton.quantize_rows, x),
            "Inductor": functools.partial(compiled(operator.body), x),
            "layer norm, then triton": functools.partial(opaque, x),
            "layer norm and rounding, Inductor": functools.partial(fused, x),
        }
        bench.measure("quantize_rows", f"{rows} x {columns} bf16", runs, bytes_moved=3 * rows * columns)


def linear_recurrence(bench: Bench) -> None:
    from laconic.backends.recurrence_cpu import recurrence_by_doubling

    shapes = [(2, 20, 8)] if bench.rehearse else [(8, 2048, 2048), (1, 4096, 1024), (1, 16384, 64)]
    for shape in shapes:
        decay, input = torch.rand(shape, device=bench.device).bfloat16(), bench.randn(*shape)
        runs: Runs = {
            "triton": functools.partial(torch.ops.laconic_triton.linear_recurrence, decay, input, None, 1, False),
            "Inductor, log2(L) rounds": functools.partial(
                compiled(lambda a, b: recurrence_by_doubling(a, b, None, 1, False)), decay, input
            ),
            "copy of as many bytes": lambda decay=decay, input=input: torch.add(decay, input),
        }
        bench.measure("linear_recurrence", f"{shape} bf16", runs, bytes_moved=3 * input.numel() * 2)


def selective_scan(bench: Bench) -> None:
    from laconic.backends.recurrence_cpu import recurrence_by_doubling

    def doubled(delta: Tensor, rate: Tensor, input: Tensor, expand: Tensor, read: Tensor) -> Tensor:
        decay, added = torch.exp(delta[..., None] * rate), input[..., None] * expand[:, :, None]
        return (recurrence_by_doubling(decay, added, None, 1, False) * read[:, :, None]).sum(-1)

    sizes = [(1, 12, 4, 2)] if bench.rehearse else [(1, 1024, 1536, 16), (8, 2048, 1536, 16), (1, 256, 512, 16)]
    for batch, length, channels, states in sizes:
        delta, rate = torch.rand(batch, length, channels, device=bench.device), -bench.randn(channels, states).abs()
        args = (
            delta.bfloat16(), rate, bench.randn(batch, length, channels),
            bench.randn(batch, length, states), bench.randn(batch, length, states),
        )  # fmt: skip
        runs: Runs = {
            "triton": functools.partial(torch.ops.laconic_triton.selective_scan, *args),
            "Inductor, log2(L) rounds": functools.partial(compiled(doubled), *args),
        }
        case = f"[{batch}, {length}, {channels}] with {states} states, bf16"
        bench.measure("selective_scan", case, runs, bytes_moved=3 * delta.numel() * 2)


def windowed_attention(bench: Bench) -> None:
    sizes = [(1, 2, 50, 16, 7)] if bench.rehearse else [
        (1, 16, 8192, 64, 512), (1, 16, 8192, 128, 512), (1, 16, 8192, 64, 64), (4, 12, 1024, 64, 128),
        (1, 16, 8192, 72, 512), (1, 16, 8192, 64, 8192),
    ]  # fmt: skip
    for batch, heads, tokens, depth, size in sizes:
        query, key, value = (bench.randn(batch, tokens, heads, depth).transpose(1, 2) for _ in range(3))
        position = torch.arange(tokens, device=bench.device)
        mask = (position - position[:, None]).abs() <= size

        def flexible(query=query, key=key, value=value, tokens=tokens, size=size) -> Callable[[], Tensor]:
            from torch.nn.attention.flex_attention import create_block_mask, flex_attention

            def window(_b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                return (i - j).abs() <= size

            blocks = create_block_mask(window, None, None, tokens, tokens, device=query.device.type)
            fast = compiled(flex_attention)
            return lambda: fast(query, key, value, block_mask=blocks)

        attend = F.scaled_dot_product_attention
        runs: Runs = {
            "triton": functools.partial(
                torch.ops.laconic_triton.block_sparse_attention,
                query,
                key,
                value,
                None,
                None,
                64,
                size,
                size,
                depth**-0.5,
            ),  # fmt: skip
            "flex_attention, compiled": _lazily(flexible),
            "F.sdpa with the mask": functools.partial(attend, query, key, value, mask),
            "F.sdpa dense, no mask": functools.partial(attend, query, key, value),
        }
        visible = int(mask.sum())
        operations = 4 * batch * heads * visible * depth
        case = f"[{batch}, {heads}, {tokens}, {depth}] window {size}, bf16"
        bench.measure("block_sparse_attention", case, runs, operations=operations)


def bipartite_match(bench: Bench) -> None:
    from laconic.passes.ops.tokens import bipartite_match as operator

    sizes = [(1, 30, 16)] if bench.rehearse else [(16, 197, 64), (2, 4096, 64), (2, 4096, 640), (1, 16384, 64)]
    for batch, tokens, depth in sizes:
        metric = bench.randn(batch, tokens, depth)
        source, destination = metric[:, ::2], metric[:, 1::2]
        runs: Runs = {
            "triton": functools.partial(torch.ops.laconic_triton.bipartite_match, source, destination),
            "Inductor": functools.partial(compiled(operator.body), source, destination),
        }
        operations = 2 * batch * source.shape[1] * destination.shape[1] * depth
        bench.measure("bipartite_match", f"[{batch}, {tokens}, {depth}] bf16", runs, operations=operations)


BENCHES = (int8_linear, quantize_rows, linear_recurrence, selective_scan, windowed_attention, bipartite_match)


def check(bench: Bench) -> dict[str, str]:
    """Every kernel against its meaning: "ok" or what went wrong, by name."""
    from checks import CHECKS

    outcome = {}
    for name, run in CHECKS.items():
        if bench.rehearse and name == "compiled_models":
            continue  # tests/kernels/test_provider_path.py compiles models in the interpreter
        torch.manual_seed(0)
        begin = time.perf_counter()
        try:
            run(bench.device, bench.rehearse)
            outcome[name] = "ok"
        except Exception as error:
            outcome[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        text = "ok" if outcome[name] == "ok" else "failed: " + outcome[name][:100].replace("\n", " ")
        print(f"  {name:<24}{text}  ({time.perf_counter() - begin:.1f} s)", flush=True)
    return outcome


def facts(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    import triton

    found: dict[str, Any] = {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": sys.version.split()[0],
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "date": time.strftime("%Y-%m-%d"),
        "device": "interpreter",
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="where to write (default: benchmarks/results/gpu-<device>-<date>.json)")
    parser.add_argument("--only", help="benchmarks whose name holds this; no checks")
    parser.add_argument(
        "--rehearse", action="store_true", help="small sizes on CPU in Triton's interpreter, no timings"
    )
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a CUDA device; TRITON_INTERPRET=1 ... --rehearse runs it small on CPU")
        return 2
    from laconic.backends import kernels

    if not kernels.register():
        print("benchmarks/gpu.py needs triton")
        return 2
    from laconic.backends.kernels.launch import INTERPRETED

    if options.rehearse and not INTERPRETED:
        print("--rehearse needs TRITON_INTERPRET=1 in the environment")
        return 2
    device = "cpu" if options.rehearse else "cuda"
    bench = Bench(device, options.rehearse)
    found = facts(device)
    print(", ".join(f"{name} {value}" for name, value in found.items() if value is not None))
    outcome = {} if options.only else check(bench)
    for run in BENCHES:
        if not options.only or options.only in run.__name__:
            torch.manual_seed(0)
            try:
                run(bench)
            except Exception as error:  # one broken benchmark must not cost the figures of the others
                traceback.print_exc()
                bench.rows.append({"operation": run.__name__, "error": f"{type(error).__name__}: {error}"[:300]})
    name = re.sub(r"[^a-z0-9]+", "-", str(found["device"]).lower()).strip("-")
    path = Path(options.json or _checkout.ROOT / "benchmarks" / "results" / f"gpu-{name}-{found['date']}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"benchmark": "gpu", "machine": found, "checks": outcome, "rows": bench.rows}, indent=1))
    print(f"\nwrote {path}")
    ours = [row for row in bench.rows if "error" in row and row.get("variant", "triton").startswith("triton")]
    failed = [name for name, result in outcome.items() if result != "ok"] + [row["operation"] for row in ours]
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
