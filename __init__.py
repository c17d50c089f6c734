"""laconic: the same model, said in fewer words.

A ``torch.compile`` backend that finds attention, feed-forward and scan patterns in any model's graph and rewrites them
into cached, sparse, token-merged or quantized equivalents. Public names are imported on first use, so ``import
laconic`` costs nothing and needs neither triton nor networkx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Backend": "backends.entry",
    "explain": "backends.explain",
    "report": "backends.explain",
    "session": "backends.session",
    "Report": "passes.report",
    "UserError": "passes.base",
    "Pass": "passes.base",
    "Policy": "passes.base",
    "PlanContext": "passes.base",
    "Plan": "passes.plan",
    "Rewrite": "passes.plan",
    "Fidelity": "passes.plan",
    "Reason": "patterns.reasons",
    "operator": "passes.dialect",
    "disable": "passes",
    "fit_guidance": "passes.cache_guidance",
    "graph_pass": "passes",
    "cache": "passes",
    "interval_table": "passes.cache_static",
    "merge_tokens": "passes",
    "quantize": "passes",
    "scan": "passes",
    "search_table": "passes.table_search",
    "selective_scan": "passes",
    "share_blocks": "passes",
    "solver_of": "passes.solvers",
    "sparse_attention": "passes",
    "train_router": "passes.harmonica",
    "unroll_convolution": "passes",
}

__all__ = [
    "__version__",
    "Backend",
    "Fidelity",
    "Pass",
    "Plan",
    "PlanContext",
    "Policy",
    "Reason",
    "Report",
    "Rewrite",
    "UserError",
    "cache",
    "disable",
    "explain",
    "fit_guidance",
    "graph_pass",
    "interval_table",
    "merge_tokens",
    "operator",
    "quantize",
    "report",
    "scan",
    "search_table",
    "selective_scan",
    "share_blocks",
    "session",
    "solver_of",
    "sparse_attention",
    "train_router",
    "unroll_convolution",
]

if TYPE_CHECKING:
    from .backends.entry import Backend
    from .backends.explain import explain, report
    from .backends.session import session
    from .passes import (
        cache,
        disable,
        graph_pass,
        merge_tokens,
        quantize,
        scan,
        selective_scan,
        share_blocks,
        sparse_attention,
        unroll_convolution,
    )
    from .passes.base import Pass, PlanContext, Policy, UserError
    from .passes.cache_guidance import fit_guidance
    from .passes.cache_static import interval_table
    from .passes.dialect import operator
    from .passes.harmonica import train_router
    from .passes.plan import Fidelity, Plan, Rewrite
    from .passes.report import Report
    from .passes.solvers import solver_of
    from .passes.table_search import search_table
    from .patterns.reasons import Reason


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
