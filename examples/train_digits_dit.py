"""Train the demo's diffusion transformer and classifier: ``python examples/train_digits_dit.py``.

About eight minutes on one CPU core with the default settings; writes ``examples/checkpoints/``.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from digits_dit import CHECKPOINTS, NO_CLASS, Classifier, DigitsDiT, load_digits, noise_and_labels, sample, save
from torch import Tensor


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """The batch, each image moved by up to one pixel."""
    padded = F.pad(images, (1, 1, 1, 1), value=-1.0)
    shifts = torch.randint(0, 3, (len(images), 2), generator=generator).tolist()
    size = images.shape[-1]
    return torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(padded, shifts, strict=True)])


def train_classifier(images: Tensor, labels: Tensor, seed: int) -> tuple[Classifier, float]:
    """A classifier and its accuracy on the fifth of the digits it has not seen."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    held_out, rest = order[: len(order) // 5], order[len(order) // 5 :]
    model = Classifier()
    steps = 1200
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        batch = rest[torch.randint(0, len(rest), (128,), generator=generator)]
        loss = F.cross_entropy(model(augmented(images[batch], generator)), labels[batch], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        accuracy = (model.eval()(images[held_out]).argmax(1) == labels[held_out]).float().mean().item()
    return model, accuracy


def train_transformer(images: Tensor, labels: Tensor, steps: int, batch: int, seed: int) -> DigitsDiT:
    """The exponential moving average of a transformer trained by flow matching with a tenth of the labels dropped."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = DigitsDiT()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    begin = time.perf_counter()
    for step in range(steps):
        rate = 2e-3 * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        index = torch.randint(0, len(images), (batch,), generator=generator)
        data, label = images[index], labels[index].clone()
        label[torch.rand(batch, generator=generator) < 0.1] = NO_CLASS
        noise = torch.randn(data.shape, generator=generator)
        t = torch.sigmoid(torch.randn(batch, generator=generator))
        mix = t.view(-1, 1, 1, 1)
        loss = F.mse_loss(model((1 - mix) * noise + mix * data, t, label), data - noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(0.995, (step + 1) / (step + 10))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.perf_counter() - begin:6.1f} s", flush=True)
    return average.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=CHECKPOINTS)
    arguments = parser.parse_args()
    images, labels = load_digits()
    classifier, accuracy = train_classifier(images, labels, arguments.seed)
    print(f"classifier: {accuracy:.1%} of the held-out digits", flush=True)
    save(arguments.out / "digits_classifier.safetensors", classifier)
    model = train_transformer(images, labels, arguments.steps, arguments.batch, arguments.seed)
    save(arguments.out / "digits_dit.safetensors", model, model.settings)
    noise, wanted = noise_and_labels(200, seed=1)
    with torch.no_grad():
        right = (classifier(sample(model, noise, wanted, 50)).argmax(1) == wanted).float().mean().item()
    print(f"samples recognised as their class: {right:.1%}")


if __name__ == "__main__":
    main()
