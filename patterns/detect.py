"""Everything that is there: each detector in turn, on one graph."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from .attention import find_attention
from .graph import NormalGraph
from .reasons import Reason
from .sites import Site, Sites

Detector = Callable[[NormalGraph, Sites], tuple[list[Site], list[Reason]]]


def detect(graph: NormalGraph) -> Sites:
    """All sites of ``graph``, and why near misses were refused.

    Detectors run in order, and each sees the sites found before it. None of them changes the graph, adds a guard on
    a symbolic size, or recurses on its depth; each takes time linear in its size.
    """
    sites = Sites()
    for detector in _detectors():
        result = detector(graph, sites)
        found, refusals = result if isinstance(result, tuple) else (result, [])
        sites.sites += found
        sites.refusals += refusals
    return sites


def _detectors() -> list[Detector]:
    found: list[Detector] = [find_attention]
    for module, name in (
        ("linear", "find_linear"),
        ("norms", "find_norms"),
        ("feedforward", "find_feedforward"),
        ("scan", "find_scans"),
        ("blocks", "find_blocks"),
    ):
        try:
            found.append(getattr(importlib.import_module(f".{module}", __package__), name))
        except (ImportError, AttributeError):
            continue
    return found
