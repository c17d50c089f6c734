"""Rows of libraries of images, sound and diffusion that detection was not made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .table import Row, Value, given, ids, number, part, real


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


def _smp(name: str, cls: str, encoder: str = "resnet18", **sizes: Any) -> Row:
    sizes = {"encoder_name": encoder, "encoder_weights": None, **sizes}
    return _row(
        f"segmentation_models_pytorch-{name}",
        "segmentation_models_pytorch",
        f"segmentation_models_pytorch:{cls}",
        {"0": real(1, 3, 64, 64)},
        sizes,
    )


def _speech(name: str, inputs: Mapping[str, Value], path: str, **sizes: Any) -> Row:
    return _row(f"speechbrain-{name}", "speechbrain", f"speechbrain.lobes.models.transformer.{path}", inputs, sizes)


_ASR = {
    "tgt_vocab": 40,
    "input_size": 16,
    "d_model": 48,
    "nhead": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "d_ffn": 96,
    "kernel_size": 7,
    "dropout": 0.0,
}
_HEARD: Mapping[str, Value] = {"0": real(2, 20, 16), "1": ids(2, 6, high=40)}


def _torchvision(name: str, path: str, inputs: Mapping[str, Value], **sizes: Any) -> Row:
    return _row(f"torchvision-{name}", "torchvision", f"torchvision.models.{path}", inputs, sizes)


_PHOTO: Mapping[str, Value] = {"0": real(1, 3, 64, 64)}
_SWIN = {
    "patch_size": [4, 4],
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": [4, 4],
    "num_classes": 10,
}
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


_WAV = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [(16, 10, 5), (16, 3, 2)],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 48,
    "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2,
    "encoder_num_heads": 4,
    "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_features": 96,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.0,
    "aux_num_out": None,
}

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
        _VOLUME,
        in_channels=1,
        out_channels=2,
        img_size=(16, 16, 16),
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
    _smp("unet", "Unet"),
    _smp("fpn", "FPN"),
    _smp("segformer", "Segformer", "mit_b0"),
    _smp("upernet", "UPerNet", "mit_b0"),
    _speech("asr", _HEARD, "TransformerASR:TransformerASR", **_ASR),
    _speech(
        "conformer",
        _HEARD,
        "TransformerASR:TransformerASR",
        **_ASR,
        normalize_before=True,
        encoder_module="conformer",
        attention_type="RelPosMHAXL",
    ),
    _speech(
        "branchformer",
        _HEARD,
        "TransformerASR:TransformerASR",
        **_ASR,
        encoder_module="branchformer",
        csgu_linear_units=96,
    ),
    _speech("hypermixing", _HEARD, "TransformerASR:TransformerASR", **_ASR, attention_type="hypermixing"),
    _speech("rotary", _HEARD, "TransformerASR:TransformerASR", **_ASR, attention_type="RoPEMHA"),
    _speech(
        "lm",
        {"0": ids(2, 16)},
        "TransformerLM:TransformerLM",
        vocab=120,
        d_model=48,
        nhead=4,
        num_encoder_layers=2,
        d_ffn=96,
        dropout=0.0,
    ),
    _row(
        "torchaudio-conformer",
        "torchaudio",
        "torchaudio.models:Conformer",
        {"0": real(2, 20, 48), "1": given(lambda: __import__("torch").tensor([20, 15]))},
        {"input_dim": 48, "num_heads": 4, "ffn_dim": 96, "num_layers": 2, "depthwise_conv_kernel_size": 7},
    ),
    _row("torchaudio-wav2vec2", "torchaudio", "torchaudio.models:wav2vec2_model", {"0": real(2, 800)}, _WAV),
    _row(
        "torchaudio-emformer",
        "torchaudio",
        "torchaudio.models:Emformer",
        {"0": real(2, 20, 48), "1": given(lambda: __import__("torch").tensor([16, 16]))},
        {
            "input_dim": 48,
            "num_heads": 4,
            "ffn_dim": 96,
            "num_layers": 2,
            "segment_length": 4,
            "left_context_length": 4,
            "right_context_length": 4,
        },
    ),
    _row(
        "torchaudio-conv-tasnet",
        "torchaudio",
        "torchaudio.models:ConvTasNet",
        {"0": real(1, 1, 400)},
        {
            "enc_num_feats": 32,
            "msk_num_feats": 16,
            "msk_num_hidden_feats": 32,
            "msk_num_layers": 3,
            "msk_num_stacks": 2,
        },
    ),
    _row(
        "segment_anything-encoder",
        "segment_anything",
        "segment_anything.modeling:ImageEncoderViT",
        {"0": real(1, 3, 64, 64)},
        {
            "img_size": 64,
            "patch_size": 8,
            "embed_dim": 48,
            "depth": 4,
            "num_heads": 4,
            "out_chans": 16,
            "use_rel_pos": True,
            "window_size": 3,
            "global_attn_indexes": (1, 3),
        },
    ),
    _row(
        "segment_anything-decoder",
        "segment_anything",
        "segment_anything.modeling:TwoWayTransformer",
        {"0": real(1, 48, 8, 8), "1": real(1, 48, 8, 8), "2": real(1, 5, 48)},
        {"depth": 2, "embedding_dim": 48, "num_heads": 4, "mlp_dim": 96},
    ),
    _row(
        "sam2-hiera",
        "sam2",
        "sam2.modeling.backbones.hieradet:Hiera",
        {"0": real(1, 3, 64, 64)},
        {
            "embed_dim": 24,
            "num_heads": 1,
            "stages": (2, 2, 2, 2),
            "q_pool": 3,
            "window_pos_embed_bkg_spatial_size": (4, 4),
            "window_spec": (4, 2, 4, 2),
            "global_att_blocks": (5,),
        },
    ),
    _row(
        "sam2-memory",
        "sam2",
        "sam2.modeling.memory_attention:MemoryAttention",
        {
            "curr": real(16, 1, 48),
            "memory": real(16, 1, 16),
            "curr_pos": real(16, 1, 48),
            "memory_pos": real(16, 1, 16),
        },
        {
            "d_model": 48,
            "pos_enc_at_input": True,
            "num_layers": 2,
            "layer": part(
                "sam2.modeling.memory_attention:MemoryAttentionLayer",
                activation="relu",
                cross_attention=part(
                    "sam2.modeling.sam.transformer:RoPEAttention",
                    embedding_dim=48,
                    num_heads=1,
                    kv_in_dim=16,
                    feat_sizes=[4, 4],
                    rope_k_repeat=True,
                ),
                d_model=48,
                dim_feedforward=96,
                dropout=0.0,
                pos_enc_at_attn=False,
                pos_enc_at_cross_attn_keys=True,
                pos_enc_at_cross_attn_queries=False,
                self_attention=part(
                    "sam2.modeling.sam.transformer:RoPEAttention", embedding_dim=48, num_heads=1, feat_sizes=[4, 4]
                ),
            ),
        },
    ),
    _torchvision(
        "vit",
        "vision_transformer:VisionTransformer",
        _PHOTO,
        image_size=64,
        patch_size=16,
        num_layers=2,
        num_heads=4,
        hidden_dim=48,
        mlp_dim=96,
        num_classes=10,
    ),
    _torchvision("swin", "swin_transformer:SwinTransformer", _PHOTO, **_SWIN),
    _torchvision(
        "maxvit",
        "maxvit:MaxVit",
        _PHOTO,
        input_size=(64, 64),
        stem_channels=16,
        partition_size=2,
        block_channels=[16, 32],
        block_layers=[2, 2],
        head_dim=8,
        stochastic_depth_prob=0.0,
        num_classes=10,
    ),
    _torchvision("convnext", "convnext:convnext_tiny", _PHOTO),
    _torchvision("resnet", "resnet:resnet18", _PHOTO),
    _torchvision("mobilenet-v3", "mobilenetv3:mobilenet_v3_small", _PHOTO),
    _torchvision(
        "video-swin",
        "video.swin_transformer:SwinTransformer3d",
        {"0": real(1, 3, 4, 32, 32)},
        patch_size=[2, 4, 4],
        embed_dim=24,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=[2, 4, 4],
        num_classes=10,
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
    _row(
        "kornia-vit",
        "kornia",
        "kornia.models.vit:VisionTransformer",
        {"0": real(2, 3, 32, 32)},
        {"image_size": 32, "patch_size": 8, "in_channels": 3, "embed_dim": 48, "depth": 2, "num_heads": 4},
    ),
    _row(
        "ultralytics-yolo11",
        "ultralytics",
        "ultralytics.nn.tasks:DetectionModel",
        {"0": real(1, 3, 64, 64)},
        {"cfg": "yolo11n.yaml", "verbose": False},
    ),
    _row(
        "ultralytics-yolo12",
        "ultralytics",
        "ultralytics.nn.tasks:DetectionModel",
        {"0": real(1, 3, 64, 64)},
        {"cfg": "yolo12n.yaml", "verbose": False},
    ),
    _row(
        "ultralytics-rtdetr",
        "ultralytics",
        "ultralytics.nn.tasks:RTDETRDetectionModel",
        {"0": real(1, 3, 64, 64)},
        {"cfg": "rtdetr-resnet50.yaml", "verbose": False},
    ),
)
