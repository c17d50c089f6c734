"""Rows of x_transformers: one transformer, one option at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .table import Row, Value, ids, part, real

_TOKENS: Mapping[str, Value] = {"0": ids(2, 12)}
_WRAPPER = "x_transformers:TransformerWrapper"
_SIZES = {"dim": 48, "depth": 2, "heads": 4, "attn_dim_head": 12, "verbose": False}


def _option(
    name: str, options: Mapping[str, Any], around: Mapping[str, Any] | None = None, kind: str = "Decoder"
) -> Row:
    """A transformer of tokens with options of its layers, and of what is ``around`` them."""
    layers = part(f"x_transformers:{kind}", **{**_SIZES, **options})
    sizes = {"num_tokens": 120, "max_seq_len": 64, "attn_layers": layers, **(around or {})}
    return Row(f"x_transformers-{name}", "text", "x_transformers", _WRAPPER, sizes, _TOKENS)


_LAYERS = {
    "decoder": {},
    "cross-attend-none": {"only_attn": True},
    "alibi": {"alibi_pos_bias": True, "alibi_num_heads": 2},
    "rel-pos-bias": {"rel_pos_bias": True},
    "dynamic-pos-bias": {"dynamic_pos_bias": True, "dynamic_pos_bias_log_distance": False},
    "rotary": {"rotary_pos_emb": True},
    "rotary-xpos": {"rotary_xpos": True},
    "polar": {"polar_pos_emb": True},
    "talking-heads": {"attn_pre_talking_heads": True, "attn_post_talking_heads": True},
    "pre-scale-talking-heads": {"attn_pre_scale_post_talking_heads": True},
    "ff-glu": {"ff_glu": True},
    "ff-swiglu": {"ff_glu": True, "ff_swish": True},
    "ff-relu-squared": {"ff_relu_squared": True},
    "ff-solu": {"ff_solu": True},
    "ff-no-bias": {"ff_no_bias": True, "ff_swish": True},
    "ff-post-act-ln": {"ff_post_act_ln": True},
    "ff-glu-mult-bias": {"ff_glu": True, "ff_glu_mult_bias": True},
    "ff-glu-softclamp": {"ff_glu": True, "ff_glu_softclamp": True},
    "qk-norm": {"attn_qk_norm": True},
    "qk-norm-groups": {"attn_qk_norm": True, "attn_qk_norm_groups": 2},
    "qk-norm-dim-scale": {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
    "qk-rmsnorm": {"attn_qk_rmsnorm": True},
    "sparse-topk": {"attn_sparse_topk": 4},
    "memory-key-values": {"attn_num_mem_kv": 3},
    "add-zero-kv": {"attn_add_zero_kv": True},
    "learned-sink": {"attn_head_learned_sink": True},
    "macaron": {"macaron": True},
    "sandwich": {"sandwich_coef": 1},
    "sandwich-norm": {"sandwich_norm": True},
    "residual-attn": {"residual_attn": True},
    "gate-values": {"attn_gate_values": True},
    "gate-value-heads": {"attn_gate_value_heads": True},
    "swiglu-values": {"attn_swiglu_values": True},
    "output-gate": {"attn_output_gate": True},
    "on-attn": {"attn_on_attn": True},
    "head-scale": {"attn_head_scale": True},
    "gate-residual": {"gate_residual": True},
    "scale-residual": {"scale_residual": True},
    "orthog-residual": {"orthog_residual": True},
    "one-kv-head": {"attn_one_kv_head": True},
    "kv-heads": {"attn_kv_heads": 2},
    "value-dim-head": {"attn_value_dim_head": 8},
    "flash": {"attn_flash": True},
    "max-attend-past": {"attn_max_attend_past": 4},
    "l2-distance": {"attn_l2_distance": True},
    "sigmoid": {"attn_sigmoid": True},
    "selective": {"attn_selective": True},
    "cog-signed": {"attn_cog_signed": True},
    "cope": {"attn_use_cope": True, "attn_cope_max_pos": 8},
    "data-dependent-alibi": {"attn_data_dependent_alibi": True},
    "rel-proj-pos-bias": {"attn_use_rel_proj_pos_bias": True},
    "softclamp-logits": {"attn_softclamp_logits": True},
    "laser": {"attn_laser": True},
    "latent-q": {"attn_use_latent_q": True, "attn_dim_latent_q": 16},
    "latent-kv": {"attn_use_latent_kv": True, "attn_dim_latent_kv": 16},
    "value-residual": {"add_value_residual": True},
    "inverted": {"attn_inverted_attention": True},
    "orthog-values": {"attn_orthog_projected_values": True},
    "scalenorm": {"use_scalenorm": True},
    "rmsnorm": {"use_rmsnorm": True},
    "simple-rmsnorm": {"use_simple_rmsnorm": True},
    "dynamic-tanh": {"use_dynamic_tanh": True},
    "derf": {"use_derf": True},
    "post-norm": {"pre_norm": False},
    "pre-and-post-norm": {"pre_and_post_norm": True},
    "shift-tokens": {"shift_tokens": 1},
    "layerscale": {"use_layerscale": True},
    "unet-skips": {"depth": 4, "unet_skips": True},
    "integrate-layers": {"depth": 4, "integrate_layers": True},
    "hyper-connections": {"num_residual_streams": 2},
    "reinject-input": {"reinject_input": True},
    "weight-tied": {"weight_tie_layers": True},
    "par-ratio": {"depth": 4, "par_ratio": 4},
    "custom-layers": {"custom_layers": ("a", "f", "a", "a", "f", "f")},
    "softclamp-output": {"softclamp_output": True},
    "aggregated-residuals": {"attn_aggregated_residuals": True, "attn_aggregated_residual_kwargs": {"lora_rank": 16}},
}

_AROUND = {
    "memory-tokens": {"num_memory_tokens": 3},
    "sinusoidal": {"scaled_sinu_pos_emb": True},
    "mixture-of-softmax": {"mixture_of_softmax": True},
    "cls-token": {"use_cls_token": True},
    "attn-pool": {"attn_pool": True},
    "tied": {"tie_embedding": True},
    "deep-embed": {"ff_deep_embed": True},
}

ROWS = (
    *(_option(name, options) for name, options in _LAYERS.items()),
    *(_option(name, {}, around) for name, around in _AROUND.items()),
    _option("encoder", {}, kind="Encoder"),
    _option(
        "encoder-all",
        {"ff_glu": True, "rel_pos_bias": True, "residual_attn": True, "attn_num_mem_kv": 2},
        kind="Encoder",
    ),
    Row(
        "x_transformers-encoder-decoder",
        "text",
        "x_transformers",
        "x_transformers:XTransformer",
        {"dim": 48}
        | {
            f"{side}_{name}": value
            for side in ("enc", "dec")
            for name, value in {
                "num_tokens": 120,
                "depth": 2,
                "heads": 4,
                "max_seq_len": 64,
                "attn_dim_head": 12,
            }.items()
        },
        {"0": ids(2, 12), "1": ids(2, 7)},
    ),
    Row(
        "x_transformers-vit",
        "vision",
        "x_transformers",
        "x_transformers:ViTransformerWrapper",
        {"image_size": 32, "patch_size": 8, "num_classes": 10, "attn_layers": part("x_transformers:Encoder", **_SIZES)},
        {"0": real(2, 3, 32, 32)},
    ),
    Row(
        "x_transformers-continuous",
        "text",
        "x_transformers",
        "x_transformers:ContinuousTransformerWrapper",
        {"dim_in": 16, "dim_out": 16, "max_seq_len": 64, "attn_layers": part("x_transformers:Decoder", **_SIZES)},
        {"0": real(2, 12, 16)},
    ),
)
