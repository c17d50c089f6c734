"""Reuse across steps: the same network run many times on inputs that hardly move need not be run every time."""

from __future__ import annotations

from .base import register
from .cache_delta_dit import DeltaDiT
from .cache_easycache import EasyCache
from .cache_first_block import FirstBlock
from .cache_guidance import AdaptiveGuidance, LinearGuidance
from .cache_sada import Sada
from .cache_static import Static
from .cache_taylor import Taylor

cache = register(
    "cache",
    {
        "easycache": EasyCache,
        "first-block": FirstBlock,
        "delta-dit": DeltaDiT,
        "taylor": Taylor,
        "static": Static,
        "sada": Sada,
        "adaptive-guidance": AdaptiveGuidance,
        "linear-ag": LinearGuidance,
    },
)
