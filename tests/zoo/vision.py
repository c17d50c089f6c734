"""Vision: timm's models by registered name, and those of transformers."""

from __future__ import annotations

from typing import Any

from .table import IMAGE, Named, Row, real

_X = {"x": real(2, 3, 32, 32)}
_LARGER = {"x": real(2, 3, 64, 64)}
_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 10}


def _timm(name: str, model: str, sizes: dict[str, Any], inputs: Any = None, **facts: Any) -> Row:
    return Row(name, "vision", "timm", model, sizes, inputs or _X, **facts)


def _hub(name: str, model: str, sizes: dict[str, Any] | None = None, inputs: Any = None, **facts: Any) -> Row:
    return Row(name, "vision", "transformers", model, sizes or {}, inputs or IMAGE, **facts)


ROWS = (
    _timm("timm-vit", "vit_small_patch16_224", _VIT, fast=True),
    _timm("timm-vit-parallel", "vit_small_patch16_36x1_224", _VIT),
    _timm("timm-vit-22b", "vit_base_patch16_xp_224", _VIT),
    _timm("timm-deit3", "deit3_small_patch16_224", _VIT),
    _timm("timm-eva02", "eva02_tiny_patch14_224", _VIT),
    _timm("timm-cait", "cait_xxs24_224", {**_VIT, "depth_token_only": 2}),
    _timm("timm-beit", "beit_base_patch16_224", _VIT),
    _timm(
        "timm-swin",
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "embed_dim": 24, "depths": (2, 2)}
        | {"num_heads": (2, 4), "window_size": 4, "num_classes": 10},
        _LARGER,
    ),
    _timm(
        "timm-swinv2",
        "swinv2_tiny_window8_256",
        {"img_size": 64, "embed_dim": 24, "depths": (2, 2)}
        | {"num_heads": (2, 4), "window_size": 4, "num_classes": 10},
        _LARGER,
    ),
    _timm(
        "timm-convnext",
        "convnext:ConvNeXt",
        {"depths": (1, 1, 3, 2), "dims": (8, 16, 24, 32), "num_classes": 10},
        fast=True,
    ),
    _timm(
        "timm-convnextv2",
        "convnext:ConvNeXt",
        {"depths": (1, 1, 3, 2), "dims": (8, 16, 24, 32), "num_classes": 10, "use_grn": True},
    ),
    _timm("timm-mixer", "mlp_mixer:MlpMixer", {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_blocks": 3}),
    _timm(
        "timm-resmlp",
        "mlp_mixer:MlpMixer",
        {
            "mlp_ratio": 4,
            "block_layer": Named("mlp_mixer:ResBlock"),
            "norm_layer": Named("mlp_mixer:Affine"),
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 48,
            "num_blocks": 3,
        },
    ),
    _timm(
        "timm-gmlp",
        "mlp_mixer:MlpMixer",
        {
            "mlp_ratio": 4,
            "block_layer": Named("mlp_mixer:SpatialGatingBlock"),
            "mlp_layer": Named("mlp_mixer:GatedMlp"),
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 48,
            "num_blocks": 3,
        },
    ),
    _timm("timm-poolformer", "metaformer:MetaFormer", {"depths": (2, 2, 2, 2), "dims": (8, 16, 24, 32)}, _LARGER),
    _timm(
        "timm-convformer",
        "metaformer:MetaFormer",
        {"token_mixers": [Named("metaformer:SepConv")] * 4, "depths": (2, 2, 2, 2), "dims": (8, 16, 32, 64)},
        _LARGER,
    ),
    _timm("timm-pvt", "pvt_v2_b0", {}, _LARGER),
    _timm(
        "timm-twins",
        "twins_svt_small",
        {"img_size": 64, "depths": (2, 2, 2, 2), "embed_dims": (16, 32, 48, 64)} | {"num_heads": (1, 2, 3, 4)},
        _LARGER,
    ),
    _timm("timm-xcit", "xcit_nano_12_p16_224", {"img_size": 32, "embed_dim": 48, "depth": 3, "num_heads": 4}),
    _timm("timm-coat", "coat_tiny", {"img_size": 64}, _LARGER, linear=("FactorAttnConvRelPosEnc",)),
    _timm(
        "timm-levit",
        "levit_128s",
        {"img_size": 64, "embed_dim": (32, 48, 64), "num_heads": (2, 3, 4)} | {"depth": (2, 2, 2)},
        _LARGER,
    ),
    _timm(
        "timm-maxvit",
        "maxvit_rmlp_pico_rw_256",
        {"img_size": 64, "depths": (2, 2), "embed_dim": (32, 64)} | {"block_type": ("M", "M"), "num_classes": 10},
        _LARGER,
    ),
    _timm(
        "timm-volo",
        "volo:VOLO",
        {"img_size": 64, "layers": (2, 2, 2, 2), "embed_dims": (16, 32, 32, 32)} | {"num_heads": (2, 4, 4, 4)},
        _LARGER,
    ),
    _timm("timm-hiera", "hiera_tiny_224", {"img_size": (64, 64), "embed_dim": 16, "stages": (1, 2, 2, 1)}, _LARGER),
    _timm("timm-mvitv2", "mvitv2_tiny", {"img_size": 64}, _LARGER),
    _timm("timm-davit", "davit_tiny", {"depths": (2, 2), "embed_dims": (24, 48), "num_heads": (2, 4)}, _LARGER),
    _timm("timm-focalnet", "focalnet:FocalNet", {"embed_dim": 16, "depths": (2, 2)}, _LARGER),
    _timm(
        "timm-efficientformer",
        "efficientformer_l1",
        {"depths": (2, 2, 2, 2), "embed_dims": (16, 24, 32, 48)},
        {"x": real(2, 3, 224, 224)},
    ),
    _timm("timm-mobilevit", "mobilevit_xxs", {}, _LARGER),
    _timm("timm-edgenext", "edgenext_xx_small", {"dims": (8, 16, 24, 32), "depths": (2, 2, 2, 2)}, _LARGER),
    _timm("timm-resnet", "resnet18", {"num_classes": 10}, _LARGER),
    _timm(
        "timm-sequencer",
        "sequencer2d_s",
        {"img_size": 32, "embed_dims": (16, 32, 32, 32), "layers": (2, 2, 2, 2)} | {"hidden_sizes": (4, 8, 8, 8)},
        _LARGER,
    ),
    _timm(
        "timm-naflexvit",
        "naflexvit_base_patch16_gap",
        {"embed_dim": 48, "depth": 3, "num_heads": 4} | {"patch_size": 8, "num_classes": 10},
    ),
    _timm(
        "timm-gcvit",
        "gcvit:GlobalContextVit",
        {"img_size": 64, "depths": (2, 2), "num_heads": (2, 4), "embed_dim": 16} | {"window_ratio": (16, 8)},
        _LARGER,
    ),
    _hub("vit", "ViTModel"),
    _hub("deit", "DeiTModel"),
    _hub("beit", "BeitModel"),
    _hub("dinov2", "Dinov2Model"),
    _hub("dinov3", "DINOv3ViTModel"),
    _hub("vit-mae", "ViTMAEModel"),
    _hub("sam-vision", "SamVisionModel"),
    _hub("pixtral-vision", "PixtralVisionModel"),
    _hub("poolformer", "PoolFormerModel", {"depths": [2, 2, 2, 2], "hidden_sizes": [8, 16, 24, 32]}),
    _hub(
        "swin",
        "SwinModel",
        {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
        | {"image_size": 64, "patch_size": 4},
        {"pixel_values": real(2, 3, 64, 64)},
    ),
    _hub(
        "segformer",
        "SegformerModel",
        {"depths": [2, 2, 2, 2], "hidden_sizes": [8, 16, 24, 32]} | {"num_attention_heads": [1, 2, 3, 4]},
        {"pixel_values": real(2, 3, 64, 64)},
    ),
    _hub("videomae", "VideoMAEModel", {"num_frames": 4, "tubelet_size": 2}, {"pixel_values": real(2, 4, 3, 32, 32)}),
    _hub("timesformer", "TimesformerModel", {"num_frames": 4}, {"pixel_values": real(2, 4, 3, 32, 32)}),
    _hub("yolos", "YolosModel", {"image_size": [32, 32], "num_detection_tokens": 5}),
    _hub("siglip-vision", "SiglipVisionModel"),
    _hub("clip-vision", "CLIPVisionModel"),
    _hub(
        "mobilevit", "MobileViTModel", {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32]}
    ),
)
