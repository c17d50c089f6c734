"""Token merging: time and error beside torch.compile, random tokens at the same r, and tomesd where it applies.

    python benchmarks/merge_tokens.py [--models vit dit] [--ratios 0.25 0.5]

The models are built with random weights from configurations, so their errors only compare methods at an equal r; the
``digits`` rows sample from the trained transformer of ``examples/``, where quality means something. ``random`` merges
the same number of tokens into random ones: the trivial competitor. tomesd (``pip install tomesd``) patches
Stable-Diffusion-type models only and is measured on ``unet`` where it is installed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timing
import torch
from torch import Tensor, nn

import laconic
from tests.models.timm_support import declare_torchvision_operators

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

# transformers and diffusers import torchvision, whose wheel may come without its operators.
declare_torchvision_operators()


def vit() -> Built:
    """Four layers of ViT-B at 1025 tokens."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=768, num_hidden_layers=4, num_attention_heads=12, intermediate_size=3072, image_size=512
    )
    return ViTModel(config, add_pooling_layer=False), (torch.randn(1, 3, 512, 512),), {}


def dit() -> Built:
    """Four layers of DiT, width 384, 1024 tokens."""
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=4, num_layers=4, sample_size=64
    )
    labels = torch.tensor([1, 2])
    return model, (torch.randn(2, 4, 64, 64),), {"timestep": torch.tensor([500, 500]), "class_labels": labels}


def unet() -> Built:
    """A small Stable-Diffusion-type UNet: self-attention over 2304 tokens at its outer level."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=48,
        block_out_channels=(128, 256),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
    )
    return model, (torch.randn(1, 4, 48, 48), torch.tensor(500), torch.randn(1, 16, 128)), {}


MODELS: dict[str, tuple[Callable[[], Built], int]] = {"vit": (vit, 1), "dit": (dit, 0), "unet": (unet, 0)}


@contextmanager
def random_matches() -> Iterator[None]:
    """Within it, compiled matches are random numbers: same work after the match, no similarity."""
    from laconic.passes.ops import tokens

    real = tokens.bipartite_match

    def chance(source: Tensor, destination: Tensor) -> tuple[Tensor, Tensor]:
        score = torch.rand(source.shape[:-1], device=source.device)
        index = torch.randint(destination.shape[1], source.shape[:-1], device=source.device)
        return score, index

    tokens.bipartite_match = chance
    try:
        yield
    finally:
        tokens.bipartite_match = real


def first(output: Any) -> Tensor:
    """The tensor in whatever a model returns."""
    return output if isinstance(output, Tensor) else output[0]


def compiled(
    build: Callable[[], Built], passes: list[Any] | None, prepare: Callable[[nn.Module], Any] = lambda _: None
):
    """A compiled model (laconic when passes are given) as a call without arguments, warmed up."""
    torch.manual_seed(0)
    model, args, kwargs = build()
    model.eval()
    prepare(model)
    torch._dynamo.reset()
    settings = {} if passes is None else {"backend": "laconic", "options": {"passes": passes}}
    fast = torch.compile(model, **settings)
    with torch.no_grad():
        output = first(fast(*args, **kwargs))
    if passes and not any(row.status == "applied" for row in laconic.report(fast).rewrites):
        raise SystemExit(f"nothing was rewritten:\n{laconic.report(fast)}")
    return (lambda: fast(*args, **kwargs)), output


def digits(ratio: float) -> dict[str, dict[str, float]]:
    """Samples of the trained transformer (64 tokens) with merged attention: PSNR to the exact ones, and accuracy."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
    from digits_dit import load, noise_and_labels, sample

    model, classifier = load()
    noise, label = noise_and_labels(64)
    rows: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        exact = sample(model, noise, label, 25)
        for name in ("exact", "tome", "random tokens"):
            torch._dynamo.reset()
            item = laconic.merge_tokens("tome", r=ratio)
            run: Any = model if name == "exact" else torch.compile(model, backend="laconic", options={"passes": [item]})
            with random_matches() if name == "random tokens" else nullcontext():
                made = sample(run, noise, label, 25)
            error = (made - exact).square().mean().item()
            accuracy = (classifier(made).argmax(-1) == label).float().mean().item()
            rows[name] = {"psnr": 10 * math.log10(4 / error) if error else math.inf, "accuracy": accuracy}
    return rows


def main() -> None:
    """Print one table per model and ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=MODELS, default=["vit", "dit", "unet"])
    parser.add_argument("--ratios", nargs="*", type=float, default=[0.25, 0.45])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for name in options.models:
        build, protect = MODELS[name]
        plain, exact = compiled(build, None)
        for ratio in options.ratios:
            item = laconic.merge_tokens("tome", r=ratio, protect=protect)
            calls, outputs = {"torch.compile": plain}, {}
            calls["laconic, tome"], outputs["laconic, tome"] = compiled(build, [item])
            with random_matches():
                calls["random tokens"], outputs["random tokens"] = compiled(build, [item])
            if name == "unet" and find_spec("tomesd"):
                import tomesd

                def patch(model: nn.Module, ratio: float = ratio) -> None:
                    tomesd.apply_patch(model, ratio=ratio, max_downsample=1, use_rand=False)

                calls["tomesd + torch.compile"], outputs["tomesd + torch.compile"] = compiled(build, None, patch)
            timings = timing.interleaved(calls, baseline="torch.compile", rounds=options.rounds)
            timing.show(f"{name}, r = {ratio:g} of the tokens", timings, baseline="torch.compile")
            errors = {key: ((value - exact).norm() / exact.norm()).item() for key, value in outputs.items()}
            print("  relative L2: " + ", ".join(f"{key} {value:.2e}" for key, value in errors.items()))
            if name == "unet" and not find_spec("tomesd"):
                print("  tomesd is not installed: left out")
            figures[f"{name} {ratio:g}"] = {key: vars(row) for key, row in timings.items()} | {"error": errors}
    for ratio in options.ratios:
        rows = figures[f"digits {ratio:g}"] = digits(ratio)
        print(f"digits, 64 samples, 25 steps, r = {ratio:g} of the tokens")
        for key, row in rows.items():
            print(f"  {key:<16} PSNR {row['psnr']:6.1f} dB   accuracy {row['accuracy']:.1%}")
    timing.save(options.json, "merge_tokens", figures)


if __name__ == "__main__":
    main()
