"""Mixtures of experts from transformers, built tiny; ``EXPERTS[name](spelling)`` as in :mod:`tests.models.builders`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .builders import Built

COMMON: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "use_cache": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
LATENT: dict[str, Any] = {
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "n_group": 4,
    "topk_group": 2,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2))


def qwen2_moe() -> Any:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**COMMON, **experts, shared_expert_intermediate_size=20))


def qwen3_moe() -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "norm_topk_prob": True}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**COMMON, **experts, head_dim=8))


def olmoe() -> Any:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    return OlmoeForCausalLM(OlmoeConfig(**COMMON, num_experts=4, num_experts_per_tok=2))


def gpt_oss() -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    return GptOssForCausalLM(GptOssConfig(**COMMON, head_dim=8, num_local_experts=4, num_experts_per_tok=2))


def deepseek_v2() -> Any:
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    grouped = {"topk_method": "group_limited_greedy"}
    return DeepseekV2ForCausalLM(DeepseekV2Config(**{**COMMON, **LATENT, **grouped}))


def deepseek_v3() -> Any:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    return DeepseekV3ForCausalLM(DeepseekV3Config(**{**COMMON, **LATENT}))


def _built(make: Callable[[], Any]) -> Callable[[str], Built]:
    def build(spelling: str) -> Built:
        torch.manual_seed(0)
        module = make().eval()
        module.set_experts_implementation(spelling)
        return module, (), {"input_ids": torch.randint(1, 60, (2, 5))}

    return build


EXPERTS: dict[str, Callable[[str], Built]] = {
    "mixtral": _built(mixtral),
    "qwen2-moe": _built(qwen2_moe),
    "qwen3-moe": _built(qwen3_moe),
    "olmoe": _built(olmoe),
    "gpt-oss": _built(gpt_oss),
    "deepseek-v2": _built(deepseek_v2),
    "deepseek-v3": _built(deepseek_v3),
}
