"""The real models the suite runs on, built small from their configurations: no download, seconds to build.

``BUILDERS[name](layers)`` returns ``(module, args, kwargs)`` ready for ``module(*args, **kwargs)``: in evaluation mode,
seeded, the same on every call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .timm_support import declare_torchvision_operators

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

LAYERS = 2

# transformers and timm both import torchvision.
declare_torchvision_operators()


def tokens(vocabulary: int = 120, batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(1, vocabulary, (batch, length))


def bert(layers: int, attention: str = "sdpa") -> Built:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=120,
        hidden_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=96,
        attn_implementation=attention,
    )
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 9:] = 0
    return BertModel(config), (), {"input_ids": tokens(), "attention_mask": mask}


def vit(layers: int, attention: str = "sdpa") -> Built:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=96,
        attn_implementation=attention,
    )
    return ViTModel(config), (torch.randn(2, 3, 32, 32),), {}


def gpt2(layers: int, attention: str = "sdpa") -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=120,
        n_positions=64,
        n_embd=48,
        n_layer=layers,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        attn_implementation=attention,
    )
    return GPT2LMHeadModel(config), (), {"input_ids": tokens()}


def llama(layers: int, attention: str = "sdpa") -> Built:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=120,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        use_cache=False,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config), (), {"input_ids": tokens()}


def t5(layers: int) -> Built:
    from transformers import T5Config, T5Model

    config = T5Config(
        vocab_size=120,
        d_model=48,
        d_kv=12,
        d_ff=96,
        num_layers=layers,
        num_heads=4,
        use_cache=False,
        decoder_start_token_id=0,
    )
    return T5Model(config), (), {"input_ids": tokens(), "decoder_input_ids": tokens(length=7)}


def dit(layers: int) -> Built:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=layers,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_num_groups=4,
    )
    return (
        model,
        (torch.randn(2, 4, 8, 8),),
        {"timestep": torch.tensor([3, 7]), "class_labels": torch.tensor([1, 2]), "return_dict": False},
    )


def pixart(layers: int) -> Built:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=layers,
        sample_size=8,
        patch_size=2,
        cross_attention_dim=48,
        caption_channels=32,
        norm_num_groups=4,
        use_additional_conditions=False,
    )
    kwargs = {
        "encoder_hidden_states": torch.randn(2, 7, 32),
        "timestep": torch.tensor([3, 7]),
        "encoder_attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }
    return model, (torch.randn(2, 4, 8, 8),), kwargs


def flux(layers: int) -> Built:
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=layers,
        num_single_layers=layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=False,
    )
    kwargs = {
        "hidden_states": torch.randn(2, 16, 4),
        "encoder_hidden_states": torch.randn(2, 6, 32),
        "pooled_projections": torch.randn(2, 32),
        "timestep": torch.tensor([0.3, 0.7]),
        "img_ids": torch.randint(0, 4, (16, 3)).float(),
        "txt_ids": torch.zeros(6, 3),
        "return_dict": False,
    }
    return model, (), kwargs


def sd3(layers: int) -> Built:
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=layers,
        attention_head_dim=12,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=48,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    kwargs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 6, 32),
        "pooled_projections": torch.randn(2, 32),
        "timestep": torch.tensor([3, 7]),
        "return_dict": False,
    }
    return model, (), kwargs


def unet(layers: int) -> Built:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=layers,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    kwargs = {"encoder_hidden_states": torch.randn(2, 7, 32), "return_dict": False}
    return model, (torch.randn(2, 4, 8, 8), torch.tensor([3, 7])), kwargs


def timm_vit(layers: int, fused: bool = True) -> Built:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=layers, num_heads=4, num_classes=10, qk_norm=True
    )
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model, (torch.randn(2, 3, 32, 32),), {}


def convnext(layers: int) -> Built:
    from timm.models.convnext import ConvNeXt

    model = ConvNeXt(depths=(1, 1, layers, 1), dims=(16, 16, 32, 32), num_classes=10, patch_size=2)
    return model, (torch.randn(2, 3, 32, 32),), {}


def seeded(make: Callable[[int], Built]) -> Callable[..., Built]:
    def build(layers: int = LAYERS) -> Built:
        torch.manual_seed(0)
        module, args, kwargs = make(layers)
        return module.eval(), args, kwargs

    return build


BUILDERS: dict[str, Callable[..., Built]] = {
    "bert": seeded(bert),
    "vit": seeded(vit),
    "gpt2": seeded(gpt2),
    "llama-sdpa": seeded(llama),
    "llama-eager": seeded(lambda layers: llama(layers, "eager")),
    "t5": seeded(t5),
    "dit": seeded(dit),
    "pixart": seeded(pixart),
    "flux": seeded(flux),
    "sd3": seeded(sd3),
    "unet": seeded(unet),
    "timm-vit": seeded(timm_vit),
    "convnext": seeded(convnext),
}

# Further spellings of the same models; detection must not care.
SPELLINGS: dict[str, Callable[..., Built]] = {
    "bert-eager": seeded(lambda layers: bert(layers, "eager")),
    "vit-eager": seeded(lambda layers: vit(layers, "eager")),
    "gpt2-eager": seeded(lambda layers: gpt2(layers, "eager")),
    "timm-vit-unfused": seeded(lambda layers: timm_vit(layers, fused=False)),
}
