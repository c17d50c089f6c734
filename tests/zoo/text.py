"""Text: encoders, decoders, encoder-decoders, state-space and hybrid models, mixtures of experts."""

from __future__ import annotations

from typing import Any

from .table import PAIR, TOKENS, Row


def _rows(kind: str, inputs: Any, *entries: tuple[Any, ...]) -> tuple[Row, ...]:
    """``(name, class)``, then sizes, then further fields of the row."""
    rows = []
    for name, model, *rest in entries:
        sizes = rest[0] if rest else {}
        facts = rest[1] if len(rest) > 1 else {}
        rows.append(Row(name, kind, "transformers", model, sizes, inputs, **facts))
    return tuple(rows)


_FAST = {"fast": True}

ENCODERS = _rows(
    "text encoder",
    TOKENS,
    ("bert", "BertModel", {}, _FAST),
    ("roberta", "RobertaModel"),
    ("albert", "AlbertModel", {}, _FAST),
    ("electra", "ElectraModel"),
    ("distilbert", "DistilBertModel", {"dim": 48, "hidden_dim": 96, "n_layers": 2, "n_heads": 4}),
    ("mpnet", "MPNetModel"),
    ("deberta-v2", "DebertaV2Model", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    ("modernbert", "ModernBertModel", {"num_hidden_layers": 4}),
    ("nomic-bert", "NomicBertModel"),
    ("esm", "EsmModel", {"position_embedding_type": "rotary"}),
    ("roformer", "RoFormerModel"),
    ("fnet", "FNetModel"),
    ("convbert", "ConvBertModel"),
    ("mobilebert", "MobileBertModel", {"embedding_size": 24, "intra_bottleneck_size": 24, "true_hidden_size": 24}),
    ("longformer", "LongformerModel", {"attention_window": [4, 4]}),
    ("nystromformer", "NystromformerModel"),
    ("canine", "CanineModel", {"num_hash_buckets": 16}),
    ("funnel", "FunnelModel", {"block_sizes": [2, 2], "d_head": 12, "n_head": 4, "d_inner": 96}),
    ("clip-text", "CLIPTextModel"),
    ("layoutlm", "LayoutLMModel"),
)

DECODERS = _rows(
    "text decoder",
    TOKENS,
    ("gpt2", "GPT2LMHeadModel", {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    ("gpt-neo", "GPTNeoForCausalLM", {"attention_types": [[["global", "local"], 1]], "window_size": 4}),
    ("gptj", "GPTJForCausalLM", {"n_embd": 48, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, _FAST),
    ("gpt-neox", "GPTNeoXForCausalLM"),
    ("opt", "OPTForCausalLM", {"ffn_dim": 96, "word_embed_proj_dim": 48}),
    ("bloom", "BloomForCausalLM"),
    ("mpt", "MptForCausalLM", {"n_layers": 2, "n_heads": 4}),
    ("falcon", "FalconForCausalLM"),
    ("llama", "LlamaForCausalLM", {}, _FAST),
    ("llama-eager", "LlamaForCausalLM", {"attn_implementation": "eager"}),
    ("mistral", "MistralForCausalLM", {"sliding_window": 4}),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
    ("phi", "PhiForCausalLM"),
    ("phi3", "Phi3ForCausalLM"),
    ("gemma", "GemmaForCausalLM"),
    ("gemma2", "Gemma2ForCausalLM", {"sliding_window": 4, "attn_implementation": "eager", "num_hidden_layers": 4}),
    ("gemma3", "Gemma3ForCausalLM", {"sliding_window": 4, "num_hidden_layers": 4}),
    ("cohere", "CohereForCausalLM"),
    ("olmo2", "Olmo2ForCausalLM"),
    ("granite", "GraniteForCausalLM"),
    (
        "stablelm",
        "StableLmForCausalLM",
        {
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default"} | {"rope_theta": 10000.0, "partial_rotary_factor": 0.3334},
        },
    ),
    ("starcoder2", "Starcoder2ForCausalLM"),
    ("nemotron", "NemotronForCausalLM"),
    ("smollm3", "SmolLM3ForCausalLM"),
    ("exaone4", "Exaone4ForCausalLM"),
    ("glm4", "Glm4ForCausalLM"),
    ("diffllama", "DiffLlamaForCausalLM"),
    (
        "deepseek-v3-dense",
        "DeepseekV3ForCausalLM",
        {"num_key_value_heads": 4, "first_k_dense_replace": 2}
        | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12},
    ),
    ("xglm", "XGLMForCausalLM", {"ffn_dim": 96, "attention_heads": 4}),
    ("biogpt", "BioGptForCausalLM"),
    ("ctrl", "CTRLModel", {"n_embd": 48, "n_layer": 2, "n_head": 4, "dff": 96, "n_positions": 64}),
    ("xlnet", "XLNetModel", {"d_inner": 96, "n_layer": 2, "n_head": 4}),
)

SEQ2SEQ = _rows(
    "encoder-decoder",
    PAIR,
    ("t5", "T5Model", {}, _FAST),
    ("mt5", "MT5Model"),
    ("umt5", "UMT5Model"),
    ("longt5", "LongT5Model", {"local_radius": 3, "encoder_attention_type": "local"}),
    ("bart", "BartModel"),
    ("mbart", "MBartModel"),
    ("marian", "MarianModel"),
    ("pegasus", "PegasusModel"),
    ("m2m100", "M2M100Model"),
    ("led", "LEDModel", {"attention_window": [4, 4]}),
    (
        "prophetnet",
        "ProphetNetModel",
        {"num_encoder_layers": 2, "num_encoder_attention_heads": 4} | {"num_decoder_attention_heads": 4},
    ),
    ("blenderbot", "BlenderbotModel"),
)

_MAMBA2 = {"num_heads": 4, "head_dim": 24, "state_size": 8, "n_groups": 2, "chunk_size": 4, "hidden_size": 48}

STATE_SPACE = _rows(
    "state-space, hybrid",
    TOKENS,
    ("mamba", "MambaForCausalLM", {"state_size": 8}, {"recurrent": ("MambaMixer",), "fast": True}),
    ("mamba2", "Mamba2ForCausalLM", _MAMBA2, {"recurrent": ("Mamba2Mixer",)}),
    ("falcon-mamba", "FalconMambaForCausalLM", {"state_size": 8}, {"recurrent": ("FalconMambaMixer",)}),
    (
        "jamba",
        "JambaForCausalLM",
        {"mamba_d_state": 8, "num_hidden_layers": 4, "attn_layer_period": 2}
        | {"attn_layer_offset": 1, "num_experts": 1},
        {"recurrent": ("JambaMambaMixer",)},
    ),
    (
        "bamba",
        "BambaForCausalLM",
        {"mamba_n_heads": 4, "mamba_d_head": 24, "mamba_d_state": 8, "mamba_n_groups": 1}
        | {"attn_layer_indices": [1], "mamba_chunk_size": 4},
        {"recurrent": ("BambaMixer",)},
    ),
    (
        "falcon-h1",
        "FalconH1ForCausalLM",
        {"mamba_d_ssm": 48, "mamba_n_heads": 4, "mamba_d_head": 12} | {"mamba_d_state": 8, "mamba_chunk_size": 4},
        {"recurrent": ("FalconH1Mixer",)},
    ),
    (
        "recurrent-gemma",
        "RecurrentGemmaForCausalLM",
        {"lru_width": 48, "num_hidden_layers": 3} | {"attention_window_size": 4},
        {"recurrent": ("RecurrentGemmaRglru",), "fast": True},
    ),
    ("rwkv", "RwkvForCausalLM", {}, {"recurrent": ("RwkvSelfAttention",)}),
    ("lfm2", "Lfm2ForCausalLM", {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}),
    (
        "qwen3-next",
        "Qwen3NextForCausalLM",
        {"num_hidden_layers": 4, "num_experts": 4, "moe_intermediate_size": 24}
        | {"shared_expert_intermediate_size": 24, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
        | {"linear_key_head_dim": 12, "linear_value_head_dim": 12, "num_experts_per_tok": 2},
        {"recurrent": ("Qwen3NextGatedDeltaNet",)},
    ),
    (
        "qwen3.5",
        "Qwen3_5ForCausalLM",
        {"num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
        | {"linear_key_head_dim": 12, "linear_value_head_dim": 12},
        {"recurrent": ("Qwen3_5GatedDeltaNet",), "fast": True},
    ),
    ("xlstm", "xLSTMForCausalLM", {}, {"recurrent": ("xLSTMBackend",)}),
    (
        "minimax",
        "MiniMaxForCausalLM",
        {"num_local_experts": 4, "block_size": 4},
        {"recurrent": ("MiniMaxLightningAttention",), "fast": True},
    ),
)

_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

EXPERTS = _rows(
    "mixture of experts",
    TOKENS,
    ("mixtral", "MixtralForCausalLM", {"num_local_experts": 4, "num_hidden_layers": 3}),
    ("qwen2-moe", "Qwen2MoeForCausalLM", {**_MOE, "shared_expert_intermediate_size": 24}),
    ("qwen3-moe", "Qwen3MoeForCausalLM", _MOE),
    ("olmoe", "OlmoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2}),
    ("gpt-oss", "GptOssForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}),
    ("granitemoe", "GraniteMoeForCausalLM", {"num_local_experts": 4}),
    ("phimoe", "PhimoeForCausalLM", {"num_local_experts": 4}, _FAST),
    ("llama4", "Llama4ForCausalLM", {"num_local_experts": 4, "intermediate_size_mlp": 96, "attention_chunk_size": 4}),
    (
        "deepseek-v3",
        "DeepseekV3ForCausalLM",
        {"num_key_value_heads": 4, "first_k_dense_replace": 1, "n_group": 2}
        | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
        | {"n_routed_experts": 4, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        | {"num_hidden_layers": 3},
        _FAST,
    ),
    (
        "dbrx",
        "DbrxForCausalLM",
        {"n_heads": 4, "n_layers": 2, "max_seq_len": 64}
        | {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}}
        | {"ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 48}},
    ),
    ("jetmoe", "JetMoeForCausalLM", {"num_local_experts": 4, "kv_channels": 12}),
)
EXPERTS += _rows(
    "mixture of experts",
    PAIR,
    (
        "switch",
        "SwitchTransformersModel",
        {"num_experts": 4, "num_sparse_encoder_layers": 1} | {"num_sparse_decoder_layers": 1},
    ),
)

ROWS = ENCODERS + DECODERS + SEQ2SEQ + STATE_SPACE + EXPERTS
