"""Diffusion models: images, video, sound."""

from __future__ import annotations

import torch

from .table import Row, given, ids, number, real

_STEPS = number(3, 7)
_NOISE = number(0.3, 0.7)
_TEXT = real(2, 7, 32)
_PADDED = given(lambda: torch.tensor([[1] * 7, [1] * 5 + [0] * 2]))
_BARE = {"return_dict": given(lambda: False)}


def _image(name: str, model: str, sizes: dict, inputs: dict, kind: str = "diffusion, image", **facts: object) -> Row:
    return Row(name, kind, "diffusers", model, sizes, {**inputs, **({} if model == "UVit2DModel" else _BARE)}, **facts)  # type: ignore[arg-type]


def _video(name: str, model: str, sizes: dict, inputs: dict, **facts: object) -> Row:
    return _image(name, model, sizes, inputs, "diffusion, video", **facts)


def _sound(name: str, model: str, sizes: dict, inputs: dict, **facts: object) -> Row:
    return _image(name, model, sizes, inputs, "diffusion, audio", **facts)


_HEADS = {"num_attention_heads": 4, "attention_head_dim": 12}
_UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 2,
    "cross_attention_dim": 32,
    "norm_num_groups": 4,
}

ROWS = (
    _image(
        "dit",
        "DiTTransformer2DModel",
        {**_HEADS, "in_channels": 4, "out_channels": 8, "num_layers": 3, "sample_size": 8, "patch_size": 2}
        | {"num_embeds_ada_norm": 10, "norm_num_groups": 4},
        {"hidden_states": real(2, 4, 8, 8), "timestep": _STEPS, "class_labels": number(1, 2)},
        fast=True,
    ),
    _image(
        "pixart",
        "PixArtTransformer2DModel",
        {**_HEADS, "in_channels": 4, "out_channels": 8, "num_layers": 3, "sample_size": 8, "patch_size": 2}
        | {"cross_attention_dim": 48, "caption_channels": 32, "norm_num_groups": 4, "use_additional_conditions": False},
        {
            "hidden_states": real(2, 4, 8, 8),
            "encoder_hidden_states": _TEXT,
            "timestep": _STEPS,
            "encoder_attention_mask": _PADDED,
            "added_cond_kwargs": given(lambda: {"resolution": None, "aspect_ratio": None}),
        },
    ),
    _image(
        "flux",
        "FluxTransformer2DModel",
        {"patch_size": 1, "in_channels": 4, "num_layers": 3, "num_single_layers": 3, "attention_head_dim": 16}
        | {"num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32}
        | {"axes_dims_rope": (4, 4, 8), "guidance_embeds": False},
        {
            "hidden_states": real(2, 16, 4),
            "encoder_hidden_states": _TEXT,
            "pooled_projections": real(2, 32),
            "timestep": _NOISE,
            "img_ids": real(16, 3),
            "txt_ids": real(7, 3),
        },
        fast=True,
    ),
    _image(
        "flux2",
        "Flux2Transformer2DModel",
        {"patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 3, "attention_head_dim": 16}
        | {"num_attention_heads": 2, "joint_attention_dim": 32, "timestep_guidance_channels": 32}
        | {"axes_dims_rope": (4, 4, 4, 4), "guidance_embeds": False},
        {
            "hidden_states": real(2, 16, 4),
            "encoder_hidden_states": _TEXT,
            "timestep": _NOISE,
            "img_ids": real(16, 4),
            "txt_ids": real(7, 4),
        },
    ),
    _image(
        "sd3",
        "SD3Transformer2DModel",
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 4, "attention_head_dim": 12}
        | {"num_attention_heads": 4, "joint_attention_dim": 32, "caption_projection_dim": 48}
        | {"pooled_projection_dim": 32, "out_channels": 4, "pos_embed_max_size": 16}
        | {"dual_attention_layers": (0,), "qk_norm": "rms_norm"},
        {
            "hidden_states": real(2, 4, 8, 8),
            "encoder_hidden_states": _TEXT,
            "pooled_projections": real(2, 32),
            "timestep": _STEPS,
        },
    ),
    _image(
        "auraflow",
        "AuraFlowTransformer2DModel",
        {"sample_size": 8, "in_channels": 4, "num_mmdit_layers": 2, "num_single_dit_layers": 2}
        | {"attention_head_dim": 12, "num_attention_heads": 4, "joint_attention_dim": 32}
        | {"caption_projection_dim": 48, "pos_embed_max_size": 16},
        {"hidden_states": real(2, 4, 8, 8), "encoder_hidden_states": _TEXT, "timestep": _NOISE},
    ),
    _image(
        "chroma",
        "ChromaTransformer2DModel",
        {"in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
        | {"joint_attention_dim": 32, "axes_dims_rope": (4, 4, 8), "approximator_num_channels": 8}
        | {"approximator_hidden_dim": 24, "approximator_layers": 2},
        {
            "hidden_states": real(2, 16, 4),
            "encoder_hidden_states": _TEXT,
            "timestep": _NOISE,
            "img_ids": real(16, 3),
            "txt_ids": real(7, 3),
        },
    ),
    _image(
        "qwen-image",
        "QwenImageTransformer2DModel",
        {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 3, "attention_head_dim": 16}
        | {"num_attention_heads": 3, "joint_attention_dim": 32, "axes_dims_rope": (8, 4, 4)},
        {
            "hidden_states": real(2, 16, 16),
            "encoder_hidden_states": _TEXT,
            "encoder_hidden_states_mask": given(lambda: torch.ones(2, 7, dtype=torch.long)),
            "timestep": _NOISE,
            "img_shapes": given(lambda: [(1, 4, 4)] * 2),
        },
    ),
    _image(
        "lumina2",
        "Lumina2Transformer2DModel",
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "num_layers": 2}
        | {"num_refiner_layers": 2, "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 16}
        | {"axes_dim_rope": (4, 2, 2), "axes_lens": (64, 64, 64), "cap_feat_dim": 32},
        {
            "hidden_states": real(2, 4, 8, 8),
            "timestep": _NOISE,
            "encoder_hidden_states": _TEXT,
            "encoder_attention_mask": given(lambda: torch.ones(2, 7, dtype=torch.bool)),
        },
    ),
    _image(
        "lumina-next",
        "LuminaNextDiT2DModel",
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "num_layers": 2}
        | {"num_attention_heads": 3, "num_kv_heads": 3, "multiple_of": 16, "cross_attention_dim": 32},
        {
            "hidden_states": real(2, 4, 8, 8),
            "timestep": _NOISE,
            "encoder_hidden_states": _TEXT,
            "encoder_mask": _PADDED,
            "image_rotary_emb": given(lambda: torch.polar(torch.ones(384, 384, 4), torch.rand(384, 384, 4))),
            "cross_attention_kwargs": given(lambda: {"base_sequence_length": None}),
        },
    ),
    _image(
        "sana",
        "SanaTransformer2DModel",
        {"in_channels": 4, "out_channels": 4, "num_layers": 2, **_HEADS, "num_cross_attention_heads": 4}
        | {"cross_attention_head_dim": 12, "cross_attention_dim": 48, "caption_channels": 32, "sample_size": 8},
        {"hidden_states": real(2, 4, 8, 8), "encoder_hidden_states": _TEXT, "timestep": _STEPS},
        linear=("SanaLinearAttnProcessor2_0",),
    ),
    _image(
        "hunyuan-dit",
        "HunyuanDiT2DModel",
        {**_HEADS, "in_channels": 4, "patch_size": 2, "sample_size": 8, "hidden_size": 48, "num_layers": 4}
        | {"cross_attention_dim": 32, "cross_attention_dim_t5": 32, "pooled_projection_dim": 16, "text_len": 7}
        | {"text_len_t5": 7, "use_style_cond_and_image_meta_size": False},
        {
            "hidden_states": real(2, 4, 8, 8),
            "timestep": number(3.0, 7.0),
            "encoder_hidden_states": _TEXT,
            "text_embedding_mask": _PADDED,
            "encoder_hidden_states_t5": _TEXT,
            "text_embedding_mask_t5": _PADDED,
            "image_rotary_emb": given(lambda: (torch.randn(16, 12), torch.randn(16, 12))),
        },
    ),
    _image(
        "cogview4",
        "CogView4Transformer2DModel",
        {"in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4}
        | {"text_embed_dim": 32, "time_embed_dim": 16, "condition_dim": 8, "sample_size": 8, "rope_axes_dim": (8, 8)},
        {
            "hidden_states": real(2, 4, 8, 8),
            "encoder_hidden_states": _TEXT,
            "timestep": _STEPS,
            "original_size": real(2, 2),
            "target_size": real(2, 2),
            "crop_coords": real(2, 2),
        },
    ),
    _image(
        "prior",
        "PriorTransformer",
        {**_HEADS, "num_layers": 2, "embedding_dim": 24, "num_embeddings": 7},
        {
            "hidden_states": real(2, 24),
            "timestep": _STEPS,
            "proj_embedding": real(2, 24),
            "encoder_hidden_states": real(2, 7, 24),
        },
    ),
    _image(
        "hidream",
        "HiDreamImageTransformer2DModel",
        {"patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2}
        | {"attention_head_dim": 8, "num_attention_heads": 4, "caption_channels": [32, 16], "text_emb_dim": 24}
        | {"num_routed_experts": 4, "num_activated_experts": 2, "axes_dims_rope": (4, 2, 2), "max_resolution": (8, 8)}
        | {"llama_layers": (0, 1, 0, 1), "force_inference_output": True},
        {
            "hidden_states": real(2, 4, 8, 8),
            "encoder_hidden_states_t5": _TEXT,
            "encoder_hidden_states_llama3": real(2, 2, 7, 16),
            "pooled_embeds": real(2, 24),
            "timesteps": _STEPS,
        },
    ),
    _image(
        "prx",
        "PRXTransformer2DModel",
        {"in_channels": 4, "patch_size": 2, "context_in_dim": 32, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2}
        | {"depth": 2, "axes_dim": [8, 8]},
        {"hidden_states": real(2, 4, 8, 8), "timestep": _NOISE, "encoder_hidden_states": _TEXT},
    ),
    _image(
        "unet-text",
        "UNet2DConditionModel",
        {**_UNET, "in_channels": 4, "out_channels": 4, "attention_head_dim": 4}
        | {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
        | {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
        {"sample": real(2, 4, 8, 8), "timestep": _STEPS, "encoder_hidden_states": _TEXT},
    ),
    _image(
        "unet",
        "UNet2DModel",
        {"sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": (16, 32), "norm_num_groups": 4}
        | {"layers_per_block": 2, "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D")}
        | {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
        {"sample": real(2, 3, 8, 8), "timestep": _STEPS},
    ),
    _image(
        "uvit",
        "UVit2DModel",
        {"hidden_size": 32, "cond_embed_dim": 16, "micro_cond_encode_dim": 4, "micro_cond_embed_dim": 20}
        | {"encoder_hidden_size": 32, "vocab_size": 40, "codebook_size": 36, "in_channels": 32}
        | {"block_out_channels": 32, "num_res_blocks": 2, "block_num_heads": 4, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "intermediate_size": 64, "sample_size": 8},
        {
            "input_ids": ids(2, 8, 8, high=36),
            "encoder_hidden_states": _TEXT,
            "pooled_text_emb": real(2, 16),
            "micro_conds": real(2, 5),
        },
    ),
    _image(
        "controlnet",
        "ControlNetModel",
        {key: value for key, value in _UNET.items() if key != "sample_size"}
        | {"in_channels": 4, "attention_head_dim": 4, "conditioning_embedding_out_channels": (8, 8)}
        | {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")},
        {
            "sample": real(2, 4, 8, 8),
            "timestep": _STEPS,
            "encoder_hidden_states": _TEXT,
            "controlnet_cond": real(2, 3, 16, 16),
        },
    ),
    _image(
        "vae",
        "AutoencoderKL",
        {"block_out_channels": (16, 32), "norm_num_groups": 4, "layers_per_block": 2, "sample_size": 16}
        | {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2},
        {"sample": real(2, 3, 16, 16)},
    ),
    _video(
        "wan",
        "WanTransformer3DModel",
        {**_HEADS, "in_channels": 4, "out_channels": 4, "text_dim": 32, "freq_dim": 16, "ffn_dim": 64}
        | {"num_layers": 3, "rope_max_seq_len": 32},
        {"hidden_states": real(2, 4, 2, 8, 8), "timestep": _STEPS, "encoder_hidden_states": _TEXT},
    ),
    _video(
        "ltx",
        "LTXVideoTransformer3DModel",
        {"in_channels": 8, "out_channels": 8, **_HEADS, "cross_attention_dim": 48, "num_layers": 2}
        | {"caption_channels": 32},
        {
            "hidden_states": real(2, 32, 8),
            "encoder_hidden_states": _TEXT,
            "timestep": _STEPS,
            "encoder_attention_mask": _PADDED,
            "num_frames": given(lambda: 2),
            "height": given(lambda: 4),
            "width": given(lambda: 4),
        },
        fast=True,
    ),
    _video(
        "hunyuan-video",
        "HunyuanVideoTransformer3DModel",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 2}
        | {"num_single_layers": 2, "num_refiner_layers": 2, "patch_size": 2, "text_embed_dim": 32}
        | {"pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4), "guidance_embeds": False},
        {
            "hidden_states": real(2, 4, 2, 8, 8),
            "timestep": _STEPS,
            "encoder_hidden_states": _TEXT,
            "encoder_attention_mask": _PADDED,
            "pooled_projections": real(2, 8),
        },
    ),
    _video(
        "cogvideox",
        "CogVideoXTransformer3DModel",
        {**_HEADS, "in_channels": 4, "out_channels": 4, "time_embed_dim": 16, "text_embed_dim": 32, "num_layers": 2}
        | {"sample_width": 8, "sample_height": 8, "sample_frames": 5, "max_text_seq_length": 7},
        {"hidden_states": real(2, 2, 4, 8, 8), "encoder_hidden_states": _TEXT, "timestep": _STEPS},
    ),
    _video(
        "mochi",
        "MochiTransformer3DModel",
        {**_HEADS, "num_layers": 3, "pooled_projection_dim": 16, "in_channels": 4, "text_embed_dim": 32}
        | {"time_embed_dim": 12, "max_sequence_length": 7},
        {
            "hidden_states": real(2, 4, 2, 8, 8),
            "encoder_hidden_states": _TEXT,
            "timestep": _STEPS,
            "encoder_attention_mask": given(lambda: torch.ones(2, 7, dtype=torch.bool)),
        },
    ),
    _video(
        "latte",
        "LatteTransformer3DModel",
        {**_HEADS, "in_channels": 4, "out_channels": 8, "num_layers": 2, "cross_attention_dim": 48, "sample_size": 8}
        | {"patch_size": 2, "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000}
        | {"norm_type": "ada_norm_single", "norm_elementwise_affine": False, "caption_channels": 32}
        | {"video_length": 2},
        {"hidden_states": real(2, 4, 2, 8, 8), "timestep": _STEPS, "encoder_hidden_states": _TEXT},
    ),
    _video(
        "allegro",
        "AllegroTransformer3DModel",
        {**_HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "cross_attention_dim": 48}
        | {"sample_height": 8, "sample_width": 8, "sample_frames": 2, "caption_channels": 32},
        {
            "hidden_states": real(2, 4, 2, 8, 8),
            "timestep": _STEPS,
            "encoder_hidden_states": _TEXT,
            "image_rotary_emb": given(
                lambda: (
                    ((torch.randn(8, 4), torch.randn(8, 4)),) * 3,
                    (torch.arange(32).remainder(8)[None],) * 3,
                )
            ),
        },
    ),
    _video(
        "cosmos",
        "CosmosTransformer3DModel",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}
        | {"mlp_ratio": 2.0, "text_embed_dim": 32, "adaln_lora_dim": 4, "max_size": (4, 32, 32)}
        | {"extra_pos_embed_type": None},
        {
            "hidden_states": real(2, 4, 2, 8, 8),
            "timestep": _NOISE,
            "encoder_hidden_states": _TEXT,
            "fps": given(lambda: 30),
            "padding_mask": given(lambda: torch.zeros(1, 1, 8, 8)),
        },
    ),
    _video(
        "skyreels",
        "SkyReelsV2Transformer3DModel",
        {**_HEADS, "in_channels": 4, "out_channels": 4, "text_dim": 32, "freq_dim": 16, "ffn_dim": 64}
        | {"num_layers": 2, "rope_max_seq_len": 32},
        {"hidden_states": real(2, 4, 2, 8, 8), "timestep": _STEPS, "encoder_hidden_states": _TEXT},
    ),
    _video(
        "unet-video",
        "UNet3DConditionModel",
        {**_UNET, "attention_head_dim": 4}
        | {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D")}
        | {"up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
        {"sample": real(2, 4, 2, 8, 8), "timestep": _STEPS, "encoder_hidden_states": _TEXT},
    ),
    _sound(
        "stable-audio",
        "StableAudioDiTModel",
        {"sample_size": 8, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4}
        | {"num_key_value_attention_heads": 2, "out_channels": 4, "cross_attention_dim": 16, "time_proj_dim": 8}
        | {"global_states_input_dim": 16, "cross_attention_input_dim": 32},
        {
            "hidden_states": real(2, 4, 8),
            "timestep": _NOISE,
            "encoder_hidden_states": _TEXT,
            "global_hidden_states": real(2, 1, 16),
            "rotary_embedding": given(lambda: (torch.randn(9, 4), torch.randn(9, 4))),
        },
        fast=True,
    ),
    _sound(
        "ace-step",
        "AceStepTransformer1DModel",
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "head_dim": 8, "in_channels": 24, "audio_acoustic_hidden_dim": 8}
        | {"sliding_window": 4},
        {
            "hidden_states": real(2, 16, 8),
            "timestep": _NOISE,
            "timestep_r": _NOISE,
            "encoder_hidden_states": _TEXT,
            "context_latents": real(2, 16, 16),
        },
    ),
    _sound(
        "minimax-music",
        "MiniMaxMusic3Transformer1DModel",
        {"in_channels": 8, "condition_dim": 32, "num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 8}
        | {"ff_inner_dim": 64, "rotary_dim": 4, "fourier_embedding_dim": 8},
        {"hidden_states": real(2, 8, 8), "timestep": _NOISE, "encoder_hidden_states": real(2, 8, 32)},
    ),
    _sound(
        "longcat-audio",
        "LongCatAudioDiTTransformer",
        {"dit_dim": 32, "dit_depth": 2, "dit_heads": 4, "dit_text_dim": 32, "latent_dim": 8, "ff_mult": 2.0}
        | {"use_latent_condition": False, "long_skip": False},
        {
            "hidden_states": real(2, 8, 8),
            "encoder_hidden_states": _TEXT,
            "encoder_attention_mask": _PADDED,
            "timestep": _NOISE,
        },
    ),
)
