"""What must change Inductor's cache key besides the graph itself: our sources, operator versions and provider choice.

The fingerprint is the uuid of a post-grad pass that does nothing of its own and calls whatever pass another tool had
installed there. Bodies of opaque operators are otherwise not in the key (pytorch/pytorch#144344).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch._inductor.custom_graph_pass import CustomGraphPass

ROOT = Path(__file__).resolve().parent.parent
SEMANTIC_FOLDERS = ("patterns", "passes", "backends")


@functools.cache
def sources_digest() -> str:
    """A hash over every source file that can change what is computed; read once per process."""
    digest = hashlib.sha256()
    for folder in SEMANTIC_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Fingerprint(CustomGraphPass):
    """Chains the passes already installed in Inductor's slot and adds laconic's digest to their uuids."""

    def __init__(self, installed: Any, facts: Iterable[str] = ()) -> None:
        self.installed = _as_list(installed)
        self.facts = tuple(facts)

    def __call__(self, graph: Any) -> None:
        for other in self.installed:
            other(graph)

    def uuid(self) -> Any:
        """None (no caching, as Inductor does) when an installed pass has no uuid of its own."""
        theirs = []
        for other in self.installed:
            identity = other.uuid() if hasattr(other, "uuid") else None
            if not identity:
                return None
            theirs.append(identity)
        text = repr((sources_digest(), self.facts, theirs))
        return hashlib.sha256(text.encode()).hexdigest()


def _as_list(installed: Any) -> list[Any]:
    if installed is None:
        return []
    return list(installed) if isinstance(installed, list | tuple) else [installed]
