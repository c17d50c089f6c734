"""From Dynamo's graph to a callable: normalise, detect, prove, then per pass plan, measure and apply, then compile.

This page is the whole road; the logic lives in the rooms it calls.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch._dynamo.exc import TensorifyScalarRestartAnalysis, TorchDynamoException
from torch.fx import GraphModule

from ..passes import ORDER
from ..passes.apply import apply
from ..passes.base import Pass, PlanContext, UserError
from ..passes.latent import argument_name
from ..passes.plan import CachedRegion, Cut, Plan, Rewrite
from ..passes.regions import regions_of
from ..passes.report import GraphReport, RewriteRecord, SiteRecord
from ..patterns.conditioning import conditioning_inputs
from ..patterns.detect import detect
from ..patterns.graph import NormalGraph
from ..patterns.normalize import normalize
from ..patterns.reasons import Reason
from ..patterns.sites import Site, Sites
from ..patterns.spec import check
from . import block_sparse_cpu, int8_cpu, providers, recurrence_cpu  # noqa: F401  (providers register on import)
from .cut_report import note
from .cutting import Cutting, cut
from .debug import Dump
from .graph_end import cut_short
from .inductor import tied_to_weights
from .options import Options
from .selection import Selection, select
from .stopwatch import Stopwatch
from .verification import unproven, within_budget

log = logging.getLogger(__name__)

# Dynamo's own control flow: a backend that swallowed one of these would hide a restart from it.
CONTROL_FLOW = (TorchDynamoException, TensorifyScalarRestartAnalysis)


@dataclass(eq=False)
class Rewritten:
    """What is to be compiled: Dynamo's own graph (``graph`` None) or the rewritten normal form, cut or whole."""

    graph: NormalGraph | None = None
    cutting: Cutting | None = None


def rewrite(module: GraphModule, inputs: Sequence[Any], options: Options, report: GraphReport, dump: Dump) -> Rewritten:
    """Everything before the compiler. Whatever fails here, Dynamo's graph still runs and the report says why.

    Raises UserError (a mistake of the user's) and Dynamo's control flow; nothing else.
    """
    stopwatch = Stopwatch(report.seconds)
    dump.graph("dynamo", module)
    ended = cut_short(module)
    if ended is not None:
        report.refuse(ended)
    try:
        with stopwatch("normalise"):
            normal = normalize(module, inputs)
        if isinstance(normal, Reason):
            report.refuse(normal)
            return Rewritten()
        wrong = check(normal)
        if wrong:
            report.refuse(wrong[0])
            return Rewritten()
        dump.graph("normal", normal.module)
        report.regions = {region.key for node in normal.module.graph.nodes for region in regions_of(node)}
        with stopwatch("detect"):
            sites = detect(normal)
        with stopwatch("prove"):
            sites = unproven(sites, normal, options.verify)
        report.sites = [SiteRecord.of(site) for site in sites]
        report.conditioning = [argument_name(node) for node in conditioning_inputs(normal, sites)]
        for reason in sites.refusals:
            report.refuse(reason)
        return _run_passes(normal, sites, inputs, options, report, dump, stopwatch)
    except (UserError, *CONTROL_FLOW):
        raise
    except Exception as error:
        log.debug("laconic fell back to the original graph", exc_info=True)
        report.refuse(Reason("pass-failed", f"{type(error).__name__}: {error}"))
        for row in report.rewrites:
            row.status = "fell_back"
        return Rewritten()


def _run_passes(
    normal: NormalGraph,
    sites: Sites,
    inputs: Sequence[Any],
    options: Options,
    report: GraphReport,
    dump: Dump,
    stopwatch: Stopwatch,
) -> Rewritten:
    graph = normal
    regions: list[CachedRegion] = []
    cuts: list[Cut] = []
    ids = {_key(site): site.id for site in sites}
    fuel = options.fuel
    enabled = options.enabled()
    named = {item.name for item in options.passes if isinstance(item, Pass)}
    for name in ORDER:
        chosen = select(name, enabled.get(name), graph, sites, report)
        for selected in chosen:
            # An earlier configuration of this pass may have changed the graph: the same sites, as they are now.
            wanted = {_key(site) for site in selected.targets}
            selection = dataclasses.replace(selected, targets=[site for site in sites if _key(site) in wanted])
            with stopwatch(name):
                plan = _plan(selection, graph, sites, report)
                regions.extend(plan.regions)
                if plan.cuts and fuel != 0:
                    cuts.extend(plan.cuts)
                    fuel = fuel - 1 if fuel is not None else None
                rewrites, fuel = _spend(plan.rewrites, fuel, selection, report)
                kept = within_budget(graph, inputs, rewrites, selection.item, options, report)
                outcome = apply(graph, [rewrite for rewrite, _ in kept])
                for refused, reason in outcome.refused:
                    report.refuse(reason, pass_name=name, site=_id(ids, refused.site))
                errors = dict(kept)
                for done in outcome.applied:
                    _list(report, done.site, ids)
                    report.rewrites.append(
                        RewriteRecord(
                            repr(selection.item),
                            _id(ids, done.site),
                            "applied",
                            done.fidelity.value,
                            done.op,
                            error=errors[done],
                        )
                    )
                if outcome.applied:
                    graph = outcome.graph
                    dump.graph(name, graph.module)
                    # Node identities changed with the clone, so later passes look at the graph as it is now.
                    sites = _again(graph, options, ids, report)
        if name in named and not _left_a_trace(name, chosen, [*regions, *cuts], report):
            report.refuse(Reason("no-site", f"nothing in this graph for {enabled.get(name)!r}"), pass_name=name)
    _name_providers(graph, report)
    cutting = None
    if regions or cuts:
        sharing = enabled.get("share_blocks")
        tied = tied_to_weights(options, report.device) if sharing is not None else None
        if tied is not None:
            report.refuse(tied, pass_name="share_blocks")
        cutting = cut(graph, regions, cuts if tied is None else ())
        cutting.share = sharing is not None and tied is None
        note(cutting, repr(sharing), report, lambda site: _id(ids, site))
        if cutting.whole:
            cutting = None
    return Rewritten(graph if graph is not normal or cutting is not None else None, cutting)


def _plan(selection: Selection, graph: NormalGraph, sites: Sites, report: GraphReport) -> Plan:
    """One pass' plan; an exception in a pass costs that pass only."""
    name = selection.item.name
    try:
        plan = selection.item.policy.plan(PlanContext(graph, sites, selection.targets, selection.whole_graph))
    except (UserError, *CONTROL_FLOW):
        raise
    except Exception as error:
        log.debug("pass %s failed while planning", name, exc_info=True)
        report.refuse(Reason("pass-failed", f"{type(error).__name__}: {error}"), pass_name=name)
        return Plan()
    for site, reason in plan.refusals:
        report.refuse(reason, pass_name=name, site=site.id if site is not None else "")
    return plan


def _spend(
    rewrites: Sequence[Rewrite], fuel: int | None, selection: Selection, report: GraphReport
) -> tuple[list[Rewrite], int | None]:
    """As many rewrites as there is fuel for: lowering the fuel bisects to the rewrite at fault."""
    if fuel is None:
        return list(rewrites), None
    for dropped in rewrites[fuel:]:
        report.refuse(Reason("out-of-fuel", "no fuel left"), pass_name=selection.item.name, site=dropped.site.id)
    return list(rewrites[:fuel]), max(0, fuel - len(rewrites))


def _again(graph: NormalGraph, options: Options, ids: dict[Any, str], report: GraphReport) -> Sites:
    found = detect(graph)
    found = unproven(found, graph, options.verify)
    for site in found:
        if _key(site) not in ids:
            ids[_key(site)] = f"{site.kind}.{sum(1 for kind, _ in ids if kind == site.kind)}"
    return found


def _list(report: GraphReport, site: Site, ids: dict[Any, str]) -> None:
    """Sites that an earlier pass made are not in the report yet; one that is rewritten belongs there."""
    number = _id(ids, site)
    if all(row.id != number for row in report.sites):
        report.sites.append(SiteRecord.of(dataclasses.replace(site, id=number)))


def _id(ids: dict[Any, str], site: Site) -> str:
    return ids.get(_key(site), site.id)


def _key(site: Site) -> tuple[str, tuple[str, ...]]:
    """What a site is known by from one graph to the next, where its nodes are other ones with the same names."""
    return site.kind, tuple(node.name for node in site.outputs)


def _left_a_trace(
    name: str, chosen: Sequence[Selection], parts: Sequence[CachedRegion | Cut], report: GraphReport
) -> bool:
    mine = {repr(selection.item) for selection in chosen}
    return (
        any(row.pass_name in mine for row in report.rewrites)
        or any(row.pass_name == name for row in report.refusals)
        or any(type(part.policy) is type(selection.item.policy) for part in parts for selection in chosen)
    )


def _name_providers(graph: NormalGraph, report: GraphReport) -> None:
    """Say which provider each applied rewrite's operators are lowered to."""
    by_operator: dict[str, set[str]] = {}
    for row in providers.chosen(graph.module).values():
        by_operator.setdefault(f"laconic::{row.operator}", set()).add(row.name)
    for record in report.rewrites:
        record.provider = ", ".join(sorted(by_operator.get(record.op, ())))
