"""Architectures whose counts are known to differ from eager's, by how much, and why. Checked both ways."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Known:
    """``missing`` by kind: positive for sites not found (each with a refusal), negative for more than eager ran."""

    reason: str
    missing: dict[str, int] = field(default_factory=dict)


EXCEPTIONS: dict[str, Known] = {}
