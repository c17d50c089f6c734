"""What caching across steps costs and buys on the trained digits transformer: ``python benchmarks/cache.py``.

``curve``: for every policy and setting the share of the FLOPs and the distance to the uncached 50-step samples, beside
plain fewer steps with the same solver and the caches of other libraries. Pieces run eagerly and are counted.
``time``: wall-clock of whole trajectories through Inductor, interleaved, beside what the FLOPs predict.
``overhead``: what the controller adds to a compiled model that never reuses anything.

Results go to ``benchmarks/results/cache.json``. The other libraries (diffusers, cache-dit) are optional.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timing
import torch
from cache_peers import peers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import laconic
from laconic.backends import runner
from laconic.passes.table_search import search_table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))
from digits_dit import load, noise_and_labels, sample  # noqa: E402

STEPS = 50
BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def settings(tables: dict[int, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every policy with the settings its curve is drawn from."""
    for threshold in (0.015, 0.02, 0.025, 0.03, 0.05, 0.1):
        for order in (None, 1):
            yield "easycache", {"threshold": threshold, "order": order}
    for interval in (2, 3, 4):
        for repay in (0.0, 0.5):
            yield "taylor", {"interval": interval, "repay": repay}
        yield "taylor", {"interval": interval, "order": 2}
        yield "taylor", {"interval": interval, "level": "blocks"}
        yield "taylor", {"interval": interval, "level": "layers"}
    for threshold in (0.05, 0.1, 0.2, 0.3):
        for order in (0, 1):
            yield "first-block", {"threshold": threshold, "order": order}
    for interval in (2, 3):
        for blocks in (4, 6, 8):
            yield "delta-dit", {"interval": interval, "blocks": blocks}
    for max_interval in (1, 2, 4):
        yield "sada", {"max_interval": max_interval, "period": max_interval + 1}
    for table in tables.values():
        yield "static", {"table": table, "order": 1, "repay": 0.5}


def compiled(model: nn.Module, policy: str, chosen: dict[str, Any]) -> Any:
    return torch.compile(model, backend="laconic", options={"passes": [laconic.cache(policy, **chosen)]})


@contextmanager
def counted_pieces() -> Iterator[list[int]]:
    """Pieces run as they are; the list gets the FLOPs of each that runs."""
    run: list[int] = []

    def compile_graph(module: torch.fx.GraphModule, inputs: Any, options: Any) -> Callable[..., Any]:
        cost: list[int] = []

        def piece(*args: Any) -> Any:
            if not cost:
                with FlopCounterMode(display=False) as counter:
                    result = module(*args)
                cost.append(counter.get_total_flops())
            else:
                result = module(*args)
            run.append(cost[0])
            return result

        return piece

    before = runner.compile_graph
    runner.compile_graph = compile_graph
    try:
        yield run
    finally:
        runner.compile_graph = before


def record(model: nn.Module, batch: int, seed: int) -> Tensor:
    """The outputs ``[steps, ...]`` of an uncached trajectory."""
    noise, labels = noise_and_labels(batch, seed=seed)
    outputs = []

    def keeping(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        outputs.append(model(x, t, label))
        return outputs[-1]

    sample(keeping, noise, labels, STEPS)
    return torch.stack(outputs)


def row(kind: str, name: str, share: float, images: Tensor, reference: Tensor) -> dict[str, Any]:
    error = float((images - reference).norm() / reference.norm())
    # Samples lie in [-1, 1], so the peak is 2.
    noise = float((images - reference).square().mean().sqrt())
    psnr = 20 * math.log10(2 / noise) if noise else math.inf
    print(f"  {kind:<12} {name:<62} {share:6.3f}  {error:.5f}  {psnr:5.1f} dB", flush=True)
    return {"kind": kind, "name": name, "flops": share, "relative_l2": error, "psnr": psnr}


def curve(model: nn.Module, batch: int) -> list[dict[str, Any]]:
    """Rows ``kind`` (laconic, fewer steps, peer), ``name``, ``flops`` (share), ``relative_l2``, ``psnr``."""
    noise, labels = noise_and_labels(batch)
    reference = sample(model, noise, labels, STEPS)
    rows = []
    for steps in range(10, 46, 5):
        images = sample(model, noise, labels, steps)
        rows.append(row("fewer steps", f"{steps} steps", steps / STEPS, images, reference))
    with FlopCounterMode(display=False) as counter:
        model(noise, torch.full((batch,), 0.3), labels)
    full = STEPS * counter.get_total_flops()
    outputs = record(model, batch, seed=1)
    counts = (15, 18, 20, 22, 25, 28, 30, 33, 36, 40)
    tables = {count: search_table(outputs, count, order=1, repay=0.5) for count in counts}
    with counted_pieces() as run:
        for policy, chosen in settings(tables):
            torch._dynamo.reset()
            fast = compiled(model, policy, chosen)
            with laconic.session(fast, steps=STEPS):
                run.clear()
                images = sample(fast, noise, labels, STEPS)
            shown = {key: value for key, value in chosen.items() if key != "table"}
            if "table" in chosen:
                shown = {"table": f"searched, {sum(item for (item,) in chosen['table'])} computed", **shown}
            name = f"{policy} " + ", ".join(f"{key}={value}" for key, value in shown.items())
            rows.append(row("laconic", name, sum(run) / full, images, reference))

    def draw(network: Any) -> Tensor:
        return sample(network, noise, labels, STEPS)

    for found in peers(model, draw, STEPS):
        if "failed" in found:
            print(f"  peer         {found['name']} failed: {found['failed']}", flush=True)
            rows.append({"kind": "peer", **found})
        else:
            rows.append(row("peer", found["name"], found["share"], found["images"], reference))
    return rows


def at_budgets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lowest error of each kind at no more than each share of the FLOPs."""
    found = []
    for budget in BUDGETS:
        best: dict[str, Any] = {"budget": budget}
        for kind in ("laconic", "fewer steps", "peer"):
            # Half a step of slack: budgets fall between numbers of steps.
            within = [item for item in rows if item["kind"] == kind and item.get("flops", 2) <= budget + 0.5 / STEPS]
            if within:
                chosen = min(within, key=lambda item: item["relative_l2"])
                best[kind] = {key: chosen[key] for key in ("name", "flops", "relative_l2")}
        found.append(best)
        line = "   ".join(f"{kind} {item['relative_l2']:.5f}" for kind, item in best.items() if kind != "budget")
        print(f"  at {budget:.0%} of the FLOPs: {line}", flush=True)
    return found


def wall(model: nn.Module, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Trajectories in turns: the median over rounds of the time relative to the plain compile's, beside the FLOPs."""
    noise, labels = noise_and_labels(batch)
    variants: dict[str, tuple[Any, float]] = {"torch.compile": (torch.compile(model), 1.0)}
    for interval in (2, 3, 4):
        table = [step % interval == 0 or step == STEPS - 1 for step in range(STEPS)]
        fast = compiled(model, "taylor", {"interval": interval, "repay": 0.5})
        variants[f"taylor interval={interval}"] = (fast, sum(table) / STEPS)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(-1, rounds):
        for name, (network, _) in variants.items():
            begin = time.perf_counter()
            if name == "torch.compile":
                sample(network, noise, labels, STEPS)
            else:
                with laconic.session(network, steps=STEPS):
                    sample(network, noise, labels, STEPS)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - begin)
    base = seconds["torch.compile"]
    found = []
    for name, (_, share) in variants.items():
        ratio = statistics.median(mine / other for mine, other in zip(seconds[name], base, strict=True))
        found.append({"name": name, "flops": share, "time": ratio})
        print(f"  {name:<24} FLOPs {share:.3f}   time {ratio:.3f}   time / FLOPs {ratio / share:.3f}", flush=True)
    return found


def overhead(model: nn.Module, batch: int, rounds: int) -> dict[str, float]:
    """Time per call relative to the unsplit compile: calls in turns, median over rounds of the ratio within a round."""
    variants = {
        "unsplit compile": torch.compile(model),
        "threshold 0": compiled(model, "easycache", {"threshold": 0}),
        # Every call is decided and recorded, and computed: the controller's own cost.
        "deciding, never reusing": compiled(model, "easycache", {"threshold": 1e-12}),
    }
    noise, labels = noise_and_labels(batch)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with torch.no_grad(), laconic.session(variants["threshold 0"], variants["deciding, never reusing"], steps=10**6):
        for turn in range(-3, rounds):
            t = torch.full((batch,), (turn % STEPS) / STEPS)
            # The order turns, so that no variant always runs with another's leftovers in the cache.
            names = list(variants)[turn % 3 :] + list(variants)[: turn % 3]
            for name in names:
                begin = time.perf_counter()
                variants[name](noise + t[0], t, labels)
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - begin)
    base = seconds["unsplit compile"]
    ratios = {
        name: statistics.median(mine / other for mine, other in zip(taken, base, strict=True))
        for name, taken in seconds.items()
    }
    for name, ratio in ratios.items():
        print(f"  {name:<26} {ratio:.3f}x the unsplit compile")
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=("overhead", "curve", "time"))
    parser.add_argument("--out", default=str(HERE / "results" / "cache.json"))
    arguments = parser.parse_args()
    model, _ = load()
    figures: dict[str, Any] = {"batch": arguments.batch, "steps": STEPS}
    if arguments.only in (None, "curve"):
        figures["curve"] = curve(model, arguments.batch)
        figures["budgets"] = at_budgets(figures["curve"])
    torch._dynamo.reset()
    if arguments.only in (None, "time"):
        figures["time"] = wall(model, arguments.batch, arguments.rounds)
    if arguments.only in (None, "overhead"):
        figures["overhead"] = overhead(model, arguments.batch, 6 * arguments.rounds)
    timing.save(arguments.out, "cache", figures)


if __name__ == "__main__":
    main()
