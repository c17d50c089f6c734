"""Further architectures, most of them for one oddity of their attention, feed-forward or routing; all kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .table import PAIR, TOKENS, Row, Value, given, ids, real

_FOUR = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_DENSE_FIRST = {**_FOUR, "n_routed_experts": 4, "first_k_dense_replace": 1, "num_hidden_layers": 3}
_SMALL_GPT = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}
_XLM = {"emb_dim": 48, "n_layers": 2, "n_heads": 4, "n_words": 120}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
_SPEECH = {"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2]} | {
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def _boxes() -> Any:
    corners = torch.randint(0, 30, (2, 12, 2))
    return torch.cat([corners, corners + torch.randint(1, 30, (2, 12, 2))], -1)


def _text(kind: str, inputs: Mapping[str, Value], *entries: tuple[Any, ...]) -> tuple[Row, ...]:
    """``(name, class)``, then sizes."""
    return tuple(Row(name, kind, "transformers", model, *sizes, inputs=inputs) for name, model, *sizes in entries)  # type: ignore[misc]


def _image(size: int, *entries: tuple[Any, ...]) -> tuple[Row, ...]:
    """``(name, registered name, sizes)`` of timm and classes of linear attention, for square images of ``size``."""
    image = {"x": real(2, 3, size, size)}
    return tuple(
        Row(f"timm-{name}", "vision", "timm", model, sizes, image, linear=tuple(linear))
        for name, model, sizes, *linear in entries
    )


ROWS = (
    *_text(
        "text encoder",
        TOKENS,
        ("big-bird", "BigBirdModel", {"attention_type": "original_full"}),
        ("megatron-bert", "MegatronBertModel"),
        ("ibert", "IBertModel"),
        ("squeezebert", "SqueezeBertModel", {"embedding_size": 48}),
        ("deberta", "DebertaModel", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
        ("flaubert", "FlaubertModel", _XLM),
        ("xlm", "XLMModel", _XLM),
        ("yoso", "YosoModel", {"use_expectation": True}),
        ("luke", "LukeModel", {"entity_vocab_size": 20, "entity_emb_size": 24}),
        ("markuplm", "MarkupLMModel"),
    ),
    *_text(
        "text encoder",
        {"input_ids": ids(2, 12), "bbox": given(_boxes)},
        ("lilt", "LiltModel", {"channel_shrink_ratio": 4, "max_2d_position_embeddings": 64}),
    ),
    *_text(
        "text encoder",
        {"input_ids": ids(2, 64)},
        ("big-bird-sparse", "BigBirdModel", {"block_size": 4, "num_random_blocks": 1}),
        (
            "reformer",
            "ReformerModel",
            {"axial_pos_embds": False, "attention_head_size": 12, "attn_layers": ["local", "local"]}
            | {"feed_forward_size": 96, "local_attn_chunk_length": 4, "hash_seed": 0, "is_decoder": False},
        ),
    ),
    *_text(
        "vision-language",
        {"inputs": real(2, 12, 48)},
        (
            "perceiver",
            "PerceiverModel",
            {"d_latents": 48, "d_model": 48, "num_latents": 8, "num_self_attends_per_block": 2, "num_blocks": 1}
            | {"num_self_attention_heads": 4, "num_cross_attention_heads": 4},
        ),
    ),
    *_text(
        "encoder-decoder",
        PAIR,
        ("fsmt", "FSMTModel", {"langs": ["en", "de"], "src_vocab_size": 120, "tgt_vocab_size": 120}),
    ),
    *_text(
        "text decoder",
        TOKENS,
        ("gpt-bigcode", "GPTBigCodeForCausalLM", _SMALL_GPT),
        ("codegen", "CodeGenForCausalLM", {**_SMALL_GPT, "rotary_dim": 4}),
        ("persimmon", "PersimmonForCausalLM"),
        ("cohere2", "Cohere2ForCausalLM", {"sliding_window": 4}),
        ("apertus", "ApertusForCausalLM"),
        ("arcee", "ArceeForCausalLM"),
        ("helium", "HeliumForCausalLM"),
        ("doge", "DogeForCausalLM"),
        ("seed-oss", "SeedOssForCausalLM"),
        ("vaultgemma", "VaultGemmaForCausalLM", {"sliding_window": 4}),
    ),
    *_text(
        "mixture of experts",
        TOKENS,
        (
            "granitemoe-shared",
            "GraniteMoeSharedForCausalLM",
            {"num_local_experts": 4, "shared_intermediate_size": 48},
        ),
        (
            "ernie4.5-moe",
            "Ernie4_5_MoeForCausalLM",
            {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24}
            | {"moe_layer_start_index": 0, "moe_num_shared_experts": 1},
        ),
        ("hunyuan-moe", "HunYuanMoEV1ForCausalLM", {"num_experts": 4, "moe_topk": 2, "moe_intermediate_size": 24}),
        ("glm4-moe", "Glm4MoeForCausalLM", _DENSE_FIRST),
        ("dots1", "Dots1ForCausalLM", {**_DENSE_FIRST, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}),
        (
            "deepseek-v2",
            "DeepseekV2ForCausalLM",
            {**_DENSE_FIRST, **_LATENT, "num_key_value_heads": 4, "n_group": 2, "topk_group": 1}
            | {"topk_method": "group_limited_greedy"},
        ),
        (
            "lfm2-moe",
            "Lfm2MoeForCausalLM",
            {**_FOUR, "num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}
            | {"num_experts": 4, "num_dense_layers": 1},
        ),
        ("flex-olmo", "FlexOlmoForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2}),
    ),
    *_text(
        "mixture of experts",
        PAIR,
        ("nllb-moe", "NllbMoeModel", {"num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2}),
    ),
    *_text(
        "audio",
        {"input_values": real(2, 2000)},
        (
            "sew-d",
            "SEWDModel",
            {**_SPEECH, "feat_extract_norm": "layer", "squeeze_factor": 2, "pos_att_type": ["p2c", "c2p"]},
        ),
        ("unispeech", "UniSpeechModel", _SPEECH),
    ),
    *_image(
        64,
        ("visformer", "visformer_tiny", {"depth": (1, 2, 2), "img_size": 64}),
        ("efficientvit", "efficientvit_b0", {}, "LiteMLA"),
        ("fastvit", "fastvit_sa12", {}),
        ("mobilevitv2", "mobilevitv2_050", {}),
        ("repvit", "repvit_m0_9", {}),
        ("convit", "convit_tiny", {"depth": 3, "local_up_to_layer": 2, "img_size": 64}),
        ("mambaout", "mambaout_femto", {"depths": (1, 1, 2, 1)}),
        ("starnet", "starnet_s1", {}),
        ("shvit", "shvit_s1", {}),
        ("rdnet", "rdnet_tiny", {}),
    ),
    *_image(
        224,
        ("efficientvit-m0", "efficientvit_m0", {}),
        ("tiny-vit", "tiny_vit_5m_224", {}),
        ("pit", "pit_ti_224", {"depth": [1, 1, 1]}),
        ("tnt", "tnt_s_patch16_224", {"depth": 2}),
        ("swiftformer", "swiftformer_xs", {}),
        ("vitamin", "vitamin_small_224", {}),
    ),
    *_image(240, ("crossvit", "crossvit_tiny_240", {"img_size": 240, "depth": [[1, 1, 0]] * 3})),
)
