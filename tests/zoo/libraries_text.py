"""Rows of libraries of transformers and experts that detection was not made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .libraries_sequences import STREAM, TOKENS, layer, lm, row
from .table import Row, given, part, real

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
    return row(f"litgpt-{name}", "litgpt", "litgpt.model:GPT", TOKENS, {"config": config})


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
    lm("palm_pytorch", "palm_pytorch:PaLM"),
    lm("palm_pytorch", "palm_pytorch.palm_lite:PaLM", {"dim_head": 12}, "lite"),
    lm(
        "simple_hierarchical_transformer",
        "simple_hierarchical_transformer:HierarchicalTransformer",
        {"seq_len": 32, "hierarchies": (1, 2), "window_sizes": (8, None)},
        "two",
    ),
    lm("simple_hierarchical_transformer", "simple_hierarchical_transformer:HierarchicalTransformer", {"seq_len": 32}),
    lm(
        "memory_efficient_attention_pytorch",
        "memory_efficient_attention_pytorch.transformer:Transformer",
        {"max_seq_len": 32, "causal": True},
    ),
    lm(
        "memory_efficient_attention_pytorch",
        "memory_efficient_attention_pytorch.transformer:Transformer",
        {"max_seq_len": 32, "causal": True, "use_flash_attn": False},
        "plain",
    ),
    layer(
        "memory_efficient_attention_pytorch",
        "memory_efficient_attention_pytorch:Attention",
        {"heads": 4, "dim_head": 12, "causal": True, "memory_efficient": True, "q_bucket_size": 8, "k_bucket_size": 8},
        "buckets",
    ),
    layer(
        "memory_efficient_attention_pytorch",
        "memory_efficient_attention_pytorch:CosineSimAttention",
        {"seq_len": 16, "heads": 4, "dim_head": 12},
        "cosine",
    ),
    lm(
        "performer_pytorch",
        "performer_pytorch:PerformerLM",
        {"max_seq_len": 32, "nb_features": 16},
        linear=("FastAttention",),
    ),
    lm(
        "performer_pytorch",
        "performer_pytorch:PerformerLM",
        {"max_seq_len": 32, "generalized_attention": True, "nb_features": 16},
        "generalized",
        linear=("FastAttention",),
    ),
    lm("linformer", "linformer:LinformerLM", {"seq_len": 16, "k": 8}),
    lm("linformer", "linformer:LinformerLM", {"seq_len": 16, "k": 8, "one_kv_head": True, "share_kv": True}, "shared"),
    layer(
        "nystrom_attention",
        "nystrom_attention:Nystromformer",
        {"depth": 2, "dim_head": 12, "heads": 4, "num_landmarks": 4},
    ),
    lm("local_attention", "local_attention:LocalTransformer", {"max_seq_len": 32, "local_attn_window_size": 8}),
    lm(
        "local_attention",
        "local_attention:LocalTransformer",
        {"max_seq_len": 32, "local_attn_window_size": 8, "use_dynamic_pos_bias": True, "num_residual_streams": 1},
        "dynamic",
    ),
    lm(
        "local_attention",
        "local_attention:LocalTransformer",
        {"max_seq_len": 32, "local_attn_window_size": 8, "use_xpos": True, "causal": True, "num_residual_streams": 1},
        "xpos",
    ),
    layer(
        "axial_attention",
        "axial_attention:AxialImageTransformer",
        {"depth": 2, "heads": 4, "reversible": False},
        inputs={"0": real(1, 48, 8, 8)},
    ),
    layer(
        "axial_attention",
        "axial_attention:AxialAttention",
        {"heads": 4, "dim_index": 1},
        "layer",
        inputs={"0": real(1, 48, 8, 8)},
    ),
    lm(
        "recurrent_memory_transformer_pytorch",
        "recurrent_memory_transformer_pytorch:RecurrentMemoryTransformer",
        {"num_memory_tokens": 4, "seq_len": 16},
    ),
    lm(
        "recurrent_memory_transformer_pytorch",
        "recurrent_memory_transformer_pytorch:RecurrentMemoryTransformer",
        {"num_memory_tokens": 4, "seq_len": 16, "rotary_pos_emb": True, "num_residual_streams": 1},
        "rotary",
    ),
    lm(
        "block_recurrent_transformer_pytorch",
        "block_recurrent_transformer_pytorch:BlockRecurrentTransformer",
        {"max_seq_len": 32, "block_width": 8, "num_state_vectors": 8},
    ),
    lm(
        "routing_transformer",
        "routing_transformer:RoutingTransformerLM",
        {"max_seq_len": 16, "window_size": 8, "n_local_attn_heads": 4, "local_attn_window_size": 8},
        "local",
    ),
    lm("routing_transformer", "routing_transformer:RoutingTransformerLM", {"max_seq_len": 16, "window_size": 8}),
    lm(
        "reformer_pytorch",
        "reformer_pytorch:ReformerLM",
        {"max_seq_len": 16, "use_full_attn": True, "ff_chunks": 1},
        "full",
    ),
    lm(
        "reformer_pytorch",
        "reformer_pytorch:ReformerLM",
        {"max_seq_len": 16, "bucket_size": 4, "n_hashes": 2, "ff_chunks": 1},
    ),
    lm(
        "sinkhorn_transformer",
        "sinkhorn_transformer:SinkhornTransformerLM",
        {"max_seq_len": 16, "bucket_size": 4, "dim_head": 12},
    ),
    lm(
        "sinkhorn_transformer",
        "sinkhorn_transformer:SinkhornTransformerLM",
        {"max_seq_len": 16, "bucket_size": 4, "causal": True},
        "causal",
    ),
    lm(
        "linear_attention_transformer",
        "linear_attention_transformer:LinearAttentionTransformerLM",
        {"max_seq_len": 16},
        linear=("SelfAttention",),
    ),
    layer(
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
    layer("conformer", "conformer:Conformer", {"depth": 2, "dim_head": 12, "heads": 4, "conv_kernel_size": 7}),
    lm(
        "titans_pytorch",
        "titans_pytorch:MemoryAsContextTransformer",
        {"segment_len": 8, "num_persist_mem_tokens": 2, "num_longterm_mem_tokens": 2, "neural_memory_layers": ()},
        "no-memory",
    ),
    layer(
        "titans_pytorch",
        "titans_pytorch.implicit_mlp_attention:ImplicitMLPAttention",
        {"mlp_hiddens": (12, 16, 12), "heads": 4},
        "implicit-mlp",
    ),
    layer("titans_pytorch", "titans_pytorch.nested_attention:NestedAttention", {"dim_head": 12, "heads": 4}, "nested"),
    layer(
        "st_moe_pytorch", "st_moe_pytorch:MoE", {"num_experts": 4, "expert_hidden_mult": 2, "capacity_factor_eval": 4.0}
    ),
    row(
        "st_moe_pytorch-block",
        "st_moe_pytorch",
        "st_moe_pytorch:SparseMoEBlock",
        STREAM,
        {"moe": part("st_moe_pytorch:MoE", dim=48, num_experts=4, capacity_factor_eval=4.0), "add_ff_before": True},
    ),
    layer(
        "soft_moe_pytorch",
        "soft_moe_pytorch:SoftMoE",
        {"seq_len": 16, "num_experts": 4, "offload_unused_experts_to_cpu": False},
    ),
    layer("soft_moe_pytorch", "soft_moe_pytorch:DynamicSlotsSoftMoE", {"num_experts": 4}, "dynamic"),
    layer(
        "mixture_of_experts",
        "mixture_of_experts:MoE",
        {"num_experts": 4, "hidden_dim": 96, "second_policy_eval": "all", "capacity_factor_eval": 4.0},
    ),
    layer(
        "mixture_of_experts",
        "mixture_of_experts:HeirarchicalMoE",
        {"num_experts": (2, 2), "second_policy_eval": "all"},
        "hierarchical",
    ),
    row(
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
)
