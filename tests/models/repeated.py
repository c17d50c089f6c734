"""Further real models, for the blocks they repeat: parallel layers, alternating kinds, stages, hybrids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .builders import BUILDERS, Built, seeded, tokens

_SMALL: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}


def gptj(layers: int) -> Built:
    from transformers import GPTJConfig, GPTJModel

    config = GPTJConfig(
        vocab_size=120,
        n_positions=64,
        n_embd=48,
        n_layer=layers,
        n_head=4,
        rotary_dim=8,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
    )
    return GPTJModel(config), (), {"input_ids": tokens()}


def gemma3(layers: int) -> Built:
    from transformers import Gemma3TextConfig, Gemma3TextModel

    kinds = ["full_attention" if index % 3 == 2 else "sliding_attention" for index in range(layers)]
    config = Gemma3TextConfig(**_SMALL, num_hidden_layers=layers, head_dim=12, sliding_window=4, layer_types=kinds)
    return Gemma3TextModel(config), (), {"input_ids": tokens()}


def jamba(layers: int) -> Built:
    from transformers import JambaConfig, JambaModel

    config = JambaConfig(
        **_SMALL,
        num_hidden_layers=layers,
        attn_layer_period=4,
        attn_layer_offset=2,
        num_experts=1,
        mamba_d_state=4,
        mamba_dt_rank=8,
    )
    return JambaModel(config), (), {"input_ids": tokens(length=6)}


def swin(layers: int) -> Built:
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[2, layers], num_heads=[2, 4], window_size=4)
    return SwinModel(config), (torch.randn(2, 3, 32, 32),), {}


def convnext_stages(layers: int) -> Built:
    from timm.models.convnext import ConvNeXt

    model = ConvNeXt(depths=(2, 3, layers, 2), dims=(16, 24, 32, 40), num_classes=10, patch_size=2)
    return model, (torch.randn(2, 3, 32, 32),), {}


REPEATED: dict[str, Callable[..., Built]] = {
    **BUILDERS,
    **{make.__name__: seeded(make) for make in (gptj, gemma3, jamba, swin, convnext_stages)},
}
