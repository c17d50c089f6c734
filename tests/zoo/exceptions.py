"""Architectures on which detection is known to differ from eager, and why. None of them is in the fast slice."""

from __future__ import annotations

EXCEPTIONS: dict[str, str] = {}
