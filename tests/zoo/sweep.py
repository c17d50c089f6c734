"""Architectures of transformers, timm and diffusers that are not in the zoo, made small by one set of rules.

Nothing here knows a model: a family is a folder or file of its library. Of each the first model class is built with
:data:`~.table.TINY` and what is like it, and called with the first set of inputs that runs. What these rules cannot
build or call is no row that failed, but one that was not run; the page names it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .rows import ROWS as ZOO
from .table import TINY, Row, call, declare_torchvision_operators

_LARGEST = 30_000_000
"""Parameters; what stays larger after shrinking would take minutes."""

_SIDE = 32
_NESTED = {"vision_config": {"image_size": _SIDE, "patch_size": 8, "num_channels": 3}}
_EXPERTS = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "top_k", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
}
_FURTHER = {
    **_EXPERTS,
    **dict.fromkeys(("n_embd", "dim", "hidden_dim", "embed_dim", "decoder_hidden_size", "encoder_hidden_size"), 48),
    **dict.fromkeys(("n_layer", "n_layers", "depth", "num_layers", "decoder_num_layers"), 2),
    **dict.fromkeys(("n_head", "n_heads", "num_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("ffn_dim", "intermediate_dim", "n_inner", "d_inner", "decoder_intermediate_size"), 96),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"), 64),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **{"v_head_dim": 12, "state_size": 8, "sliding_window": 8, "num_channels": 3, "num_queries": 6},
}
_LATENTS = {"in_channels": 4, "out_channels": 4, "caption_channels": 32}
_UNET = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1, "sample_size": 8}
_DIFFUSION = {
    **{"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 4, "attention_head_dim": 12, "heads": 4},
    **dict.fromkeys(
        ("cross_attention_dim", "joint_attention_dim", "caption_channels", "text_embed_dim", "text_dim"), 32
    ),
    **{"pooled_projection_dim": 32, "caption_projection_dim": 48, "ffn_dim": 96, "freq_dim": 16, "in_channels": 4},
    **{"out_channels": 4, "hidden_size": 48, "dim": 48, "axes_dims_rope": (4, 4, 4), "num_refiner_layers": 1},
    **_UNET,
}


@dataclasses.dataclass(frozen=True)
class Swept(Row):
    """A row whose sizes and inputs are looked for when it is built."""

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        declare_torchvision_operators()
        reasons = []
        for make, inputs in _ATTEMPTS[self.library](self.model):
            torch.manual_seed(0)
            try:
                module = make().eval()
                given = inputs(module)
                with torch.no_grad():
                    call(module, given)
            except Exception as error:
                reasons.append(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
                continue
            return module, given
        raise ValueError(f"the rules build no model of this family: {reasons[0] if reasons else 'no class of it'}")


Attempt = tuple[Callable[[], nn.Module], Callable[[nn.Module], dict[str, Any]]]


def _small(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        size = sum(weight.numel() for weight in make().parameters())
    if size > _LARGEST:
        raise ValueError(f"{size // 10**6} million parameters after shrinking")
    return make()


# transformers


def _config(config: Any, sizes: Mapping[str, Any]) -> Any:
    """A small configuration; the parts of a nested one are small in the same way."""
    names = {item.name for item in dataclasses.fields(config)} - set(getattr(config, "attribute_map", {}))
    given = {name: value for name, value in sizes.items() if name in names}
    for name in getattr(config, "sub_configs", {}):
        part = type(getattr(config(), name, None))
        if dataclasses.is_dataclass(part):
            given[name] = _config(part, {**sizes, **_NESTED.get(name, {})}).to_dict()
    return config(**given)


_READ = (
    ("input_ids", "pixel_values"),
    ("input_ids",),
    ("pixel_values",),
    ("pixel_values_videos",),
    ("input_values",),
    ("input_features",),
)


def _transformers(family: str) -> Iterator[Attempt]:
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    classes = [getattr(module, name) for name in getattr(module, "__all__", ())]
    classes = [cls for cls in classes if dataclasses.is_dataclass(getattr(cls, "config_class", None))]
    classes = [cls for cls in classes if "PreTrained" not in cls.__name__]
    classes.sort(key=lambda cls: not cls.__name__.endswith("Model"))
    for cls in classes[:4]:
        known = inspect.signature(cls.forward).parameters
        for sizes in ({**_FURTHER, **TINY}, {**_FURTHER, **TINY, "num_key_value_heads": 4}):
            for names in (names for names in _READ if set(names) <= set(known)):
                for decoder in (False, True) if "decoder_input_ids" in known else (False,):
                    make = functools.partial(cls._from_config, _config(cls.config_class, sizes))
                    yield functools.partial(_small, make), functools.partial(_read, names, decoder)


def _read(names: tuple[str, ...], decoder: bool, module: Any) -> dict[str, Any]:
    config = getattr(module.config, "vision_config", module.config)
    side, channels = getattr(config, "image_size", _SIDE), getattr(config, "num_channels", 3)
    side = side if isinstance(side, int) else _SIDE
    frames = getattr(config, "num_frames", 4)
    mels = getattr(module.config, "num_mel_bins", getattr(module.config, "feature_size", 80))
    every = {
        "input_ids": lambda: torch.randint(3, 120, (2, 12)),
        "pixel_values": lambda: torch.randn(2, channels, side, side),
        "pixel_values_videos": lambda: torch.randn(2, frames, channels, side, side),
        "input_values": lambda: torch.randn(2, 1600),
        "input_features": lambda: torch.randn(2, mels, 128),
    }
    given = {name: every[name]() for name in names}
    return given | ({"decoder_input_ids": torch.randint(3, 120, (2, 7))} if decoder else {})


# timm

_LEAST = ("atto", "femto", "pico", "nano", "tiny", "xxs", "_xs", "b0", "t0", "18", "small", "_s", "_0")


def _timm(family: str) -> Iterator[Attempt]:
    timm = importlib.import_module("timm")
    models = timm.list_models(module=family)
    least = next((name for end in _LEAST for name in models if end in name), models[0])
    vit = {"depth": 2, "embed_dim": 48, "num_heads": 4}
    for sizes in ({"img_size": 64, **vit}, {"img_size": 64}, {}):
        for side in (64,) if sizes else (64, 224):
            make = functools.partial(timm.create_model, least, pretrained=False, **sizes)
            yield functools.partial(_small, make), lambda module, side=side: {"x": torch.randn(1, 3, side, side)}


# diffusers


def _diffusers(name: str) -> Iterator[Attempt]:
    cls = getattr(importlib.import_module("diffusers"), name)
    known = inspect.signature(cls.__init__).parameters
    tokens = {key: value for key, value in _DIFFUSION.items() if "channels" not in key}
    for group in (_DIFFUSION, tokens, {**_LATENTS, **tokens}, {}):
        make = functools.partial(cls, **{name: value for name, value in group.items() if name in known})
        for shape in ((8, 8), (), (2, 8, 8)):
            yield functools.partial(_small, make), functools.partial(_noisy, shape)


def _noisy(shape: tuple[int, ...], module: Any) -> dict[str, Any]:
    """Inputs of a denoiser by their names: latents as an image or a film of ``shape``, or as tokens."""
    config = module.config
    channels = config.get("in_channels") or 4
    image = torch.randn(1, channels, *shape) if shape else torch.randn(1, 16, channels)
    widths = (
        config.get(name) for name in ("joint_attention_dim", "cross_attention_dim", "caption_channels", "text_dim")
    )
    every = {
        **dict.fromkeys(("hidden_states", "sample", "x"), image),
        **dict.fromkeys(("timestep", "timesteps"), torch.tensor([7.0])),
        "encoder_hidden_states": torch.randn(1, 6, next((width for width in widths if isinstance(width, int)), 32)),
        "pooled_projections": torch.randn(1, config.get("pooled_projection_dim") or 32),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(6, 3),
        "guidance": torch.tensor([1.0]),
        "return_dict": False,
    }
    known = inspect.signature(module.forward).parameters
    return {name: value for name, value in every.items() if name in known}


_ATTEMPTS: dict[str, Callable[[str], Iterator[Attempt]]] = {
    "transformers": _transformers,
    "timm": _timm,
    "diffusers": _diffusers,
}


def _outside() -> Iterator[tuple[str, str]]:
    """Library and family of every architecture that no row of the zoo is of."""
    declare_torchvision_operators()
    rows = [row for row in ZOO.values() if row.library in _ATTEMPTS]
    held = {row.model for row in rows}
    folder = Path(importlib.import_module("transformers.models").__file__ or "").parent
    for path in sorted(folder.glob("*/modeling_*.py")):
        family = path.parent.name
        if path.stem == f"modeling_{family}" and not any(f"class {model}(" in path.read_text() for model in held):
            yield "transformers", family
    timm = importlib.import_module("timm")
    known = {name for family in timm.list_modules() for name in timm.list_models(module=family) if name in held}
    files = {row.model.partition(":")[0] for row in rows if row.library == "timm"}
    for family in timm.list_modules():
        models = timm.list_models(module=family)
        if models and family not in files and not known & set(models):
            yield "timm", family
    mixin = importlib.import_module("diffusers").ModelMixin
    for name in sorted(dir(importlib.import_module("diffusers"))):
        cls = getattr(importlib.import_module("diffusers"), name)
        if inspect.isclass(cls) and issubclass(cls, mixin) and cls is not mixin and name not in held:
            yield "diffusers", name


ROWS: dict[str, Row] = {
    f"{library}-{family}": Swept(f"{library}-{family}", library, library, family) for library, family in _outside()
}
