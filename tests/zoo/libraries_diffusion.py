"""Rows of denoisers and medical images in libraries that detection was not made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .table import Row, Value, ids, number, real


def _row(
    name: str, library: str, path: str, inputs: Mapping[str, Value], sizes: Mapping[str, Any], **facts: Any
) -> Row:
    return Row(name.replace("_", "-"), "images, sound", library, path, sizes, inputs, **facts)


_TIME: Mapping[str, Value] = {"0": real(1, 3, 32, 32), "1": number(7.0)}

_UNET = {"dim": 16, "dim_mults": (1, 2), "attn_dim_head": 8, "attn_heads": 2}


def _denoiser(name: str, path: str, sizes: Mapping[str, Any], inputs: Mapping[str, Value] = _TIME, *linear: str) -> Row:
    path = f"denoising_diffusion_pytorch.{path}"
    return _row(
        f"denoising_diffusion_pytorch-{name}",
        "denoising_diffusion_pytorch",
        path,
        inputs,
        sizes,
        linear=linear or ("LinearAttention",),
    )


_MONAI_VIT = {
    "in_channels": 1,
    "img_size": (16, 16, 16),
    "patch_size": (8, 8, 8),
    "hidden_size": 48,
    "mlp_dim": 96,
    "num_layers": 2,
    "num_heads": 4,
}

_VOLUME: Mapping[str, Value] = {"0": real(1, 1, 16, 16, 16)}


def _monai(name: str, cls: str, inputs: Mapping[str, Value], **sizes: Any) -> Row:
    return _row(f"monai-{name}", "monai", f"monai.networks.nets:{cls}", inputs, sizes)


ROWS = (
    _denoiser("unet", "denoising_diffusion_pytorch:Unet", _UNET),
    _denoiser(
        "unet-flash", "denoising_diffusion_pytorch:Unet", {**_UNET, "flash_attn": True, "full_attn": (False, True)}
    ),
    _denoiser(
        "unet-guided",
        "classifier_free_guidance:Unet",
        {**_UNET, "num_classes": 10, "cond_drop_prob": 0.0},
        {**_TIME, "2": ids(1, high=10)},
    ),
    _denoiser("unet-1d", "denoising_diffusion_pytorch_1d:Unet1D", _UNET, {"0": real(1, 3, 32), "1": number(7.0)}),
    _denoiser(
        "karras",
        "karras_unet:KarrasUnet",
        {
            "image_size": 32,
            "dim": 16,
            "dim_max": 32,
            "channels": 3,
            "num_downsamples": 2,
            "num_blocks_per_stage": 2,
            "attn_res": (8, 16),
            "attn_dim_head": 8,
            "num_classes": 10,
        },
        {**_TIME, "class_labels": ids(1, high=10)},
    ),
    _denoiser(
        "karras-transformer",
        "karras_unet:MPImageTransformer",
        {"dim": 48, "depth": 2, "dim_head": 12, "heads": 4},
        {"0": real(1, 48, 8, 8)},
    ),
    _denoiser(
        "uvit",
        "simple_diffusion:UViT",
        {"dim": 16, "dim_mults": (1, 2), "vit_depth": 2, "attn_dim_head": 8, "attn_heads": 2, "downsample_factor": 2},
    ),
    _row(
        "dalle2_pytorch-prior",
        "dalle2_pytorch",
        "dalle2_pytorch.dalle2_pytorch:CausalTransformer",
        {"0": real(2, 16, 48)},
        {"dim": 48, "depth": 2, "dim_head": 12, "heads": 4},
    ),
    _row(
        "dalle2_pytorch-unet",
        "dalle2_pytorch",
        "dalle2_pytorch.dalle2_pytorch:Unet",
        {**_TIME, "image_embed": real(1, 32)},
        {
            "dim": 16,
            "image_embed_dim": 32,
            "cond_dim": 32,
            "dim_mults": (1, 2),
            "attn_dim_head": 8,
            "attn_heads": 2,
            "self_attn": True,
            "cond_on_image_embeds": True,
        },
    ),
    _monai("vit", "ViT", _VOLUME, **_MONAI_VIT),
    _monai(
        "unetr",
        "UNETR",
        {"0": real(1, 1, 32, 32, 32)},
        in_channels=1,
        out_channels=2,
        img_size=(32, 32, 32),
        feature_size=8,
        hidden_size=48,
        mlp_dim=96,
        num_heads=4,
    ),
    _monai(
        "swin-unetr",
        "SwinUNETR",
        {"0": real(1, 1, 64, 64)},
        in_channels=1,
        out_channels=2,
        feature_size=12,
        spatial_dims=2,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 2, 4),
    ),
    _monai(
        "decoder",
        "DecoderOnlyTransformer",
        {"0": ids(2, 16)},
        num_tokens=120,
        max_seq_len=32,
        attn_layers_dim=48,
        attn_layers_depth=2,
        attn_layers_heads=4,
    ),
    _monai(
        "diffusion",
        "DiffusionModelUNet",
        {"0": real(1, 1, 16, 16), "1": number(7.0), "context": real(1, 4, 12)},
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=(16, 32),
        attention_levels=(False, True),
        num_res_blocks=2,
        norm_num_groups=8,
        num_head_channels=8,
        with_conditioning=True,
        cross_attention_dim=12,
    ),
    _monai(
        "autoencoder",
        "AutoencoderKL",
        {"0": real(1, 1, 16, 16)},
        spatial_dims=2,
        channels=(16, 32),
        attention_levels=(False, True),
        num_res_blocks=(1, 1),
        norm_num_groups=8,
    ),
    _monai(
        "restormer",
        "restormer.Restormer",
        {"0": real(1, 3, 32, 32)},
        dim=16,
        num_blocks=(2, 2, 2, 2),
        heads=(1, 2, 2, 4),
        num_refinement_blocks=2,
    ),
    _monai(
        "mae",
        "MaskedAutoEncoderViT",
        _VOLUME,
        **{
            **_MONAI_VIT,
            "decoder_hidden_size": 48,
            "decoder_mlp_dim": 96,
            "decoder_num_layers": 2,
            "decoder_num_heads": 4,
        },
    ),
    _monai("mednext", "MedNeXt", {"0": real(1, 1, 32, 32)}, spatial_dims=2, init_filters=8, kernel_size=3),
    _monai(
        "unet",
        "UNet",
        {"0": real(1, 1, 32, 32)},
        spatial_dims=2,
        in_channels=1,
        out_channels=2,
        channels=(8, 16, 32),
        strides=(2, 2),
        num_res_units=2,
    ),
    _monai("segresnet", "SegResNet", {"0": real(1, 1, 32, 32)}, spatial_dims=2, init_filters=8),
)
