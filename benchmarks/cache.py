"""What caching across steps costs and buys: ``python benchmarks/cache.py``.

Two questions on the digits transformer (``examples/``): how much the host controller adds to a compiled model that
never reuses anything, and how close to the full 50 steps a given number of network evaluations comes, compared with
simply taking that many steps. Both print the machine's load; results go to ``benchmarks/results/cache.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import laconic

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))
from digits_dit import load, noise_and_labels, sample  # noqa: E402

STEPS = 50
THRESHOLDS = (0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2)


def through_laconic(model: nn.Module, *passes: Any) -> Callable[..., Tensor]:
    """``model`` compiled with ``passes``."""
    return torch.compile(model, backend="laconic", options={"passes": list(passes)})


def overhead(model: nn.Module, batch: int, rounds: int) -> dict[str, float]:
    """Time per call relative to the unsplit compile: calls in turns, median over rounds of the ratio within a round."""
    variants = {
        "unsplit compile": torch.compile(model),
        "threshold 0": through_laconic(model, laconic.cache("easycache", threshold=0)),
        # Every call is decided and recorded, and computed: the controller's own cost.
        "deciding, never reusing": through_laconic(model, laconic.cache("easycache", threshold=1e-12)),
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
    return {
        name: statistics.median(mine / other for mine, other in zip(taken, base, strict=True))
        for name, taken in seconds.items()
    }


def curve(model: nn.Module, batch: int) -> list[dict[str, Any]]:
    """Evaluations and error against 50 full steps, per predictor and threshold, beside as many plain steps."""
    noise, labels = noise_and_labels(batch)
    plain = torch.compile(model)
    reference = sample(plain, noise, labels, STEPS)
    fewer: dict[int, float] = {}
    rows = []
    print("  order  threshold  evaluations of 50  relative L2   as many plain steps")
    for order in (None, 0, 1):
        for threshold in THRESHOLDS:
            fast = through_laconic(model, laconic.cache("easycache", threshold=threshold, order=order))
            with laconic.session(fast, steps=STEPS) as session:
                images = sample(fast, noise, labels, STEPS)
            count = session.summary().computed
            if count not in fewer:
                fewer[count] = relative(sample(plain, noise, labels, count), reference)
            error = relative(images, reference)
            row = {"order": order, "threshold": threshold, "evaluations": count, "relative_l2": error}
            rows.append({**row, "fewer_steps_relative_l2": fewer[count]})
            sign = "<" if error < fewer[count] else ">="
            print(
                f"  {order!s:<6} {threshold:<10} {count:<18} {error:.5f}    {sign:>2} {fewer[count]:.5f}",
                flush=True,
            )
            torch._dynamo.reset()  # each setting is compiled code of its own; Inductor's cache makes it cheap
    return rows


def relative(images: Tensor, reference: Tensor) -> float:
    """Relative L2 distance."""
    return ((images - reference).norm() / reference.norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", choices=("overhead", "curve"))
    arguments = parser.parse_args()
    model, _ = load()
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "batch": arguments.batch,
        "load_before": os.getloadavg()[0],
    }
    print(
        f"torch {facts['torch']}, {facts['threads']} threads, batch {arguments.batch}, load {facts['load_before']:.1f}"
    )
    if arguments.only != "curve":
        facts["overhead"] = overhead(model, arguments.batch, arguments.rounds)
        for name, ratio in facts["overhead"].items():
            print(f"  {name:<26} {ratio:.3f}x the unsplit compile")
    if arguments.only != "overhead":
        facts["curve"] = curve(model, arguments.batch)
    facts["load_after"] = os.getloadavg()[0]
    print(f"load after {facts['load_after']:.1f}")
    target = HERE / "results" / "cache.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
