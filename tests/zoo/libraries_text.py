"""Rows of libraries of sequence models that detection was not made for: transformers, recurrences, experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .table import Row, Value, given, ids, part, real

_TOKENS: Mapping[str, Value] = {"0": ids(2, 16)}
_STREAM: Mapping[str, Value] = {"0": real(2, 16, 48)}
_LM = {"num_tokens": 120, "dim": 48, "depth": 2, "heads": 4, "dim_head": 12}


def _row(
    name: str, library: str, path: str, inputs: Mapping[str, Value], sizes: Mapping[str, Any], **facts: Any
) -> Row:
    return Row(name.replace("_", "-"), "sequences", library, path, sizes, inputs, **facts)


def _lm(library: str, path: str, more: Mapping[str, Any] | None = None, name: str = "", **facts: Any) -> Row:
    """A language model with the usual names of sizes; None takes one away."""
    sizes = {name: value for name, value in {**_LM, **(more or {})}.items() if value is not None}
    return _row(f"{library}{name and '-'}{name}", library, path, facts.pop("inputs", _TOKENS), sizes, **facts)


def _layer(library: str, path: str, more: Mapping[str, Any], name: str = "", **facts: Any) -> Row:
    """One layer of a stream of width 48."""
    return _row(
        f"{library}{name and '-'}{name}", library, path, facts.pop("inputs", _STREAM), {"dim": 48, **more}, **facts
    )


_XLSTM = "xlstm:"
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
    return _row(f"xlstm-{name}", "xlstm", "xlstm:xLSTMLMModel", _TOKENS, {"config": config}, recurrent=recurrent)


_RETNET = {
    "decoder_embed_dim": 48,
    "decoder_value_embed_dim": 48,
    "decoder_retention_heads": 4,
    "decoder_ffn_embed_dim": 96,
    "decoder_layers": 2,
    "vocab_size": 120,
}
_LITGPT = {
    "block_size": 32,
    "vocab_size": 120,
    "padded_vocab_size": 128,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 48,
    "head_size": 12,
}


def _litgpt(name: str, sizes: Mapping[str, Any]) -> Row:
    config = part("litgpt.config:Config", **{**_LITGPT, **sizes})
    return _row(f"litgpt-{name}", "litgpt", "litgpt.model:GPT", _TOKENS, {"config": config})


_LLAMA = {
    "n_query_groups": 2,
    "rotary_percentage": 1.0,
    "parallel_residual": False,
    "bias": False,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "intermediate_size": 96,
}
_MIXTRAL = {**_LLAMA, "mlp_class_name": "LLaMAMoE", "n_expert": 4, "n_expert_per_token": 2, "moe_intermediate_size": 48}

ROWS = (
    _litgpt("pythia", {"parallel_residual": True}),
    _litgpt("pythia-shared-norm", {"parallel_residual": True, "shared_attention_norm": True, "bias": False}),
    _litgpt("llama", _LLAMA),
    _litgpt(
        "gemma2",
        {
            **_LLAMA,
            "mlp_class_name": "GemmaMLP",
            "gelu_approximate": "tanh",
            "scale_embeddings": True,
            "attention_scores_scalar": 12,
            "attention_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "post_attention_norm": True,
            "post_mlp_norm": True,
            "sliding_window_size": 8,
            "sliding_window_indices": [1, 0],
        },
    ),
    _litgpt("qwen3", {**_LLAMA, "norm_qk": True}),
    _litgpt(
        "olmo2",
        {
            **_LLAMA,
            "norm_qk": True,
            "norm_qk_type": "olmo2",
            "norm_1": False,
            "norm_2": False,
            "post_attention_norm": True,
            "post_mlp_norm": True,
        },
    ),
    _litgpt("mixtral", _MIXTRAL),
    _litgpt(
        "mla",
        {
            **_LLAMA,
            "n_query_groups": 4,
            "latent_attention": {
                "q_lora_rank": 16,
                "kv_lora_rank": 16,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 8,
                "v_head_dim": 12,
            },
        },
    ),
    _lm("palm_pytorch", "palm_pytorch:PaLM"),
    _lm("palm_pytorch", "palm_pytorch.palm_lite:PaLM", {"dim_head": 12}, "lite"),
    _lm(
        "simple_hierarchical_transformer",
        "simple_hierarchical_transformer:HierarchicalTransformer",
        {"seq_len": 32, "hierarchies": (1, 2), "window_sizes": (8, None)},
        "two",
    ),
    _lm("simple_hierarchical_transformer", "simple_hierarchical_transformer:HierarchicalTransformer", {"seq_len": 32}),
    _lm(
        "memory_efficient_attention_pytorch",
        "memory_efficient_attention_pytorch.transformer:Transformer",
        {"max_seq_len": 32, "causal": True},
    ),
    _lm(
        "memory_efficient_attention_pytorch",
        "memory_efficient_attention_pytorch.transformer:Transformer",
        {"max_seq_len": 32, "causal": True, "use_flash_attn": False},
        "plain",
    ),
    _layer(
        "memory_efficient_attention_pytorch",
        "memory_efficient_attention_pytorch:Attention",
        {"heads": 4, "dim_head": 12, "causal": True, "memory_efficient": True, "q_bucket_size": 8, "k_bucket_size": 8},
        "buckets",
    ),
    _layer(
        "memory_efficient_attention_pytorch",
        "memory_efficient_attention_pytorch:CosineSimAttention",
        {"seq_len": 16, "heads": 4, "dim_head": 12},
        "cosine",
    ),
    _lm(
        "performer_pytorch",
        "performer_pytorch:PerformerLM",
        {"max_seq_len": 32, "nb_features": 16},
        linear=("FastAttention",),
    ),
    _lm(
        "performer_pytorch",
        "performer_pytorch:PerformerLM",
        {"max_seq_len": 32, "generalized_attention": True, "nb_features": 16},
        "generalized",
        linear=("FastAttention",),
    ),
    _lm("linformer", "linformer:LinformerLM", {"seq_len": 16, "k": 8}),
    _lm("linformer", "linformer:LinformerLM", {"seq_len": 16, "k": 8, "one_kv_head": True, "share_kv": True}, "shared"),
    _layer(
        "nystrom_attention",
        "nystrom_attention:Nystromformer",
        {"depth": 2, "dim_head": 12, "heads": 4, "num_landmarks": 4},
    ),
    _lm("local_attention", "local_attention:LocalTransformer", {"max_seq_len": 32, "local_attn_window_size": 8}),
    _lm(
        "local_attention",
        "local_attention:LocalTransformer",
        {"max_seq_len": 32, "local_attn_window_size": 8, "use_dynamic_pos_bias": True, "num_residual_streams": 1},
        "dynamic",
    ),
    _lm(
        "local_attention",
        "local_attention:LocalTransformer",
        {"max_seq_len": 32, "local_attn_window_size": 8, "use_xpos": True, "causal": True, "num_residual_streams": 1},
        "xpos",
    ),
    _layer(
        "axial_attention",
        "axial_attention:AxialImageTransformer",
        {"depth": 2, "heads": 4, "reversible": False},
        inputs={"0": real(1, 48, 8, 8)},
    ),
    _layer(
        "axial_attention",
        "axial_attention:AxialAttention",
        {"heads": 4, "dim_index": 1},
        "layer",
        inputs={"0": real(1, 48, 8, 8)},
    ),
    _lm(
        "recurrent_memory_transformer_pytorch",
        "recurrent_memory_transformer_pytorch:RecurrentMemoryTransformer",
        {"num_memory_tokens": 4, "seq_len": 16},
    ),
    _lm(
        "recurrent_memory_transformer_pytorch",
        "recurrent_memory_transformer_pytorch:RecurrentMemoryTransformer",
        {"num_memory_tokens": 4, "seq_len": 16, "rotary_pos_emb": True, "num_residual_streams": 1},
        "rotary",
    ),
    _lm(
        "block_recurrent_transformer_pytorch",
        "block_recurrent_transformer_pytorch:BlockRecurrentTransformer",
        {"max_seq_len": 32, "block_width": 8, "num_state_vectors": 8},
    ),
    _lm(
        "routing_transformer",
        "routing_transformer:RoutingTransformerLM",
        {"max_seq_len": 16, "window_size": 8, "n_local_attn_heads": 4, "local_attn_window_size": 8},
        "local",
    ),
    _lm("routing_transformer", "routing_transformer:RoutingTransformerLM", {"max_seq_len": 16, "window_size": 8}),
    _lm(
        "reformer_pytorch",
        "reformer_pytorch:ReformerLM",
        {"max_seq_len": 16, "use_full_attn": True, "ff_chunks": 1},
        "full",
    ),
    _lm(
        "reformer_pytorch",
        "reformer_pytorch:ReformerLM",
        {"max_seq_len": 16, "bucket_size": 4, "n_hashes": 2, "ff_chunks": 1},
    ),
    _lm(
        "sinkhorn_transformer",
        "sinkhorn_transformer:SinkhornTransformerLM",
        {"max_seq_len": 16, "bucket_size": 4, "dim_head": 12},
    ),
    _lm(
        "sinkhorn_transformer",
        "sinkhorn_transformer:SinkhornTransformerLM",
        {"max_seq_len": 16, "bucket_size": 4, "causal": True},
        "causal",
    ),
    _lm(
        "linear_attention_transformer",
        "linear_attention_transformer:LinearAttentionTransformerLM",
        {"max_seq_len": 16},
        linear=("SelfAttention",),
    ),
    _layer(
        "colt5_attention",
        "colt5_attention:ConditionalRoutedTransformerBlock",
        {
            "num_heavy_attn_tokens_q": 4,
            "num_heavy_attn_tokens_kv": 4,
            "num_heavy_ff_tokens": 4,
            "light_dim_head": 12,
            "light_heads": 2,
            "light_window_size": 8,
            "heavy_dim_head": 12,
            "heavy_heads": 4,
        },
    ),
    _lm(
        "mega_pytorch",
        "mega_pytorch:Mega",
        {"heads": None, "dim_head": None, "ema_heads": 4, "attn_dim_qk": 12, "attn_dim_value": 48},
    ),
    _lm(
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
    _layer("conformer", "conformer:Conformer", {"depth": 2, "dim_head": 12, "heads": 4, "conv_kernel_size": 7}),
    _lm("minGRU_pytorch", "minGRU_pytorch.minLM:minLM", {"heads": None, "dim_head": None}, recurrent=("minGRU",)),
    _lm(
        "minGRU_pytorch",
        "minGRU_pytorch.minLM:minLM",
        {"heads": None, "dim_head": None, "use_lstm": True},
        "lstm",
        recurrent=("minLSTM",),
    ),
    _lm("minGRU_pytorch", "minGRU_pytorch.hybridLM:hybridLM", None, "hybrid", recurrent=("minGRUAttnHybrid",)),
    _lm(
        "gateloop_transformer",
        "gateloop_transformer:Transformer",
        {"checkpoint_gate_looped_attn": False},
        recurrent=("GateLoopedAttention",),
    ),
    _lm("gateloop_transformer", "gateloop_transformer:Transformer", {"use_gate_looped_attn": False}, "full"),
    _layer(
        "gateloop_transformer",
        "gateloop_transformer:SimpleGateLoopLayer",
        {},
        "simple",
        recurrent=("SimpleGateLoopLayer",),
    ),
    _layer(
        "gateloop_transformer",
        "gateloop_transformer:SimpleGateLoopLayer",
        {"use_heinsen": True},
        "heinsen",
        recurrent=("SimpleGateLoopLayer",),
    ),
    _layer(
        "taylor_series_linear_attention",
        "taylor_series_linear_attention:TaylorSeriesLinearAttn",
        {"dim_head": 4, "heads": 4},
        linear=("TaylorSeriesLinearAttn",),
    ),
    _row(
        "taylor_series_linear_attention-vit",
        "taylor_series_linear_attention",
        "taylor_series_linear_attention.vit:ViT",
        {"0": real(2, 3, 32, 32)},
        {"image_size": 32, "patch_size": 8, "num_classes": 10, "dim": 48, "depth": 2, "heads": 4, "dim_head": 4},
        linear=("TaylorSeriesLinearAttn",),
    ),
    _row(
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
    _lm(
        "titans_pytorch",
        "titans_pytorch:MemoryAsContextTransformer",
        {"segment_len": 8, "num_persist_mem_tokens": 2, "num_longterm_mem_tokens": 2, "neural_memory_layers": ()},
        "no-memory",
    ),
    _layer(
        "titans_pytorch",
        "titans_pytorch.implicit_mlp_attention:ImplicitMLPAttention",
        {"mlp_hiddens": (12, 16, 12), "heads": 4},
        "implicit-mlp",
    ),
    _layer("titans_pytorch", "titans_pytorch.nested_attention:NestedAttention", {"dim_head": 12, "heads": 4}, "nested"),
    _row(
        "mambapy",
        "mambapy",
        "mambapy.mamba:Mamba",
        _STREAM,
        {"config": part("mambapy.mamba:MambaConfig", d_model=48, n_layers=2, d_state=4)},
        recurrent=("MambaBlock",),
    ),
    _row(
        "mambapy-sequential",
        "mambapy",
        "mambapy.mamba:Mamba",
        _STREAM,
        {"config": part("mambapy.mamba:MambaConfig", d_model=48, n_layers=2, d_state=4, pscan=False)},
        recurrent=("MambaBlock",),
    ),
    _row(
        "mambapy-vision",
        "mambapy",
        "mambapy.vim:VMamba",
        _STREAM,
        {"config": part("mambapy.vim:MambaConfig", d_model=48, n_layers=2, d_state=4)},
        recurrent=("VMambaBlock",),
    ),
    _row(
        "mambapy-jamba",
        "mambapy",
        "mambapy.jamba:JambaLM",
        _TOKENS,
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
    _layer(
        "st_moe_pytorch", "st_moe_pytorch:MoE", {"num_experts": 4, "expert_hidden_mult": 2, "capacity_factor_eval": 4.0}
    ),
    _row(
        "st_moe_pytorch-block",
        "st_moe_pytorch",
        "st_moe_pytorch:SparseMoEBlock",
        _STREAM,
        {"moe": part("st_moe_pytorch:MoE", dim=48, num_experts=4, capacity_factor_eval=4.0), "add_ff_before": True},
    ),
    _layer(
        "soft_moe_pytorch",
        "soft_moe_pytorch:SoftMoE",
        {"seq_len": 16, "num_experts": 4, "offload_unused_experts_to_cpu": False},
    ),
    _layer("soft_moe_pytorch", "soft_moe_pytorch:DynamicSlotsSoftMoE", {"num_experts": 4}, "dynamic"),
    _layer(
        "mixture_of_experts",
        "mixture_of_experts:MoE",
        {"num_experts": 4, "hidden_dim": 96, "second_policy_eval": "all", "capacity_factor_eval": 4.0},
    ),
    _layer(
        "mixture_of_experts",
        "mixture_of_experts:HeirarchicalMoE",
        {"num_experts": (2, 2), "second_policy_eval": "all"},
        "hierarchical",
    ),
    _row(
        "torchscale-encoder",
        "torchscale",
        "torchscale.architecture.encoder:Encoder",
        {"src_tokens": given(lambda: None), "token_embeddings": real(2, 16, 48)},
        {
            "args": part(
                "torchscale.architecture.config:EncoderConfig",
                encoder_embed_dim=48,
                encoder_attention_heads=4,
                encoder_ffn_embed_dim=96,
                encoder_layers=2,
                vocab_size=120,
                rel_pos_buckets=8,
                max_rel_pos=16,
                no_output_layer=True,
            )
        },
    ),
    _row(
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
