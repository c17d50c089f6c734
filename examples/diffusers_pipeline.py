"""A diffusers pipeline with a cached transformer: ``python examples/diffusers_pipeline.py``.

The pipeline is built small from configurations with random weights (nothing is downloaded), so the pictures are noise;
what there is to see is which steps ran. Two lines differ from a plain pipeline: the compile and the session.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor

import laconic

STEPS = 20


def small_pipeline(blocks: int = 2) -> FluxPipeline:
    """Flux with ``blocks`` double and twice as many single blocks, and a small VAE.

    Prompts come as embeddings, so it needs no text encoder.
    """
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=blocks,
        num_single_layers=2 * blocks,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    vae = AutoencoderKL(
        block_out_channels=(16,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        shift_factor=0.0,
        scaling_factor=1.0,
    )
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae, None, None, None, None, transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings(seed: int) -> tuple[Tensor, Tensor]:
    """What text encoders would make of one prompt: a sequence ``[1, 8, 32]`` and a pooled vector ``[1, 32]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 8, 32, generator=generator), torch.randn(1, 32, generator=generator)


def picture(pipe: FluxPipeline, steps: int, guidance: bool) -> Tensor:
    """One image ``[3, 32, 32]``; with guidance the transformer is called twice per step."""
    prompt, pooled = embeddings(1)
    arguments: dict[str, Any] = {"prompt_embeds": prompt, "pooled_prompt_embeds": pooled}
    if guidance:
        negative, negative_pooled = embeddings(2)
        arguments |= {
            "negative_prompt_embeds": negative,
            "negative_pooled_prompt_embeds": negative_pooled,
            "true_cfg_scale": 3.0,
        }
    result = pipe(
        **arguments,
        height=32,
        width=32,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    )
    return result.images[0]


def run(policy: str, settings: dict[str, Any], steps: int = STEPS, blocks: int = 2) -> dict[str, dict[str, Any]]:
    """Plain and cached pictures, with and without guidance: the largest difference of a pixel, and the summary."""
    pipe = small_pipeline(blocks)
    plain = {guidance: picture(pipe, steps, guidance) for guidance in (False, True)}

    options = {"passes": [laconic.cache(policy, **settings)]}
    pipe.transformer = torch.compile(pipe.transformer, backend="laconic", options=options)

    found: dict[str, dict[str, Any]] = {}
    for guidance in (False, True):
        with laconic.session(pipe.transformer, steps=steps, calls_per_step=2 if guidance else 1) as session:
            image = picture(pipe, steps, guidance)
        found["with guidance" if guidance else "without guidance"] = {
            "difference": float((image - plain[guidance]).abs().max()),
            "summary": session.summary(),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default="taylor")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--blocks", type=int, default=2)
    arguments = parser.parse_args()
    for name, row in run(arguments.policy, {}, arguments.steps, arguments.blocks).items():
        print(f"{name}: largest difference of a pixel {row['difference']:.4f}")
        print(row["summary"])


if __name__ == "__main__":
    main()
