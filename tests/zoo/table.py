"""Rows of the model zoo: an architecture of a library, the sizes that make it tiny, and what it is called with.

Nothing is downloaded: a model is built from its configuration with seeded random weights. A row says only what
differs from :data:`TINY`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from tests.models.timm_support import declare_torchvision_operators

Value = Callable[[], Any]

# Given to every transformers configuration that has the field.
TINY: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "d_model": 48,
    "d_ff": 96,
    "d_kv": 12,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "embedding_size": 24,
    "image_size": 32,
    "patch_size": 8,
}


def ids(*shape: int, high: int = 120) -> Value:
    """Token numbers from 3 on: below are the special ones."""
    return lambda: torch.randint(3, high, shape)


def real(*shape: int) -> Value:
    """Standard normal numbers."""
    return lambda: torch.randn(shape)


def number(*values: float) -> Value:
    """Exactly these values as a one-dimensional tensor."""
    return lambda: torch.tensor(values)


def given(make: Value) -> Value:
    """Anything else."""
    return make


def looked_up(path: str) -> Any:
    """What ``module:name`` names; the name may be that of an attribute's attribute."""
    module, _, name = path.partition(":")
    return attrgetter(name)(importlib.import_module(module))


@dataclass(frozen=True)
class Named:
    """A class among timm's models, looked up when the row is built: ``file:Class``."""

    path: str

    def found(self) -> Any:
        return looked_up(f"timm.models.{self.path}")


@dataclass(frozen=True)
class Part:
    """A part of a model, called for when the row is built: ``module:Class`` and what it is given."""

    path: str
    given: tuple[Any, ...] = ()
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def found(self) -> Any:
        return looked_up(self.path)(*_found(self.given), **_found(self.sizes))


def part(path: str, *given: Any, **sizes: Any) -> Part:
    return Part(path, given, sizes)


TOKENS: Mapping[str, Value] = {"input_ids": ids(2, 12)}
PAIR: Mapping[str, Value] = {"input_ids": ids(2, 12), "decoder_input_ids": ids(2, 7)}
IMAGE: Mapping[str, Value] = {"pixel_values": real(2, 3, 32, 32)}


@dataclass(frozen=True)
class Row:
    """One architecture.

    ``library`` is ``transformers``, ``diffusers`` or ``timm``; ``model`` a class of it (timm: a registered name, or
    ``file:Class``). ``written`` are the models of ``written.py``; of any other library ``model`` is ``module:Class``.
    ``recurrent`` names the classes whose forward runs a recurrence over time (twice where it runs two), ``linear``
    those (or the processors of those) that run linear attention: eager counts their executions.
    ``fast`` rows make up the slice that runs on every change.
    """

    name: str
    kind: str
    library: str
    model: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Value] = field(default_factory=dict)
    recurrent: tuple[str, ...] = ()
    linear: tuple[str, ...] = ()
    fast: bool = False

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """The module in evaluation mode and its keyword arguments; the same on every call."""
        declare_torchvision_operators()
        torch.manual_seed(0)
        module = _MAKERS.get(self.library, _elsewhere)(self)
        for parameter in module.parameters():
            # Some libraries start gates, scales and last layers at zero, which would hide what they do.
            if not bool(parameter.detach().any()):
                nn.init.normal_(parameter, std=0.02)
        return module.eval(), {name: make() for name, make in self.inputs.items()}


def _transformers(row: Row) -> nn.Module:
    library = importlib.import_module("transformers")
    cls = getattr(library, row.model)
    config = cls.config_class(**{**_tiny(cls.config_class), **_sizes(cls.config_class, row.sizes)})
    return cls(config)


def _tiny(config: Any) -> dict[str, Any]:
    names = {item.name for item in dataclasses.fields(config)}
    names = {name for name in names if name not in getattr(config, "attribute_map", {})}
    return {name: value for name, value in TINY.items() if name in names}


def _sizes(config: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of nested configurations are filled up in the same way."""
    parts = getattr(config, "sub_configs", {})
    made = {}
    for name, value in sizes.items():
        part = parts.get(name)
        if isinstance(value, Mapping) and part is not None and dataclasses.is_dataclass(part):
            value = {**_tiny(part), **_sizes(part, value)}
        made[name] = value
    return made


def _diffusers(row: Row) -> nn.Module:
    return getattr(importlib.import_module("diffusers"), row.model)(**row.sizes)


def _timm(row: Row) -> nn.Module:
    sizes = _found(row.sizes)
    if ":" in row.model:
        return Named(row.model).found()(**sizes)
    return importlib.import_module("timm").create_model(row.model, pretrained=False, **sizes)


def _found(value: Any) -> Any:
    """``value`` with the classes and parts in it looked up and built."""
    if isinstance(value, Mapping):
        return {name: _found(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_found, value))
    return value.found() if isinstance(value, Named | Part) else value


def _elsewhere(row: Row) -> nn.Module:
    return Part(row.model, (), row.sizes).found()


_MAKERS: dict[str, Callable[[Row], nn.Module]] = {
    "transformers": _transformers,
    "diffusers": _diffusers,
    "timm": _timm,
    "written": lambda row: getattr(importlib.import_module("tests.zoo.written"), row.model)(**row.sizes),
}


def call(module: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Run a built row; inputs named by numbers go by position, and so does the image of timm's models."""
    if set(inputs) == {"x"}:
        return module(inputs["x"])
    numbered = [value for name, value in inputs.items() if name.isdigit()]
    return module(*numbered, **{name: value for name, value in inputs.items() if not name.isdigit()})
