"""What the caching benchmarks sample with: a network, a sampler and seeds, each under one name.

``SETUPS[name]()`` makes one: the trained digits transformer (50 or 30 Euler steps), the same with guidance in the
graph, and diffusers' Flux and DiT with random weights (30 steps).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401  (benchmarks measure the checkout they lie in)
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.models.timm_support import declare_torchvision_operators

# diffusers imports torchvision, whose wheel may come without its operators.
declare_torchvision_operators()

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from digits_dit import NO_CLASS, load, noise_and_labels, sample  # noqa: E402

CALIBRATION = (0, 1)
"""Seeds that settings, tables and coefficients are chosen on."""
EVALUATION = (1000, 1001)
"""Seeds that errors are reported on. Nothing is chosen on them."""


@dataclass(frozen=True, eq=False)
class Setup:
    """``draw(network, seed, steps)`` gives samples drawn with ``network``, which is called as ``model`` is.

    ``few``: each row of a curve takes long, so only some settings are run.
    """

    name: str
    model: nn.Module
    steps: int
    draw: Callable[[Any, int, int], Tensor]
    few: bool = False

    def samples(self, network: Any, seeds: Sequence[int], steps: int | None = None) -> Tensor:
        """One trajectory for each seed, its samples put together."""
        return torch.cat([self.draw(network, seed, steps or self.steps) for seed in seeds])

    def outputs(self, seeds: Sequence[int]) -> Tensor:
        """The network's outputs ``[steps, samples, ...]`` along uncached trajectories."""
        return torch.cat([self._recorded(seed) for seed in seeds], 1)

    def _recorded(self, seed: int) -> Tensor:
        kept: list[Tensor] = []

        def keeping(*args: Any, **kwargs: Any) -> Any:
            result = self.model(*args, **kwargs)
            kept.append(result if isinstance(result, Tensor) else result[0])
            return result

        self.draw(keeping, seed, self.steps)
        return torch.stack(kept)

    def flops(self) -> int:
        """FLOPs of one uncached trajectory of one seed."""
        return self.steps * counted(lambda: self.draw(self.model, 0, 1))[1]


def counted(run: Callable[[], Any]) -> tuple[Any, int]:
    """What ``run`` returns, and the FLOPs it took."""
    with FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()


class GuidedDigits(nn.Module):
    """The digits transformer with classifier-free guidance in its graph, for a batch ``[B, 1, S, S]``."""

    def __init__(self, network: nn.Module, strength: float = 2.5) -> None:
        super().__init__()
        self.network = network
        self.strength = strength

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        u, c = self.halves(x, t, label)
        return u + self.strength * (c - u)

    def halves(self, x: Tensor, t: Tensor, label: Tensor) -> Any:
        """The unconditional and the conditional output."""
        labels = torch.cat([torch.full_like(label, NO_CLASS), label])
        return self.network(torch.cat([x, x]), torch.cat([t, t]), labels).chunk(2)


def digits(steps: int, batch: int = 8) -> Setup:
    """The trained transformer (8 blocks, 64 tokens), Euler steps of its flow."""
    model, _ = load()

    def draw(network: Any, seed: int, count: int) -> Tensor:
        return sample(network, *noise_and_labels(batch, seed=seed), count)

    return Setup(f"digits transformer, {steps} steps", model, steps, draw)


def guided(steps: int = 50, batch: int = 4) -> Setup:
    """The trained transformer with guidance in the graph."""
    plain = digits(steps, batch)
    return Setup(f"digits transformer with guidance, {steps} steps", GuidedDigits(plain.model), steps, plain.draw)


def flux(steps: int = 30) -> Setup:
    """Flux, 4 + 8 blocks, width 256, 256 image and 64 text tokens, random weights."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=16,
        num_layers=4,
        num_single_layers=8,
        attention_head_dim=32,
        num_attention_heads=8,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        axes_dims_rope=(8, 12, 12),
        guidance_embeds=False,
    )
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(16.0), torch.arange(16.0))
    fixed = {
        "encoder_hidden_states": torch.randn(1, 64, 64),
        "pooled_projections": torch.randn(1, 64),
        "img_ids": grid,
        "txt_ids": torch.zeros(64, 3),
        "return_dict": False,
    }
    return Setup(
        "Flux, random weights", model.eval().requires_grad_(False), steps, _euler((1, 256, 16), fixed, 1), True
    )


def dit(steps: int = 30) -> Setup:
    """DiT, 12 blocks, width 256, 256 tokens, random weights."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=8,
        attention_head_dim=32,
        in_channels=4,
        out_channels=4,
        num_layers=12,
        sample_size=32,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    )
    fixed = {"class_labels": torch.tensor([7]), "return_dict": False}
    return Setup(
        "DiT, random weights", model.eval().requires_grad_(False), steps, _euler((1, 4, 32, 32), fixed, 1000), True
    )


def _euler(shape: tuple[int, ...], fixed: dict[str, Any], scale: float) -> Callable[[Any, int, int], Tensor]:
    """Euler steps from noise at time 1 to time 0; the network is told ``scale`` times the time."""

    @torch.no_grad()
    def draw(network: Any, seed: int, steps: int) -> Tensor:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for step in range(steps):
            time = torch.full((1,), 1 - step / steps) * scale
            x = x - network(hidden_states=x, timestep=time, **fixed)[0] / steps
        return x

    return draw


SETUPS: dict[str, Callable[[], Setup]] = {
    "digits": lambda: digits(50),
    "digits-16": lambda: digits(50, batch=16),
    "digits-30": lambda: digits(30),
    "guided": guided,
    "flux": flux,
    "dit": dit,
}
