"""Laconic's own compile time, beside Inductor's: on real models, and as a model gets deeper.

    python benchmarks/overhead.py [--models bert vit ...] [--depths 2 8 32]

Own time is normal form to applied plan. The promise: at most 15 % of Inductor's cold compile time or 1.5 s, whichever
is more, and linear in the number of layers. Each compile is cold: fresh cache folder, caches off.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import timing
import torch
from torch import nn


def stack(depth: int) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """A pre-norm transformer encoder of ``depth`` layers."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
    # In evaluation mode this module takes a fused path that is one opaque operator; training mode shows the layers.
    return model.train(), (torch.randn(2, 16, 64),), {}


def measure(build: Any) -> dict[str, float]:
    """Own seconds by stage, whole compile seconds with laconic and with Inductor alone, all cold."""
    import laconic

    model, args, kwargs = build()
    figures: dict[str, float] = {}
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
        for backend in ("inductor", "laconic"):
            torch._dynamo.reset()
            compiled = torch.compile(model, backend=backend)
            begin = time.perf_counter()
            compiled(*args, **kwargs)
            figures[backend] = time.perf_counter() - begin
    for graph in laconic.report(compiled).graphs:
        for stage, seconds in graph.seconds.items():
            figures[stage] = figures.get(stage, 0.0) + seconds
            figures["own"] = figures.get("own", 0.0) + seconds
    return figures


def main() -> None:
    """Print one line per model and per depth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=None)
    parser.add_argument("--depths", nargs="*", type=int, default=[2, 8, 32])
    parser.add_argument("--json")
    options = parser.parse_args()
    from tests.models.builders import BUILDERS

    figures: dict[str, dict[str, float]] = {}
    names = BUILDERS if options.models is None else options.models
    builds = {name: BUILDERS[name] for name in names}
    builds |= {f"encoder-{depth}": (lambda depth=depth: stack(depth)) for depth in options.depths}
    measure(builds[next(iter(builds))])  # imports and first-use costs of torch itself
    print(f"{'model':<16}{'own s':>8}{'inductor s':>12}{'share':>8}   stages   (load {timing.machine()['load'][0]})")
    for name, build in builds.items():
        row = figures[name] = measure(build)
        share = row["own"] / row["inductor"]
        ok = share <= 0.15 or row["own"] <= 1.5
        stages = ", ".join(
            f"{key} {value:.2f}" for key, value in row.items() if key not in ("own", "inductor", "laconic")
        )
        print(f"{name:<16}{row['own']:>8.2f}{row['inductor']:>12.2f}{share:>8.1%}   {stages}{'' if ok else '   OVER'}")
    depths = [figures[f"encoder-{depth}"]["own"] / depth for depth in options.depths]
    if len(depths) > 1:
        print("own seconds per layer by depth: " + ", ".join(f"{value * 1e3:.1f} ms" for value in depths))
    timing.save(options.json, "overhead", figures)


if __name__ == "__main__":
    main()
