"""Proof and measurement before anything is changed: which sites hold, and which rewrites stay inside the budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..passes.base import Pass
from ..passes.measure import measure
from ..passes.plan import Fidelity, Rewrite
from ..passes.report import GraphReport, RewriteRecord
from ..patterns.graph import NormalGraph
from ..patterns.proof import prove
from ..patterns.reasons import Reason
from ..patterns.sites import Sites
from .options import Options
from .runner import real_inputs


def unproven(sites: Sites, graph: NormalGraph, verify: str) -> Sites:
    """``sites`` without those whose proof fails; each of these becomes a ``not-proven`` refusal."""
    kept = []
    for site in sites:
        reason = prove(site, graph, verify=verify)
        if reason is None:
            kept.append(site)
        else:
            sites.refusals.append(reason)
            sites.near_misses.append((site.kind, reason))
    sites.sites = kept
    return sites


def within_budget(
    graph: NormalGraph,
    inputs: Sequence[Any],
    rewrites: Sequence[Rewrite],
    item: Pass,
    options: Options,
    report: GraphReport,
) -> list[tuple[Rewrite, float | None]]:
    """The rewrites to apply, each with its measured error (None: not measured, because no budget was set).

    Only approximate rewrites are measured: the others promise their bound, and are held to a budget below it.
    """
    budget = options.error_budget
    if budget is None:
        return [(rewrite, None) for rewrite in rewrites]
    approximate = [rewrite for rewrite in rewrites if rewrite.fidelity is Fidelity.APPROXIMATE]
    errors = measure(graph, _concrete(graph, inputs), approximate) if approximate else {}
    kept: list[tuple[Rewrite, float | None]] = []
    for rewrite in rewrites:
        error = errors.get(rewrite)
        if isinstance(error, Reason):
            report.refuse(error, pass_name=item.name, site=rewrite.site.id)
        elif error is not None and not error <= budget:
            report.rewrites.append(
                RewriteRecord(repr(item), rewrite.site.id, "fell_back", rewrite.fidelity.value, rewrite.op, error=error)
            )
            text = f"relative L2 {error:.2e} is above the budget {budget:.2e}"
            report.refuse(Reason("over-budget", text), pass_name=item.name, site=rewrite.site.id)
        else:
            kept.append((rewrite, error))
    return kept


def _concrete(graph: NormalGraph, inputs: Sequence[Any]) -> list[Any]:
    """The first call's inputs with symbolic integers at their values, and the prepared inputs behind them."""
    plain = [value.node.hint if isinstance(value, torch.SymInt) else value for value in inputs]
    return real_inputs(graph, plain)
