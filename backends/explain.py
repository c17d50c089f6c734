"""``laconic.explain`` and ``laconic.report``: what would be rewritten, and what was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._dynamo.convert_frame import fullgraph_capture
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import dynamo_timed, get_metrics_context
from torch._dynamo.variables.torch_function import torch_function_mode_stack_state_mgr
from torch._guards import TracingContext, tracing
from torch.fx import GraphModule

from ..passes.base import Disable, Pass, UserError
from ..passes.regions import REGIONS
from ..passes.report import GraphReport, RefusalRecord, Report
from ..patterns.reasons import Reason
from . import registry
from .debug import Dump
from .dynamo import for_this_backend
from .isolated import Visit, no_memory_of_sizes, visit_graphs
from .options import Options
from .pipeline import rewrite
from .why import Why


def explain(
    model: Any,
    *args: Any,
    passes: Sequence[Pass | Disable] = (),
    options: Mapping[str, Any] | None = None,
    why: str | None = None,
    **kwargs: Any,
) -> Report:
    """Find and plan without compiling or running anything.

    Traces ``model(*args, **kwargs)`` with Dynamo on the side: neither the model, its buffers, the random state nor
    Dynamo's caches change. ``model`` may be a module, a function or something already compiled.

    Args:
        passes: passes to plan, added to ``options["passes"]``.
        options: as for ``torch.compile(..., backend="laconic", options=...)``.
        why: a module path or the name of a node; adds what came closest to a site there, the rule that stopped it, its
            node and its source line (``report.near_misses``, printed with the report).

    Raises:
        UserError: bad options, a model that is not callable, or a ``why`` that is no module and no node.
    """
    given = dict(options or {})
    given["passes"] = [*Options.parse(given).passes, *Options.parse({"passes": list(passes)}).passes]
    parsed = Options.parse(given)
    original = registry.original_of(model)
    if not callable(original):
        raise UserError(f"laconic.explain takes a module, a function or a compiled object, not {type(model).__name__}")
    report = Report()
    asked = Why(why, parsed) if why is not None else None

    def plan(module: GraphModule, inputs: Sequence[Any]) -> None:
        graph = GraphReport(len(report.graphs), len(module.graph.nodes))
        dump = Dump(number=graph.id, collect=True)
        rewritten = rewrite(module, inputs, parsed, graph, dump)
        graph.nodes_after = len((rewritten.graph.module if rewritten.graph is not None else module).graph.nodes)
        report.graphs.append(graph)
        report.sources.update(dump.sources)
        if asked is not None:
            asked.look(module, inputs)

    try:
        with (
            get_metrics_context(),
            dynamo_timed("laconic.explain"),
            torch_function_mode_stack_state_mgr,
            no_memory_of_sizes(),
            for_this_backend(),
        ):
            captured = fullgraph_capture(original, args, kwargs or None).backend_input
    except TorchDynamoException as error:
        _in_parts(original, args, kwargs, plan, error, report)
    else:
        if captured is not None:
            context = TracingContext(captured.fake_mode)
            context.tensor_to_context = captured.tensor_to_context
            with tracing(context):
                plan(captured.graph_module, captured.example_inputs)
    if asked is not None:
        report.near_misses = asked.lines(original, report.refusals)
    return report


def _in_parts(
    original: Any, args: Sequence[Any], kwargs: Mapping[str, Any], plan: Visit, error: Exception, report: Report
) -> None:
    """A model that breaks the graph: each of its graphs is planned, and the report says where the break is."""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    refusal = Reason("not-normalised", f"not one graph: {text.strip()}")
    report.extra_refusals.append(RefusalRecord("", "", refusal.code, refusal.text))
    if not isinstance(original, torch.nn.Module):
        return  # a function cannot be copied, and running it may change what it closes over
    try:
        with no_memory_of_sizes(), for_this_backend():
            visit_graphs(original, args, kwargs, plan)
    except UserError:
        raise
    except Exception as failure:
        failed = Reason("not-normalised", f"the graphs after the break: {type(failure).__name__}: {failure}")
        report.extra_refusals.append(RefusalRecord("", "", failed.code, failed.text))


def report(compiled: Any) -> Report:
    """What laconic did to something compiled with it: an empty report before the first call.

    Raises:
        UserError: ``compiled`` did not come from ``torch.compile(..., backend="laconic")``.
    """
    wrapper = registry.wrapper_of(compiled)
    if not registry.is_laconic(wrapper):
        raise UserError(
            f"laconic.report takes what torch.compile(..., backend='laconic') returned, not {type(compiled).__name__}"
        )
    entries = registry.entries_of(compiled)
    result = Report([entry.report for entry in entries])
    for entry in entries:
        result.sources.update(entry.sources)
    result.extra_refusals = _unreached(registry.original_of(compiled), result)
    return result


def _unreached(original: Any, report: Report) -> list[RefusalRecord]:
    """Decorated module classes that are part of the model but left no node in any of its graphs."""
    if not report.graphs or not isinstance(original, torch.nn.Module):
        return []
    present = {type(module) for module in original.modules()}
    reached = set().union(*(graph.regions for graph in report.graphs))
    rows = []
    for key, region in REGIONS.items():
        if region.target in present and key not in reached:
            reason = Reason("region-not-reached", f"{region.name} left no node in any graph (a graph break inside?)")
            rows.append(RefusalRecord(region.item.name or "", "", reason.code, reason.text))
    return rows
