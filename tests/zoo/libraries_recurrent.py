"""Rows of libraries of recurrences and linear attention that detection was not made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .libraries_sequences import STREAM, TOKENS, layer, lm, row
from .table import Row, ids, part, real

_MLSTM = part(
    "xlstm:mLSTMBlockConfig",
    mlstm=part("xlstm:mLSTMLayerConfig", conv1d_kernel_size=4, qkv_proj_blocksize=4, num_heads=4),
)

_SLSTM = part(
    "xlstm:sLSTMBlockConfig",
    slstm=part("xlstm:sLSTMLayerConfig", backend="vanilla", num_heads=4, conv1d_kernel_size=4),
    feedforward=part("xlstm:FeedForwardConfig", proj_factor=1.3, act_fn="gelu"),
)

_XLSTM_SIZES = {"context_length": 16, "num_blocks": 2, "embedding_dim": 48, "vocab_size": 120}


def _xlstm(name: str, sizes: Mapping[str, Any], *recurrent: str) -> Row:
    config = part("xlstm:xLSTMLMModelConfig", **{**_XLSTM_SIZES, **sizes})
    return row(f"xlstm-{name}", "xlstm", "xlstm:xLSTMLMModel", TOKENS, {"config": config}, recurrent=recurrent)


_RETNET = {
    "decoder_embed_dim": 48,
    "decoder_value_embed_dim": 48,
    "decoder_retention_heads": 4,
    "decoder_ffn_embed_dim": 96,
    "decoder_layers": 2,
    "vocab_size": 120,
}

ROWS = (
    lm(
        "mega_pytorch",
        "mega_pytorch:Mega",
        {"heads": None, "dim_head": None, "ema_heads": 4, "attn_dim_qk": 12, "attn_dim_value": 48},
    ),
    lm(
        "mega_pytorch",
        "mega_pytorch:Mega",
        {
            "heads": None,
            "dim_head": None,
            "ema_heads": 4,
            "attn_dim_qk": 12,
            "attn_dim_value": 48,
            "laplacian_attn_fn": True,
        },
        "laplacian",
    ),
    lm("minGRU_pytorch", "minGRU_pytorch.minLM:minLM", {"heads": None, "dim_head": None}, recurrent=("minGRU",)),
    lm(
        "minGRU_pytorch",
        "minGRU_pytorch.minLM:minLM",
        {"heads": None, "dim_head": None, "use_lstm": True},
        "lstm",
        recurrent=("minLSTM",),
    ),
    lm("minGRU_pytorch", "minGRU_pytorch.hybridLM:hybridLM", None, "hybrid", recurrent=("minGRUAttnHybrid",)),
    lm(
        "gateloop_transformer",
        "gateloop_transformer:Transformer",
        {"checkpoint_gate_looped_attn": False},
        recurrent=("GateLoopedAttention",),
    ),
    lm("gateloop_transformer", "gateloop_transformer:Transformer", {"use_gate_looped_attn": False}, "full"),
    layer(
        "gateloop_transformer",
        "gateloop_transformer:SimpleGateLoopLayer",
        {},
        "simple",
        recurrent=("SimpleGateLoopLayer",),
    ),
    layer(
        "gateloop_transformer",
        "gateloop_transformer:SimpleGateLoopLayer",
        {"use_heinsen": True},
        "heinsen",
        recurrent=("SimpleGateLoopLayer",),
    ),
    layer(
        "taylor_series_linear_attention",
        "taylor_series_linear_attention:TaylorSeriesLinearAttn",
        {"dim_head": 4, "heads": 4},
        linear=("TaylorSeriesLinearAttn",),
    ),
    row(
        "taylor_series_linear_attention-vit",
        "taylor_series_linear_attention",
        "taylor_series_linear_attention.vit:ViT",
        {"0": real(2, 3, 32, 32)},
        {"image_size": 32, "patch_size": 8, "num_classes": 10, "dim": 48, "depth": 2, "heads": 4, "dim_head": 4},
        linear=("TaylorSeriesLinearAttn",),
    ),
    row(
        "yet_another_retnet",
        "yet_another_retnet",
        "yet_another_retnet.retnet:RetNetDecoder",
        {"0": real(2, 16, 64)},
        {
            "decoder_layer": part(
                "yet_another_retnet.retnet:RetNetDecoderLayer", d_model=64, nhead=4, dim_feedforward=96
            ),
            "num_layers": 2,
        },
        recurrent=("MultiScaleRetention",),
    ),
    row(
        "mambapy",
        "mambapy",
        "mambapy.mamba:Mamba",
        STREAM,
        {"config": part("mambapy.mamba:MambaConfig", d_model=48, n_layers=2, d_state=4)},
        recurrent=("MambaBlock",),
    ),
    row(
        "mambapy-sequential",
        "mambapy",
        "mambapy.mamba:Mamba",
        STREAM,
        {"config": part("mambapy.mamba:MambaConfig", d_model=48, n_layers=2, d_state=4, pscan=False)},
        recurrent=("MambaBlock",),
    ),
    row(
        "mambapy-vision",
        "mambapy",
        "mambapy.vim:VMamba",
        STREAM,
        {"config": part("mambapy.vim:MambaConfig", d_model=48, n_layers=2, d_state=4)},
        recurrent=("VMambaBlock",),
    ),
    row(
        "mambapy-jamba",
        "mambapy",
        "mambapy.jamba:JambaLM",
        TOKENS,
        {
            "config": part(
                "mambapy.jamba:JambaLMConfig",
                d_model=48,
                n_layers=4,
                mlp_size=96,
                d_state=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                num_experts=4,
                attn_layer_offset=1,
                attn_layer_period=2,
                vocab_size=120,
            )
        },
        recurrent=("MambaBlock",),
    ),
    _xlstm("mlstm", {"mlstm_block": _MLSTM}, "mLSTMCell"),
    _xlstm("slstm", {"slstm_block": _SLSTM, "slstm_at": [0, 1]}, "sLSTMCell_vanilla"),
    _xlstm("both", {"mlstm_block": _MLSTM, "slstm_block": _SLSTM, "slstm_at": [1]}, "mLSTMCell", "sLSTMCell_vanilla"),
    row(
        "torchscale-retnet",
        "torchscale",
        "torchscale.architecture.retnet:RetNetDecoder",
        {"prev_output_tokens": ids(2, 16)},
        {
            "args": part("torchscale.architecture.config:RetNetConfig", **_RETNET),
            "embed_tokens": part("torch.nn:Embedding", 120, 48),
        },
        recurrent=("MultiScaleRetention",),
    ),
)
