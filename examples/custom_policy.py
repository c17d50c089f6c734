"""A cache policy of one's own: ``python examples/custom_policy.py``.

A policy has two halves. The frozen settings plan where results are kept; the tracker, one for each trajectory, decides
on the host before each call whether it runs, and says what a skipped one returns.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import laconic
from laconic.passes.cache_levels import regions_at
from laconic.passes.reuse import CachePolicy, Moment, Tracker


class AlignedTracker(Tracker):
    """Reuses the last output, rescaled, while the latent keeps its direction."""

    def __init__(self, angle: float) -> None:
        self.angle = angle
        self.last: tuple[Tensor, Tensor] | None = None

    def decide(self, moment: Moment, entries: Sequence[Tensor]) -> bool:
        if self.last is None or moment.last:
            return False
        self.indicator = float(torch.cosine_similarity(entries[0].flatten(), self.last[0].flatten(), dim=0))
        return self.indicator > self.angle

    def observe(self, moment: Moment, entries: Sequence[Tensor], exits: Sequence[Tensor]) -> None:
        # The caller may write into these later, so what is kept are copies, in buffers that stay where they are.
        self.last = (self.keep("latent", entries[0]), self.keep("output", exits[0]))
        self.ready = True

    def predict(self, moment: Moment, entries: Sequence[Tensor]) -> tuple[Any, ...]:
        assert self.last is not None
        latent, output = self.last
        return (output * (entries[0].norm() / latent.norm()),)


@laconic.graph_pass("cache_aligned")
@dataclass(frozen=True)
class Aligned(CachePolicy):
    """Reuse the network's output while the cosine between the latents stays above ``angle``; 1 never reuses."""

    angle: float = 0.999

    @property
    def identity(self) -> bool:
        return self.angle >= 1

    def tracker(self, role: str = "") -> Tracker:
        return AlignedTracker(self.angle)

    def plan(self, context: Any) -> laconic.Plan:
        return regions_at("network", context, self)


class Network(nn.Module):
    """Any network whose output has the shape of its input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)).requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(x) * (1 + t) - x


@torch.no_grad()
def sample(model: Any, steps: int) -> Tensor:
    """Euler steps from seeded noise."""
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    for step in range(steps):
        x = x + model(x, torch.tensor(step / steps)) / steps
    return x


def main(steps: int = 20) -> tuple[float, Any]:
    """The relative error of the cached trajectory, and what was reused."""
    model = Network()
    fast = torch.compile(model, backend="laconic", options={"passes": [Aligned(angle=0.995)]})
    with laconic.session(fast, steps=steps) as session:
        x = sample(fast, steps)
    exact = sample(model, steps)
    error = float((x - exact).norm() / exact.norm())
    print(session.summary())
    print(f"relative error {error:.4f}")
    return error, session.summary()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    main(parser.parse_args().steps)
