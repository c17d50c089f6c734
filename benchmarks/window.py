"""Windowed attention at 8k tokens: laconic beside Inductor's dense attention and compiled FlexAttention.

    python benchmarks/window.py [--tokens 8192] [--sizes 256 512] [--causal]

``size`` is the keys visible on each side, so "window 512" is either ``size=256`` (512 keys in all) or ``size=512``
(512 to each side); both are measured. The promise: at least 2x over Inductor's dense attention, and equal to dense
attention with the same boolean mask to 1e-5. One batch, 8 heads of 64, fp32.
"""

from __future__ import annotations

import argparse
from typing import Any

import timing
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import laconic


def variants(size: int, causal: bool, inputs: tuple[Tensor, ...]) -> tuple[dict[str, Any], float]:
    """The compiled competitors, and laconic's largest difference to dense attention with the mask."""

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)

    def masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, mask)

    tokens = inputs[0].shape[2]
    place = torch.arange(tokens)
    offset = place[:, None] - place
    mask = (offset <= size) & (offset >= (0 if causal else -size))

    def visible(_: Any, __: Any, query: Tensor, key: Tensor) -> Tensor:
        return (query - key <= size) & (query - key >= (0 if causal else -size))

    torch._dynamo.reset()
    blocks = create_block_mask(visible, None, None, tokens, tokens, device="cpu")
    flex = torch.compile(flex_attention)
    windowed = torch.compile(
        dense, backend="laconic", options={"passes": [laconic.sparse_attention("window", size=size)]}
    )
    plain, with_mask = torch.compile(dense), torch.compile(masked)
    with torch.no_grad():
        error = (windowed(*inputs) - with_mask(*inputs, mask)).abs().max().item()
    report = laconic.report(windowed)
    if not any(row.status == "applied" for row in report.rewrites):
        raise SystemExit(f"nothing was rewritten:\n{report}")
    calls = {
        "inductor, dense": lambda: plain(*inputs),
        "inductor, dense with the mask": lambda: with_mask(*inputs, mask),
        "flex_attention + inductor": lambda: flex(*inputs, block_mask=blocks),
        "laconic": lambda: windowed(*inputs),
    }
    return calls, error


def main() -> None:
    """Print one table per size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--sizes", nargs="*", type=int, default=[256, 512])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.manual_seed(0)
    inputs = tuple(torch.randn(1, options.tokens, options.heads, 64).transpose(1, 2) for _ in range(3))
    figures: dict[str, Any] = {}
    for size in options.sizes:
        calls, error = variants(size, options.causal, inputs)
        timings = timing.interleaved(calls, baseline="inductor, dense", rounds=options.rounds, warmup=1)
        sides = f"{size} keys back" if options.causal else f"{size} keys each side"
        timing.show(f"{options.tokens} tokens, {sides}", timings, baseline="inductor, dense")
        print(f"  largest difference to dense attention with the mask: {error:.1e}")
        figures[f"size {size}"] = {name: vars(row) for name, row in timings.items()} | {"error": error}
    timing.save(options.json, "window", figures)


if __name__ == "__main__":
    main()
