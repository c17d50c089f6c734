"""A class-conditional diffusion transformer small enough to train on a laptop, and the classifier that judges it.

Architecture: DiT (Peebles and Xie 2023, https://arxiv.org/abs/2212.09748) with the shared modulation of PixArt-alpha
(Chen et al. 2023, https://arxiv.org/abs/2310.00426), trained by flow matching (Lipman et al. 2022,
https://arxiv.org/abs/2210.02747). Images are scikit-learn's 8x8 digits, enlarged to 16x16 and scaled to [-1, 1].
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"
CLASSES = 10
NO_CLASS = 10
"""The label of the unconditional model, for guidance."""


@dataclass(frozen=True)
class Settings:
    """Sizes of the transformer; stored in the checkpoint's metadata."""

    size: int = 16
    patch: int = 2
    width: int = 96
    depth: int = 8
    heads: int = 6


def sinusoids(position: Tensor, width: int, longest: float) -> Tensor:
    """Sines and cosines ``[..., width]`` of ``position [...]``, geometrically spaced wavelengths up to ``longest``."""
    frequency = torch.exp(-math.log(longest) * torch.arange(width // 2, device=position.device) / (width // 2))
    angle = position.unsqueeze(-1) * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


def grid_positions(side: int, width: int) -> Tensor:
    """Fixed positional embedding ``[side * side, width]``: half of the channels for the row, half for the column."""
    line = sinusoids(torch.arange(side, dtype=torch.float32), width // 2, 100.0)
    rows = line.unsqueeze(1).expand(side, side, -1)
    columns = line.unsqueeze(0).expand(side, side, -1)
    return torch.cat([rows, columns], -1).reshape(side * side, width)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class Attention(nn.Module):
    """Self-attention over tokens ``[B, N, C]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linears with a GELU between, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and feed-forward, each normalised, modulated and gated by the condition (adaLN-zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.feed_forward = FeedForward(width)
        self.modulation = nn.Parameter(torch.zeros(6, width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``x [B, N, C]``, ``condition [B, 6, C]``."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (condition + self.modulation).unsqueeze(2).unbind(1)
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.feed_forward(modulate(self.norm2(x), shift2, scale2))


class DigitsDiT(nn.Module):
    """Velocity of the flow at ``x [B, 1, S, S]``, time ``t [B]`` in [0, 1] and ``label [B]`` (10: no class)."""

    def __init__(self, settings: Settings = Settings()) -> None:
        super().__init__()
        self.settings = settings
        width, patch = settings.width, settings.patch
        self.side = settings.size // patch
        self.embed = nn.Linear(patch * patch, width)
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(CLASSES + 1, width)
        self.condition = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, settings.heads) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, patch * patch)
        self.register_buffer("position", grid_positions(self.side, width), persistent=False)
        nn.init.normal_(self.label.weight, std=0.02)
        for layer in (self.condition, self.head_modulation, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        patch, side = self.settings.patch, self.side
        tokens = x.reshape(x.shape[0], side, patch, side, patch).permute(0, 1, 3, 2, 4).reshape(x.shape[0], side**2, -1)
        tokens = self.embed(tokens) + self.position
        condition = F.silu(self.time(sinusoids(1000 * t, 64, 10_000.0)) + self.label(label))
        modulation = self.condition(condition).unflatten(-1, (6, -1))
        for block in self.blocks:
            tokens = block(tokens, modulation)
        shift, scale = self.head_modulation(condition).unsqueeze(1).chunk(2, -1)
        out = self.head(modulate(self.norm(tokens), shift, scale))
        return out.reshape(-1, side, side, patch, patch).permute(0, 1, 3, 2, 4).reshape(x.shape)


class Classifier(nn.Module):
    """A small convolutional network: logits ``[B, 10]`` of images ``[B, 1, 16, 16]``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, 64),
            nn.ReLU(),
            nn.Linear(64, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def load_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits (bundled with it, nothing is downloaded): images ``[1797, 1, 16, 16]`` and labels."""
    from sklearn.datasets import load_digits as load

    images, labels = load(return_X_y=True)
    small = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    return F.interpolate(small, scale_factor=2, mode="bilinear"), torch.tensor(labels, dtype=torch.int64)


@torch.no_grad()
def sample(velocity: Callable[..., Tensor], noise: Tensor, label: Tensor, steps: int) -> Tensor:
    """Integrate the flow from ``noise`` to images by ``steps`` Euler steps of ``velocity(x, t, label)``."""
    x = noise.clone()
    for step in range(steps):
        t = torch.full((len(x),), step / steps)
        x = x + velocity(x, t, label) / steps
    return x


def noise_and_labels(count: int, seed: int = 0, size: int = 16) -> tuple[Tensor, Tensor]:
    """The same starting points on every machine: noise ``[count, 1, size, size]`` and labels 0, 1, ... 9, 0, ..."""
    noise = torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(seed))
    return noise, torch.arange(count) % CLASSES


def save(path: Path, model: nn.Module, settings: Settings | None = None) -> None:
    """Store a model's parameters as fp16 safetensors, with its sizes as metadata."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, path, {"settings": json.dumps(asdict(settings))} if settings else None)


def load(folder: Path = CHECKPOINTS) -> tuple[DigitsDiT, Classifier]:
    """The trained transformer and classifier, in fp32 and evaluation mode."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(folder / "digits_dit.safetensors", "pt") as file:
        settings = Settings(**json.loads(file.metadata()["settings"]))
    model, classifier = DigitsDiT(settings), Classifier()
    for target, name in ((model, "digits_dit"), (classifier, "digits_classifier")):
        target.load_state_dict({key: value.float() for key, value in load_file(folder / f"{name}.safetensors").items()})
        target.eval().requires_grad_(False)
    return model, classifier
