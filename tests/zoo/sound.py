"""Sound, and models of several senses."""

from __future__ import annotations

from typing import Any

import torch

from .table import Row, given, ids, real

_WAVE = {"input_values": real(2, 2000)}
_EARS = {
    "conv_dim": [16, 16],
    "conv_stride": [8, 4],
    "conv_kernel": [10, 8],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}


def _sound(name: str, model: str, sizes: dict[str, Any], inputs: Any, **facts: Any) -> Row:
    return Row(name, "audio", "transformers", model, sizes, inputs, **facts)


def _both(name: str, model: str, sizes: dict[str, Any], inputs: Any, **facts: Any) -> Row:
    return Row(name, "vision-language", "transformers", model, sizes, inputs, **facts)


def _prompt(places: int, token: int) -> Any:
    """Tokens with ``places`` places in the middle that an image fills."""

    def make() -> torch.Tensor:
        tokens = torch.randint(10, 100, (2, places + 6))
        tokens[:, 2 : 2 + places] = token
        return tokens

    return given(make)


_CLIP = {"text_config": {}, "vision_config": {}, "projection_dim": 24}
_PICTURE = real(2, 3, 32, 32)

ROWS = (
    _sound(
        "whisper",
        "WhisperModel",
        {"max_source_positions": 32, "max_target_positions": 32, "num_mel_bins": 16},
        {"input_features": real(2, 16, 64), "decoder_input_ids": ids(2, 7)},
        fast=True,
    ),
    _sound("wav2vec2", "Wav2Vec2Model", _EARS, _WAVE),
    _sound("hubert", "HubertModel", _EARS, _WAVE),
    _sound("wavlm", "WavLMModel", _EARS, _WAVE),
    _sound("wav2vec2-conformer", "Wav2Vec2ConformerModel", _EARS, _WAVE),
    _sound("data2vec-audio", "Data2VecAudioModel", {**_EARS, "conv_pos_kernel_size": 3}, _WAVE),
    _sound("sew", "SEWModel", {**_EARS, "squeeze_factor": 2}, _WAVE),
    _sound(
        "ast",
        "ASTModel",
        {"max_length": 32, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8, "time_stride": 8},
        {"input_values": real(2, 32, 16)},
    ),
    _sound(
        "speech-to-text",
        "Speech2TextModel",
        {"input_feat_per_channel": 16, "conv_channels": 32, "max_source_positions": 64, "max_target_positions": 32},
        {"input_features": real(2, 32, 16), "decoder_input_ids": ids(2, 7)},
    ),
    _sound("moonshine", "MoonshineModel", {}, {"input_values": real(2, 4000), "decoder_input_ids": ids(2, 7)}),
    _sound(
        "wav2vec2-bert", "Wav2Vec2BertModel", {"feature_projection_input_dim": 16}, {"input_features": real(2, 20, 16)}
    ),
    _both("clip", "CLIPModel", _CLIP, {"input_ids": ids(2, 12), "pixel_values": _PICTURE}, fast=True),
    _both(
        "siglip",
        "SiglipModel",
        {"text_config": {}, "vision_config": {}},
        {"input_ids": ids(2, 12), "pixel_values": _PICTURE},
    ),
    _both(
        "blip",
        "BlipModel",
        {"text_config": {"encoder_hidden_size": 48}, "vision_config": {}, "projection_dim": 24},
        {"input_ids": ids(2, 12), "pixel_values": _PICTURE},
    ),
    _both(
        "llava",
        "LlavaModel",
        {
            "text_config": {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 96}
            | {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 120},
            "vision_config": {"model_type": "clip_vision_model", "hidden_size": 48, "intermediate_size": 96}
            | {"num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8},
        }
        | {"image_token_index": 5},
        {"input_ids": _prompt(16, 5), "pixel_values": _PICTURE},
    ),
    _both(
        "paligemma",
        "PaliGemmaModel",
        {
            "text_config": {"model_type": "gemma", "num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 96}
            | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 120},
            "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 48, "intermediate_size": 96}
            | {"num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
            | {"vision_use_head": False},
        }
        | {"image_token_index": 5, "projection_dim": 48},
        {"input_ids": _prompt(16, 5), "pixel_values": _PICTURE},
    ),
    _both(
        "vilt",
        "ViltModel",
        {},
        {
            "input_ids": ids(2, 12),
            "pixel_values": _PICTURE,
            "pixel_mask": given(lambda: torch.ones(2, 32, 32, dtype=torch.long)),
        },
    ),
    _both(
        "lxmert",
        "LxmertModel",
        {"l_layers": 2, "x_layers": 2, "r_layers": 2, "visual_feat_dim": 16, "num_hidden_layers": 2},
        {"input_ids": ids(2, 12), "visual_feats": real(2, 5, 16), "visual_pos": given(lambda: torch.rand(2, 5, 4))},
    ),
    _both(
        "visual-bert",
        "VisualBertModel",
        {"visual_embedding_dim": 16},
        {"input_ids": ids(2, 12), "visual_embeds": real(2, 5, 16)},
    ),
    _both(
        "mllama-text",
        "MllamaForCausalLM",
        {"cross_attention_layers": [1], "num_hidden_layers": 3},
        {"input_ids": ids(2, 12)},
    ),
    _both(
        "qformer",
        "Blip2QFormerModel",
        {"encoder_hidden_size": 24},
        {"query_embeds": real(2, 5, 48), "encoder_hidden_states": real(2, 9, 24)},
    ),
    _both(
        "detr",
        "DetrModel",
        {"use_timm_backbone": True, "backbone": "resnet18", "use_pretrained_backbone": False, "num_queries": 5}
        | {"backbone_config": None},
        {"pixel_values": real(2, 3, 64, 64)},
    ),
)
