"""What a session did, as plain data and as a picture of characters."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Call:
    """One call of one region: where in the trajectory, whether it was reused, and the number that decided it."""

    region: str
    step: int
    stream: int
    reused: bool
    indicator: float | None = None


@dataclass(eq=False)
class Summary:
    """The calls of one trajectory in order, and the memory its state took.

    ``bytes_held`` has the size of all state after each step, by step. ``print(summary)`` draws one line per region and
    stream (``#`` a computed step, ``.`` a reused one, a gap where a region around it was reused), and under it the
    numbers that decided, from zero to the largest.
    """

    steps: int
    calls_per_step: int = 1
    calls: list[Call] = field(default_factory=list)
    bytes_held: dict[int, int] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def add(self, calls: Sequence[Call], step: int, held: int) -> None:
        """Append what became of each region in one finished call; ``held`` is the size of all state after it."""
        with self._lock:
            self.calls.extend(calls)
            self.bytes_held[step] = max(self.bytes_held.get(step, 0), held)

    @property
    def computed(self) -> int:
        """How many calls of regions were computed."""
        return sum(not call.reused for call in self.calls)

    @property
    def reused(self) -> int:
        """How many calls of regions were not."""
        return sum(call.reused for call in self.calls)

    @property
    def peak_bytes(self) -> int:
        """The most memory the state took."""
        return max(self.bytes_held.values(), default=0)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "steps": self.steps,
            "calls_per_step": self.calls_per_step,
            "computed": self.computed,
            "reused": self.reused,
            "peak_bytes": self.peak_bytes,
            "bytes_held": [{"step": step, "bytes": held} for step, held in sorted(self.bytes_held.items())],
            "calls": [
                {"region": c.region, "step": c.step, "stream": c.stream, "reused": c.reused, "indicator": c.indicator}
                for c in self.calls
            ],
        }

    def __str__(self) -> str:
        head = (
            f"session of {self.steps} steps x {self.calls_per_step}: {self.computed} calls computed, "
            f"{self.reused} reused, {self.peak_bytes / 2**20:.2f} MiB of state"
        )
        rows: dict[tuple[str, int], list[Call]] = {}
        for call in self.calls:
            rows.setdefault((call.region, call.stream), []).append(call)
        names = {key: f"{key[0]} stream {key[1]}" if self.calls_per_step > 1 else key[0] for key in rows}
        width = max(map(len, names.values()), default=0)
        lines = [head]
        for key, calls in rows.items():
            marks = {call.step: "." if call.reused else "#" for call in calls}
            lines.append(f"  {names[key]:<{width}}  {_drawn(marks)}")
            numbers = {call.step: call.indicator for call in calls if call.indicator is not None}
            top = max(numbers.values(), default=0.0)
            if top > 0:
                bars = {step: _bar(value / top) for step, value in numbers.items()}
                lines.append(f"  {'':<{width}}  {_drawn(bars)} up to {top:.3g}")
        return "\n".join(lines)


def _drawn(marks: dict[int, str]) -> str:
    return "".join(marks.get(step, " ") for step in range(max(marks, default=-1) + 1))


def _bar(share: float) -> str:
    # Not a number compares false with everything.
    return _BARS[min(int(share * len(_BARS)), len(_BARS) - 1)] if share >= 0 else "?"
