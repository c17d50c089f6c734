"""The matrix of caching: architectures, trajectories through them, and every policy with its identity setting.

Shared by the suite (a few steps, pieces run as they are) and ``benchmarks/policy_matrix.py`` (through Inductor).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import laconic

from .builders import BUILDERS, Built

SCALE = 3.0
"""Guidance strength of the guided architectures."""


def ltx(layers: int = 2) -> Built:
    """A video transformer: the latent comes as tokens of 2 x 3 x 3 patches."""
    from diffusers import LTXVideoTransformer3DModel

    torch.manual_seed(0)
    model = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=layers,
        caption_channels=24,
    )
    kwargs = {
        "hidden_states": torch.randn(2, 18, 4),
        "encoder_hidden_states": torch.randn(2, 5, 24),
        "timestep": torch.tensor([3, 7]),
        "encoder_attention_mask": torch.ones(2, 5, dtype=torch.int64),
        "num_frames": 2,
        "height": 3,
        "width": 3,
        "return_dict": False,
    }
    return model.eval(), (), kwargs


def digits(layers: int = 3) -> Built:
    """The transformer of ``examples/``, which no library knows, with random weights."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
    from digits_dit import DigitsDiT, Settings, noise_and_labels

    torch.manual_seed(0)
    model = DigitsDiT(Settings(width=48, depth=layers, heads=4)).eval()
    for layer in (model.condition, model.head_modulation, model.head):
        nn.init.normal_(layer.weight, std=0.05)
    noise, labels = noise_and_labels(2)
    return model, (noise, torch.full((2,), 0.3), labels), {}


@dataclass(frozen=True, eq=False)
class Architecture:
    """A model, its inputs by name, and which of them a sampler changes: the latent and the time."""

    model: nn.Module
    inputs: dict[str, Any]
    latent: str
    time: str

    @classmethod
    def of(cls, built: Built) -> Architecture:
        """From what a builder returns; the latent is the model's first argument."""
        model, args, kwargs = built
        names = list(inspect.signature(model.forward).parameters)
        inputs = {**dict(zip(names, args, strict=False)), **kwargs}
        return cls(model.requires_grad_(False), inputs, names[0], "timestep" if "timestep" in inputs else "t")

    def guided(self) -> Architecture:
        """Guidance inside the graph: one latent, doubled; the two rows of a condition belong to the two halves."""
        latent, time = self.inputs[self.latent][:1], self.inputs[self.time][:1].repeat(2)
        inputs = {**self.inputs, self.time: time}
        del inputs[self.latent]
        if "encoder_hidden_states" in inputs:
            # Random prompts are as far apart as can be, and untrained networks then answer in opposite directions.
            first, second = inputs["encoder_hidden_states"]
            inputs["encoder_hidden_states"] = torch.stack([first, first + 0.3 * (second - first)])
        return Architecture(Guided(self.model, self.latent), {"x": latent, **inputs}, "x", self.time)

    @torch.no_grad()
    def trajectory(self, model: Any, steps: int, seed: int = 0) -> Tensor:
        """``steps`` steps of a sampler that adds a part of the output; the time moves ever faster."""
        x = self.inputs[self.latent]
        x = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        start = self.inputs[self.time]
        for step in range(steps):
            moved = step * step / steps / steps
            time = start + 0.5 * moved if start.is_floating_point() else start + int(100 * moved)
            out = model(**{**self.inputs, self.latent: x, self.time: time})
            y = out if isinstance(out, Tensor) else out[0]
            # A learned variance comes as further channels.
            x = x + 0.8 / steps * (y[:, : x.shape[1]] if y.shape != x.shape else y)
        return x


class Guided(nn.Module):
    """A network with classifier-free guidance around it, as a sampler compiled as a whole has it."""

    def __init__(self, network: nn.Module, latent: str, scale: float = SCALE) -> None:
        super().__init__()
        self.network = network
        self.latent = latent
        self.scale = scale

    def forward(self, x: Tensor, **inputs: Any) -> Tensor:
        """The guided output for ``x [1, ...]``; inputs are those of the network for ``[2, ...]``."""
        out = self.network(**{self.latent: torch.cat([x, x])}, **inputs)
        y = out if isinstance(out, Tensor) else out[0]
        u, c = y[:, : x.shape[1]].chunk(2)
        return u + self.scale * (c - u)


ARCHITECTURES: dict[str, Callable[[], Architecture]] = {
    "flux": lambda: Architecture.of(BUILDERS["flux"](2)),
    "dit": lambda: Architecture.of(BUILDERS["dit"](2)),
    "sd3": lambda: Architecture.of(BUILDERS["sd3"](4)),
    "ltx": lambda: Architecture.of(ltx()),
    "unet": lambda: Architecture.of(BUILDERS["unet"](2)),
    "custom": lambda: Architecture.of(digits()),
}


@dataclass(frozen=True)
class Row:
    """A policy, how to set it for a number of steps and of layers (None: it has to know neither), and how to undo it.

    ``guided`` policies need guidance in the graph.
    """

    policy: str
    settings: Callable[[int, int], dict[str, Any]]
    identity: Callable[[int, int], dict[str, Any]]
    guided: bool = False

    def passes(self, steps: int, layers: int, *, identity: bool = False) -> list[laconic.Pass]:
        """What to give to ``laconic.Backend``."""
        return [laconic.cache(self.policy, **(self.identity if identity else self.settings)(steps, layers))]


def _row(policy: str, settings: dict[str, Any], identity: dict[str, Any]) -> Row:
    return Row(policy, lambda steps, layers: settings, lambda steps, layers: identity)


def _router_table(steps: int, layers: int) -> list[list[int]]:
    """As a trained router gives it: another selection of layers in each step."""
    return [[int(step == 0 or (step + layer) % 3 > 0) for layer in range(layers)] for step in range(steps)]


def _guidance_rows(steps: int, layers: int) -> list[Any]:
    """Both halves in every other step at first, then the conditional one only."""
    mixed = ((0.5, 0.25), (0.25,))
    return [(mixed if step % 2 else None) if step < steps // 2 else ((1.0,), ()) for step in range(steps)]


POLICIES: dict[str, Row] = {
    "easycache": _row("easycache", {"threshold": 0.3, "warmup": 2}, {"threshold": 0}),
    "easycache, order 1": _row("easycache", {"threshold": 0.3, "warmup": 2, "order": 1}, {"threshold": 0, "order": 1}),
    "taylor, network": _row("taylor", {"interval": 2, "repay": 0.5}, {"interval": 1, "repay": 0.5}),
    "taylor, blocks": _row("taylor", {"interval": 3, "level": "blocks"}, {"interval": 1, "level": "blocks"}),
    "taylor, layers": _row("taylor", {"interval": 2, "level": "layers"}, {"interval": 1, "level": "layers"}),
    "first-block": _row("first-block", {"threshold": 0.9, "warmup": 1}, {"threshold": 0}),
    "first-block, order 1": _row(
        "first-block", {"threshold": 0.9, "warmup": 1, "order": 1, "max_consecutive": 2}, {"max_consecutive": 0}
    ),
    "delta-dit": _row("delta-dit", {"interval": 2, "blocks": 2}, {"interval": 1, "blocks": 2}),
    "sada": Row(
        "sada",
        lambda steps, layers: {"start": 3, "multistep": steps // 2, "period": 2, "stop": steps - 1},
        lambda steps, layers: {"max_interval": 0},
    ),
    "static": Row(
        "static",
        lambda steps, layers: {"table": laconic.interval_table(steps, 2, warmup=2), "order": 1},
        lambda steps, layers: {"table": [1] * steps},
    ),
    "static, layers": Row(
        "static",
        lambda steps, layers: {"table": _router_table(steps, layers)},
        lambda steps, layers: {"table": [[1] * layers] * steps},
    ),
    "adaptive-guidance": Row(
        "adaptive-guidance",
        lambda steps, layers: {"threshold": 0.0},
        lambda steps, layers: {"threshold": 1.01},
        guided=True,
    ),
    "linear-ag": Row(
        "linear-ag",
        lambda steps, layers: {"coefficients": _guidance_rows(steps, layers)},
        lambda steps, layers: {"coefficients": [None] * steps},
        guided=True,
    ),
}
