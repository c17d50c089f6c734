"""What Dynamo does differently while it works for this backend. Importing the package sees to it.

No other backend's graphs change, and where a torch has none of the functions that are touched, neither do ours.
"""

from __future__ import annotations

from . import at_work, known_numbers, settled_floats, whole_scans
from .tracing import for_this_backend, is_this_backend, traces_for_this_backend

__all__ = [
    "at_work",
    "for_this_backend",
    "is_this_backend",
    "known_numbers",
    "settled_floats",
    "traces_for_this_backend",
    "whole_scans",
]
