"""How every benchmark here measures: variants interleaved in one process, medians, the ratio pair by pair, the load."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401  (benchmarks measure the checkout they lie in)
import torch

# A benchmark runs from the checkout it lies in, installed or not.


@dataclass(frozen=True)
class Timing:
    """Seconds per call (median over rounds) and the median of the per-round ratios to the baseline."""

    seconds: float
    ratio: float
    rounds: int


def interleaved(
    variants: Mapping[str, Callable[[], Any]], *, baseline: str, rounds: int = 9, warmup: int = 2
) -> dict[str, Timing]:
    """Time every variant once per round, A B C A B C ..., so that drift of the machine hits all alike.

    Raises ValueError for fewer than seven rounds: a median of less is no figure to quote.
    """
    if rounds < 7:
        raise ValueError(f"at least 7 rounds, not {rounds}")
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with torch.no_grad():
        for run in variants.values():
            for _ in range(warmup):
                run()
        for _ in range(rounds):
            for name, run in variants.items():
                begin = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - begin)
    base = seconds[baseline]
    return {
        name: Timing(
            statistics.median(values),
            statistics.median(value / reference for value, reference in zip(values, base, strict=True)),
            rounds,
        )
        for name, values in seconds.items()
    }


def machine() -> dict[str, Any]:
    """What a figure depends on: versions, threads, load."""
    return {
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "date": time.strftime("%Y-%m-%d"),
    }


def show(title: str, timings: Mapping[str, Timing], *, baseline: str) -> None:
    """One line per variant: milliseconds, ratio to the baseline, and how many times faster that is."""
    print(f"{title}  (load {os.getloadavg()[0]:.2f}, {torch.get_num_threads()} threads)")
    for name, timing in timings.items():
        milliseconds, faster = timing.seconds * 1e3, 1 / timing.ratio
        print(f"  {name:<32}{milliseconds:10.2f} ms   {timing.ratio:6.3f} of {baseline}   {faster:5.2f}x")


def save(path: str | None, name: str, figures: Mapping[str, Any]) -> None:
    """Write figures with the machine's facts as JSON, if a path was given."""
    if path is None:
        return
    plain = {key: asdict(value) if isinstance(value, Timing) else value for key, value in figures.items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({"benchmark": name, "machine": machine(), "figures": plain}, indent=1) + "\n")
