"""Rows of libraries of images that detection was not made for: recognition, segmentation, detection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .table import Row, Value, part, real


def _row(
    name: str, library: str, path: str, inputs: Mapping[str, Value], sizes: Mapping[str, Any], **facts: Any
) -> Row:
    return Row(name.replace("_", "-"), "images, sound", library, path, sizes, inputs, **facts)


def _smp(name: str, cls: str, encoder: str = "resnet18", **sizes: Any) -> Row:
    sizes = {"encoder_name": encoder, "encoder_weights": None, **sizes}
    return _row(
        f"segmentation_models_pytorch-{name}",
        "segmentation_models_pytorch",
        f"segmentation_models_pytorch:{cls}",
        {"0": real(1, 3, 64, 64)},
        sizes,
    )


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

ROWS = (
    _smp("unet", "Unet"),
    _smp("fpn", "FPN"),
    _smp("segformer", "Segformer", "mit_b0"),
    _smp("upernet", "UPerNet", "mit_b0"),
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
