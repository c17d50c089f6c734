"""The demo: 64 digits drawn in 50 steps, five ways, side by side (``make demo`` or ``python examples/demo.py``).

A trained diffusion transformer runs eagerly, through ``torch.compile``, and through laconic with calls skipped
(``cache``) and with int8 linears (``quantize``) where they pay. The rival that needs no library at all is there too:
taking fewer steps. Everything lands in ``demo-output/``: the pictures, the table, and laconic's report.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from digits_dit import Classifier, load, noise_and_labels, sample
from PIL import Image, ImageDraw
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import laconic

STEPS = 50
CACHE = laconic.cache("easycache", threshold=0.05, order=1)
ENOUGH = 60.0


@dataclass
class Way:
    """One way of drawing the samples, and what was seen of it."""

    name: str
    model: Callable[..., Tensor]
    steps: int = STEPS
    cached: bool = False
    evaluations: int = 0
    seconds: list[float] = field(default_factory=list)
    samples: Tensor | None = None
    session: str = ""

    def draw(self, noise: Tensor, labels: Tensor) -> Tensor:
        """One trajectory from noise to pictures; cached ways do it inside a session."""
        if not self.cached:
            self.evaluations = self.steps
            return sample(self.model, noise, labels, self.steps)
        with laconic.session(self.model, steps=self.steps) as session:
            images = sample(self.model, noise, labels, self.steps)
        summary = session.summary()
        self.evaluations, self.session = summary.computed, str(summary)
        return images

    def timed(self, noise: Tensor, labels: Tensor) -> None:
        """Draw once more and note the time."""
        begin = time.perf_counter()
        self.samples = self.draw(noise, labels)
        self.seconds.append(time.perf_counter() - begin)


def compiled(model: nn.Module, *passes: Any) -> Callable[..., Tensor]:
    """``model`` through laconic with ``passes``."""
    return torch.compile(model, backend="laconic", options={"passes": list(passes)})


def ways(model: nn.Module) -> list[Way]:
    """What is compared; the number of fewer steps is filled in when the cached evaluations are known."""
    fast = torch.compile(model)
    return [
        Way("eager", model),
        Way("torch.compile", fast),
        Way("laconic cache", compiled(model, CACHE), cached=True),
        Way("laconic cache + int8", compiled(model, CACHE, laconic.quantize("int8")), cached=True),
        Way("fewer steps", fast, steps=0),  # of torch.compile
    ]


def psnr(images: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1]; infinite for equal ones."""
    error = (images - reference).square().mean().item()
    return float("inf") if error == 0 else 10 * torch.log10(torch.tensor(4 / error)).item()


def accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    """The share of pictures that the classifier takes for what was asked."""
    with torch.no_grad():
        return (classifier(images).argmax(1) == labels).float().mean().item()


def grid(images: Tensor, scale: int = 3) -> Image.Image:
    """Square pictures ``[N, 1, S, S]`` as one image of rows of eight."""
    size = images.shape[-1]
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    rows = pixels.reshape(-1, 8, size, size).permute(0, 2, 1, 3).reshape(-1, 8 * size)
    picture = Image.fromarray(rows.numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def side_by_side(entries: list[Way]) -> Image.Image:
    """All grids in one picture, each under its name."""
    grids = [(way.name, grid(way.samples)) for way in entries if way.samples is not None]
    gap, head = 16, 24
    width = sum(image.width + gap for _, image in grids) + gap
    sheet = Image.new("L", (width, grids[0][1].height + head + gap), 255)
    x, pen = gap, ImageDraw.Draw(sheet)
    for name, image in grids:
        pen.text((x, 6), name, fill=0)
        sheet.paste(image, (x, head))
        x += image.width + gap
    return sheet


def measure(entries: list[Way], noise: Tensor, labels: Tensor, rounds: int, console: Console) -> None:
    """Compile each way, then time them in turns, so that a busy moment of the machine hits all alike.

    On a slow machine rounds are left out once drawing has taken ENOUGH seconds.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("compiling", total=len(entries) * (rounds + 1))
        for way in entries:
            say(progress, task, f"compiling  {way.name}")
            if way.steps == 0:
                way.steps = max(1, next(other.evaluations for other in entries if other.cached))
            if way.cached:
                way.draw(noise, labels)  # the whole trajectory: its length decides the rival's number of steps
            else:
                sample(way.model, noise, labels, 1)
            progress.advance(task)
        begin = time.perf_counter()
        for turn in range(rounds):
            if time.perf_counter() - begin > ENOUGH:
                break
            for way in entries:
                say(progress, task, f"round {turn + 1} of {rounds}  {way.name}")
                way.timed(noise, labels)
                progress.advance(task)


def say(progress: Progress, task: Any, text: str) -> None:
    """What is going on: in the progress bar, or as a line where there is no terminal to draw one."""
    progress.update(task, description=text)
    if not progress.console.is_terminal:
        progress.console.print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    parser.add_argument("--samples", type=int, default=64, help="a multiple of 8")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    console = Console()
    model, classifier = load()
    noise, labels = noise_and_labels(arguments.samples)
    entries = ways(model)
    console.print(
        f"Drawing {arguments.samples} digits in {STEPS} steps, {len(entries)} ways, on the CPU "
        f"with {torch.get_num_threads()} threads (load {os.getloadavg()[0]:.1f}).\n"
    )
    measure(entries, noise, labels, arguments.rounds, console)
    rows = describe(entries, classifier, labels)
    write(arguments.out, entries, rows)
    console.print(table(rows))
    for way in entries:
        if way.cached:
            text = f"{way.name}\n{way.session}\n{counted(laconic.report(way.model))}\n"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"Pictures, table and reports are in {arguments.out}/ (start with samples.png; report.txt names every site)."
    )


def counted(report: Any) -> str:
    """A report in a few lines: how many rewrites of each kind, and why the rest was left alone."""
    done = Counter(
        f"{row.pass_name} -> {row.op} [{row.provider}]" for row in report.rewrites if row.status == "applied"
    )
    kept = Counter(f"{row.pass_name} ({row.code})" for row in report.refusals)
    lines = [f"  {number} x {what}" for what, number in done.items()]
    return "\n".join(lines + [f"  {number} x left alone: {what}" for what, number in kept.items()])


def describe(entries: list[Way], classifier: Classifier, labels: Tensor) -> list[dict[str, Any]]:
    """One row of plain data per way; times are medians, compared with torch.compile's."""
    base = statistics.median(next(way.seconds for way in entries if way.name == "torch.compile"))
    reference = entries[0].samples
    assert reference is not None
    rows = []
    for way in entries:
        assert way.samples is not None
        seconds = statistics.median(way.seconds)
        rows.append(
            {
                "way": way.name,
                "steps": way.steps,
                "evaluations": way.evaluations,
                "seconds": seconds,
                "time_ratio": seconds / base,
                "psnr_to_eager_db": psnr(way.samples, reference),
                "accuracy": accuracy(classifier, way.samples, labels),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows for a terminal."""
    title = (
        "calls: how often the network ran        time: over torch.compile's (medians)\n"
        "PSNR:  distance to the eager samples    digit: drawn as asked (classifier)"
    )
    view = Table(title=title, title_justify="left", box=box.SIMPLE)
    for name in ("", "steps", "calls", "seconds", "time", "PSNR", "digit"):
        view.add_column(name, justify="left" if not name else "right", no_wrap=not name)
    for row in rows:
        far = row["psnr_to_eager_db"]
        view.add_row(
            row["way"],
            str(row["steps"]),
            str(row["evaluations"]),
            f"{row['seconds']:.2f}",
            f"{row['time_ratio']:.2f}x",
            "same" if far == float("inf") else f"{far:.1f} dB",
            f"{row['accuracy']:.0%}",
        )
    return view


def write(folder: Path, entries: list[Way], rows: list[dict[str, Any]]) -> None:
    """Pictures, the table as text and JSON, and laconic's reports."""
    folder.mkdir(parents=True, exist_ok=True)
    side_by_side(entries).save(folder / "samples.png")
    for way in entries:
        if way.samples is None:
            continue
        name = way.name.replace(" + ", " ").replace(" ", "-")
        grid(way.samples).save(folder / f"{name}.png")
        if way.cached:
            place = laconic.report(way.model).save(folder / name)
            (place / "session.txt").write_text(way.session + "\n")
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "load": os.getloadavg()[0], "rows": rows}
    (folder / "results.json").write_text(json.dumps(facts, indent=1) + "\n")
    with (folder / "results.txt").open("w") as file:
        Console(width=100, file=file).print(table(rows))


if __name__ == "__main__":
    main()
