"""Further recurrent and hybrid language models: state-space duals, delta rules, gated per head and per channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .table import TOKENS, Row


def _row(name: str, model: str, mixer: str, sizes: Mapping[str, Any]) -> Row:
    return Row(name, "state-space, hybrid", "transformers", model, sizes, TOKENS, recurrent=(mixer,))


_PAIRS = {"num_hidden_layers": 4, "num_key_value_heads": 4}
_DELTA = {"linear_num_key_heads": 2, "linear_key_head_dim": 12, "linear_value_head_dim": 12}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}

ROWS = (
    _row(
        "zamba",
        "ZambaForCausalLM",
        "ZambaMambaMixer",
        {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 2}
        | {"mamba_d_state": 4, "mamba_dt_rank": 4, "n_mamba_heads": 1},  # each head runs a recurrence of its own
    ),
    _row(
        "zamba2",
        "Zamba2ForCausalLM",
        "Zamba2MambaMixer",
        {**_PAIRS, "layers_block_type": ["mamba", "hybrid"] * 2}
        | {"mamba_d_state": 8, "n_mamba_heads": 4, "chunk_size": 4},
    ),
    _row(
        "nemotron-h",
        "NemotronHForCausalLM",
        "NemotronHMamba2Mixer",
        {"layers_block_type": ["mamba", "attention", "mlp", "mamba"], "ssm_state_size": 8}
        | {"mamba_num_heads": 4, "mamba_head_dim": 12, "n_groups": 2, "chunk_size": 4},
    ),
    _row(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridMambaLayer",
        {"num_hidden_layers": 4, "layer_types": ["mamba", "attention"] * 2, "mamba_n_heads": 4, "mamba_d_state": 8}
        | {"mamba_d_head": 24, "mamba_chunk_size": 4, "shared_intermediate_size": 48}
        | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    _row(
        "olmo-hybrid",
        "OlmoHybridForCausalLM",
        "OlmoHybridGatedDeltaNet",
        {**_DELTA, "num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}
        | {"linear_num_value_heads": 2},
    ),
    _row(
        "qwen3.5-moe",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeGatedDeltaNet",
        {**_DELTA, **_EXPERTS, "num_hidden_layers": 4, "linear_num_value_heads": 4, "num_experts": 4}
        | {"shared_expert_intermediate_size": 24},
    ),
    _row(
        "kimi-linear",
        "KimiLinearForCausalLM",
        "KimiLinearDeltaAttention",
        {**_PAIRS, **_EXPERTS, **_LATENT, "num_local_experts": 4, "linear_head_dim": 12, "linear_num_heads": 4},
    ),
    _row(
        "bailing-hybrid",
        "BailingHybridForCausalLM",
        "BailingHybridDeltaAttention",
        {**_PAIRS, **_EXPERTS, **_LATENT, "num_local_experts": 4, "layer_group_size": 2, "n_group": 2, "topk_group": 1}
        | {"first_k_dense_replace": 1},
    ),
)
