"""Architectures that were first run when detection was finished, each for one oddity; ``docs/detection.md`` counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .table import IMAGE, PAIR, TOKENS, Row, Value, real

_GPT = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}
_CHOSEN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_BESIDE = {**_CHOSEN, "num_shared_experts": 1}
_STAGES = {"depths": [2, 2, 2, 2]}
_TINY_VIT = {"depth": 2, "embed_dim": 48, "num_heads": 4}


def _hub(kind: str, inputs: Mapping[str, Value], *entries: tuple[Any, ...]) -> tuple[Row, ...]:
    """``(name, class)``, then sizes."""
    return tuple(Row(name, kind, "transformers", model, *sizes, inputs=inputs) for name, model, *sizes in entries)  # type: ignore[misc]


def _timm(*entries: tuple[str, str, Mapping[str, Any]]) -> tuple[Row, ...]:
    image = {"x": real(2, 3, 64, 64)}
    return tuple(Row(f"timm-{name}", "vision", "timm", model, sizes, image) for name, model, sizes in entries)


ROWS = (
    *_hub(
        "text encoder",
        TOKENS,
        ("roberta-prelayernorm", "RobertaPreLayerNormModel"),
        ("rembert", "RemBertModel"),
        ("jina-v3", "JinaEmbeddingsV3Model"),
        ("gte", "GteModel"),
        ("eurobert", "EuroBertModel"),
        ("tapas", "TapasModel"),
        ("mra", "MraModel"),
        ("splinter", "SplinterModel"),
    ),
    *_hub(
        "text decoder",
        TOKENS,
        ("bitnet", "BitNetModel"),
        ("openai-gpt", "OpenAIGPTLMHeadModel", _GPT),
        ("imagegpt", "ImageGPTModel", _GPT),
        ("gpt-neox-japanese", "GPTNeoXJapaneseModel", {"intermediate_multiple_size": 2}),
        ("olmo", "OlmoModel"),
        ("olmo3", "Olmo3Model", {"sliding_window": 4}),
        ("nanochat", "NanoChatModel"),
        ("ernie4.5", "Ernie4_5Model"),
        ("modernbert-decoder", "ModernBertDecoderModel"),
        ("molmo2-text", "Molmo2TextModel"),
        ("gemma4-text", "Gemma4UnifiedTextModel", {"sliding_window": 4}),
    ),
    *_hub("encoder-decoder", PAIR, ("mvp", "MvpModel"), ("bigbird-pegasus", "BigBirdPegasusModel")),
    *_hub(
        "mixture of experts",
        TOKENS,
        ("aria-text", "AriaTextModel", {"moe_num_experts": 4, "moe_topk": 2}),
        ("minimax-m2", "MiniMaxM2Model", {"num_experts_per_tok": 2, "num_local_experts": 4}),
        ("cohere2-moe", "Cohere2MoeModel", {"sliding_window": 4, **_BESIDE}),
        ("afmoe", "AfmoeModel", {"sliding_window": 4, "num_dense_layers": 1, **_BESIDE}),
        ("kolibri1", "Kolibri1Model", {**_CHOSEN, "shared_expert_intermediate_size": 24}),
    ),
    *_hub(
        "vision",
        IMAGE,
        ("focalnet", "FocalNetModel", _STAGES),
        ("vitdet", "VitDetModel", {"window_size": 4}),
        ("radio", "RadioModel"),
        ("aimv2-vision", "Aimv2VisionModel"),
        ("dpt", "DPTModel", {"fusion_hidden_size": 16}),
    ),
    *_timm(
        ("cpubone", "cpubone_b0_bfrobust", {}),
        ("lowformer", "lowformer_b0", {}),
        ("nest", "nest_tiny", {"img_size": 64}),
        ("swinv2-cr", "swinv2_cr_tiny_224", {"img_size": 64, "depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4)}),
        ("vit-relpos", "vit_relpos_small_patch16_224", {"img_size": 64, **_TINY_VIT}),
        ("vit-srelpos", "vit_srelpos_small_patch16_224", {"img_size": 64, **_TINY_VIT}),
        ("vit-parallel", "vit_small_patch16_18x2_224", {"img_size": 64, **_TINY_VIT}),
        ("samvit", "samvit_base_patch16", {"img_size": 64, **_TINY_VIT}),
        ("gemma4-vit", "gemma4_vit_167m", {"img_size": 64, **_TINY_VIT}),
        ("fasternet", "fasternet_t0", {}),
        ("inception-next", "inception_next_atto", {}),
        ("xception", "legacy_xception", {}),
        ("efficientnet", "efficientnet_b0", {}),
    ),
)
