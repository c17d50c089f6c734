"""What a session did, as plain data and as a picture of characters."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any


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
    """The calls of one trajectory in order, and the most memory its state took.

    ``print(summary)`` draws one line per region and stream: ``#`` a computed step, ``.`` a reused one.
    """

    steps: int
    calls_per_step: int = 1
    calls: list[Call] = field(default_factory=list)
    peak_bytes: int = 0
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def add(self, call: Call, held: int) -> None:
        """Append a finished call; ``held`` is the state's size in bytes after it."""
        with self._lock:
            self.calls.append(call)
            self.peak_bytes = max(self.peak_bytes, held)

    @property
    def computed(self) -> int:
        """How many calls ran the network."""
        return sum(not call.reused for call in self.calls)

    @property
    def reused(self) -> int:
        """How many calls did not."""
        return sum(call.reused for call in self.calls)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "steps": self.steps,
            "calls_per_step": self.calls_per_step,
            "computed": self.computed,
            "reused": self.reused,
            "peak_bytes": self.peak_bytes,
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
        lines: dict[tuple[str, int], str] = {}
        for call in self.calls:
            key = (call.region, call.stream)
            lines[key] = lines.get(key, "") + ("." if call.reused else "#")
        drawn = []
        for (region, stream), marks in lines.items():
            name = f"{region} stream {stream}" if self.calls_per_step > 1 else region
            drawn.append(f"  {name}  {marks}")
        return "\n".join([head, *drawn])
