"""quantize("int8") on a 4-layer ViT-B-shaped stack: laconic beside torch.compile and torchao's dynamic int8.

    python benchmarks/int8.py [--tokens 64 256 1024] [--crossover] [--json PATH]

The promise: at least 2.3x over torch.compile at 256 tokens and 1.9x at 1024, faster than torchao's
Int8DynamicActivationInt8WeightConfig with torch.compile in the same run, relative L2 of the output at most 1 %. The
residual stream hides error, so the error of (output - input) is printed too. fp32, batch 1.

``--crossover`` times single layers instead: where int8 begins to pay, the figure behind ``min_products``.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import laconic
from laconic.passes.measure import relative_l2

TOKENS = (64, 256, 1024)
CALLS = 50
LAYERS = [(rows, inner, outer) for rows in (1, 4, 16, 64, 640) for inner, outer in ((64, 64), (128, 512), (512, 512))]
LAYERS += [(1, 4096, 4096), (64, 64, 1024), (4096, 32, 32), (4096, 64, 64)]


class Block(nn.Module):
    """A pre-norm transformer layer: packed projection, attention, feed-forward with GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def with_torchao(model: nn.Module) -> nn.Module | None:
    """A copy quantised by torchao, or None where it is not installed."""
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError:
        return None
    peer = copy.deepcopy(model)
    quantize_(peer, Int8DynamicActivationInt8WeightConfig())
    return peer


def stack(tokens: int, rounds: int) -> dict[str, Any]:
    """Time and error of every variant on ``tokens`` tokens."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(*[Block(768, 12) for _ in range(4)]).eval()
    x = torch.randn(1, tokens, 768)
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "inductor": torch.compile(model),
        "laconic": torch.compile(model, backend="laconic", options={"passes": [laconic.quantize("int8")]}),
    }
    peer = with_torchao(model)
    if peer is not None:
        calls["torchao + inductor"] = torch.compile(peer)
    kept, errors = x.clone(), {}
    with torch.no_grad():
        exact = model(x)
        for name, call in calls.items():
            out = call(x)
            errors[name] = {"output": relative_l2(out, exact), "increment": relative_l2(out - x, exact - x)}
            if not torch.equal(x, kept):
                raise SystemExit(f"{name} wrote into its input")
    require_rewrites(calls["laconic"], 16)
    timings = timing.interleaved(
        {name: lambda call=call: call(x) for name, call in calls.items()}, baseline="inductor", rounds=rounds
    )
    timing.show(f"{tokens} tokens", timings, baseline="inductor")
    if peer is None:
        print("  torchao is not installed: no row for it")
    for name, error in errors.items():
        print(f"  {name:<32}relative L2 {error['output']:.2e}, of (output - input) {error['increment']:.2e}")
    return {name: {"timing": vars(timings[name]), "error": errors[name]} for name in calls}


def require_rewrites(compiled: Any, number: int) -> None:
    """Stop unless so many layers were rewritten: a ratio of two equal programs says nothing."""
    report = laconic.report(compiled)
    if sum(row.status == "applied" and row.op == "laconic::int8_linear" for row in report.rewrites) != number:
        raise SystemExit(f"not every linear layer was rewritten:\n{report}")


def repeat(call: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """As many calls as the clock needs for small layers."""
    for _ in range(CALLS):
        call(x)


def crossover(rounds: int) -> dict[str, Any]:
    """Single layers behind a normalisation: the ratio of int8 to fp32, whatever the cost rule says."""
    figures = {}
    for rows, inner, outer in LAYERS:
        torch._dynamo.reset()
        model, x = nn.Sequential(nn.LayerNorm(inner), nn.Linear(inner, outer)).eval(), torch.randn(rows, inner)
        forced = laconic.quantize("int8", min_features=1, min_products=0)
        plain, quantized = torch.compile(model), torch.compile(model, backend="laconic", options={"passes": [forced]})
        with torch.no_grad():
            timings = timing.interleaved(
                {"inductor": partial(repeat, plain, x), "int8": partial(repeat, quantized, x)},
                baseline="inductor",
                rounds=rounds,
            )
        require_rewrites(quantized, 1)
        products = rows * inner * outer
        print(
            f"  {rows:5} x {inner:4} x {outer:4} = {products / 2**20:8.2f} Mi products"
            f"{timings['inductor'].seconds / CALLS * 1e6:10.1f} us -> {timings['int8'].seconds / CALLS * 1e6:8.1f} us"
            f"   {1 / timings['int8'].ratio:5.2f}x"
        )
        figures[f"{rows}x{inner}x{outer}"] = 1 / timings["int8"].ratio
    return figures


def main() -> None:
    """Print one table for each number of tokens, or the crossover."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", nargs="*", type=int, default=list(TOKENS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--crossover", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.crossover:
        figures = crossover(options.rounds)
    else:
        figures = {str(tokens): stack(tokens, options.rounds) for tokens in options.tokens}
    timing.save(options.json, "int8", figures)


if __name__ == "__main__":
    main()
