"""Rows of libraries of speech and sound that detection was not made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .table import Row, Value, given, ids, real


def _row(
    name: str, library: str, path: str, inputs: Mapping[str, Value], sizes: Mapping[str, Any], **facts: Any
) -> Row:
    return Row(name.replace("_", "-"), "images, sound", library, path, sizes, inputs, **facts)


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
        {"0": real(2, 20, 48), "1": given(lambda: torch.tensor([20, 15]))},
        {"input_dim": 48, "num_heads": 4, "ffn_dim": 96, "num_layers": 2, "depthwise_conv_kernel_size": 7},
    ),
    _row("torchaudio-wav2vec2", "torchaudio", "torchaudio.models:wav2vec2_model", {"0": real(2, 800)}, _WAV),
    _row(
        "torchaudio-emformer",
        "torchaudio",
        "torchaudio.models:Emformer",
        {"0": real(2, 20, 48), "1": given(lambda: torch.tensor([16, 16]))},
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
)
