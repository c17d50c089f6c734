"""Everything that is there: each detector in turn, on one graph."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from .attention import find_attention
from .convolution import find_convolution
from .graph import NormalGraph
from .linear import find_linear
from .scan import find_scan
from .sites import Sites

Detector = Callable[[NormalGraph, Sites], Any]

# A detector returns its sites, or its sites and refusals; each sees the sites found before it.
DETECTORS: list[Detector] = [find_attention, find_linear, find_convolution, find_scan]


def detect(graph: NormalGraph) -> Sites:
    """All sites of ``graph``, and why near misses were refused.

    Detectors run in order. None of them changes the graph, adds a guard on a symbolic size, or recurses on its depth;
    each takes time linear in its size.
    """
    sites = Sites()
    for detector in (*DETECTORS, *_coming()):
        result = detector(graph, sites)
        found, refusals = result if isinstance(result, tuple) else (result, [])
        sites.sites += found
        sites.refusals += refusals
    return sites


def _coming() -> list[Detector]:
    found: list[Detector] = []
    for name in ("norms", "feedforward", "blocks"):
        if importlib.util.find_spec(f"{__package__}.{name}") is None:
            continue
        module = importlib.import_module(f".{name}", __package__)
        found += [
            value
            for key, value in vars(module).items()
            if key.startswith("find_") and getattr(value, "__module__", "") == module.__name__
        ]
    return found
