"""Rows of perceivers and of models of images with text, in libraries that detection was not made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .table import Row, Value, ids, part, real


def _row(
    name: str, library: str, path: str, inputs: Mapping[str, Value], sizes: Mapping[str, Any], **facts: Any
) -> Row:
    return Row(name.replace("_", "-"), "images, sound", library, path, sizes, inputs, **facts)


_PERCEIVER = {
    "depth": 2,
    "num_latents": 8,
    "latent_dim": 48,
    "cross_dim_head": 12,
    "latent_heads": 4,
    "latent_dim_head": 12,
}

_IMAGE_LAST = {"0": real(1, 16, 16, 3)}

_FOURIER = {"num_freq_bands": 3, "max_freq": 10.0, "num_classes": 10, **_PERCEIVER}


def _perceiver(name: str, path: str, sizes: Mapping[str, Any], inputs: Mapping[str, Value] = _IMAGE_LAST) -> Row:
    return _row(f"perceiver_pytorch-{name}", "perceiver_pytorch", f"perceiver_pytorch.{path}", inputs, sizes)


_CLIP_IMAGE = {"image_size": 32, "layers": 2, "width": 48, "head_width": 12, "patch_size": 8}

_CLIP_TEXT = {"context_length": 16, "vocab_size": 120, "width": 48, "heads": 4, "layers": 2}

_LOOKED_AND_READ: Mapping[str, Value] = {"0": real(2, 3, 32, 32), "1": ids(2, 16)}


def _clip(name: str, cls: str, image: Mapping[str, Any], text: Mapping[str, Any], **more: Any) -> Row:
    sizes = {
        "embed_dim": 48,
        "vision_cfg": part("open_clip.model:CLIPVisionCfg", **{**_CLIP_IMAGE, **image}),
        "text_cfg": part("open_clip.model:CLIPTextCfg", **{**_CLIP_TEXT, **text}),
        **more,
    }
    return _row(f"open_clip-{name}", "open_clip", f"open_clip.{cls}", _LOOKED_AND_READ, sizes)


ROWS = (
    _perceiver("perceiver", "perceiver_pytorch:Perceiver", _FOURIER),
    _perceiver(
        "tied", "perceiver_pytorch:Perceiver", {**_FOURIER, "weight_tie_layers": True, "self_per_cross_attn": 2}
    ),
    _perceiver("gated", "gated:Perceiver", _FOURIER),
    _perceiver("mixed", "mixed_latents:Perceiver", _FOURIER),
    _perceiver(
        "io",
        "perceiver_io:PerceiverIO",
        {**_PERCEIVER, "dim": 32, "queries_dim": 24, "logits_dim": 10},
        {"0": real(2, 16, 32), "queries": real(6, 24)},
    ),
    _perceiver(
        "lm",
        "perceiver_io:PerceiverLM",
        {**_PERCEIVER, "dim": 32, "num_tokens": 120, "max_seq_len": 16},
        {"0": ids(2, 16)},
    ),
    _row(
        "x_clip",
        "x_clip",
        "x_clip.x_clip:VisionTransformer",
        {"0": real(2, 3, 32, 32)},
        {"dim": 48, "image_size": 32, "patch_size": 8, "channels": 3, "depth": 2, "dim_head": 12, "heads": 4},
    ),
    _row(
        "x_clip-text",
        "x_clip",
        "x_clip.x_clip:TextTransformer",
        {"0": ids(2, 16)},
        {"dim": 48, "num_tokens": 120, "max_seq_len": 16, "depth": 2, "dim_head": 12, "heads": 4, "causal": True},
    ),
    _row(
        "coca_pytorch",
        "coca_pytorch",
        "coca_pytorch.coca_pytorch:CoCa",
        {"text": ids(2, 12), "image_tokens": real(2, 17, 48)},
        {
            "dim": 48,
            "num_tokens": 120,
            "unimodal_depth": 2,
            "multimodal_depth": 2,
            "image_dim": 48,
            "num_img_queries": 8,
            "dim_head": 12,
            "heads": 4,
        },
    ),
    _clip("vit", "model:CLIP", {}, {}),
    _clip(
        "attention-pool", "model:CLIP", {"attentional_pool": True, "attn_pooler_queries": 8, "attn_pooler_heads": 4}, {}
    ),
    _clip(
        "layer-scale",
        "model:CLIP",
        {"ls_init_value": 0.1, "pool_type": "avg", "final_ln_after_pool": True},
        {"pool_type": "last"},
    ),
    _clip("quick-gelu", "model:CLIP", {}, {}, quick_gelu=True),
)
