"""Hand-written Triton kernels for operators of the dialect. The only folder that imports triton, and on request."""

from __future__ import annotations

import importlib.util

FAMILIES = ("int8_linear", "linear_recurrence", "selective_scan", "block_sparse_attention", "bipartite_match")
"""One module each; importing it registers its opaque operators and its ``triton`` providers."""

_registered = False


def register() -> bool:
    """Make the ``triton`` providers known. False, and nothing done, where triton is not installed.

    Safe to call at every compilation.
    """
    global _registered
    if not _registered and importlib.util.find_spec("triton") is not None:
        for family in FAMILIES:
            importlib.import_module(f".{family}", __name__)
        _registered = True
    return _registered
