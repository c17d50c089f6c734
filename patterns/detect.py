"""Everything that is there: each detector in turn, on one graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .attention import find_attention
from .blocks import find_blocks
from .convolution import find_convolution
from .effects import shared_effects
from .experts import find_experts
from .feedforward import find_feedforward
from .graph import NormalGraph
from .guidance import find_guidance
from .linear import find_linear
from .linear_attention import find_linear_attention
from .norms import find_norms
from .reasons import Reason
from .rope import find_rope
from .scan import find_scan
from .sites import MappedAttention, Sites
from .skips import find_skips

log = logging.getLogger(__name__)

Detector = Callable[[NormalGraph, Sites], Any]

# In order: each detector sees the sites found before it. It returns its sites, or its sites and refusals.
DETECTORS: list[Detector] = [
    find_attention,
    find_linear_attention,
    find_linear,
    find_convolution,
    find_norms,
    find_rope,
    find_scan,
    find_feedforward,
    find_experts,
    find_skips,
    find_blocks,
    find_guidance,
]

_KINDS: dict[Detector, str] = {
    find_linear_attention: "attention",
    find_convolution: "conv",
    find_norms: "norm",
    find_skips: "skip",
    find_blocks: "block",
}


def _kind(detector: Detector) -> str:
    """What a detector looks for: the kind of its sites."""
    return _KINDS.get(detector) or detector.__name__.removeprefix("find_")


def _no_guards(graph: NormalGraph) -> AbstractContextManager[Any]:
    """Where whatever would guard on a symbolic size raises an exception instead, if this torch has such a place."""
    without = getattr(getattr(graph.fake_mode, "shape_env", None), "error_on_new_guards", nullcontext)
    return without()


def detect(graph: NormalGraph) -> Sites:
    """All sites of ``graph``, and why near misses were refused.

    Detectors run in order. None of them changes the graph, adds a guard on a symbolic size, or recurses on its depth;
    each takes time linear in its size. One that fails, or asks for a symbolic size, costs the sites of its kind only.
    """
    sites = Sites()
    with shared_effects(graph), _no_guards(graph):
        for detector in DETECTORS:
            before = len(sites.refusals)
            try:
                result = detector(graph, sites)
            except Exception as error:
                log.debug("the detector of %s sites failed", _kind(detector), exc_info=True)
                result = [], [Reason("detector-failed", f"{type(error).__name__}: {error}")]
            found, refusals = result if isinstance(result, tuple) else (result, [])
            sites.sites += found
            sites.refusals += refusals
            missed = [*sites.refusals[before:], *(site.obstacle for site in found if isinstance(site, MappedAttention))]
            sites.near_misses += [(_kind(detector), reason) for reason in missed]
    return sites
