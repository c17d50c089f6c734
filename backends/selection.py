"""Which sites a pass is enabled on: the options for the whole graph, decorators for the regions they wrap."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch.fx import Node

from ..passes.base import FACTORIES, Disable, Pass
from ..passes.regions import decision, regions_of
from ..passes.report import GraphReport
from ..patterns.graph import NormalGraph
from ..patterns.reasons import Reason
from ..patterns.sites import Site, Sites


@dataclass(eq=False)
class Selection:
    """One configured pass and the sites it may plan on. ``whole_graph``: nothing in the graph is outside its reach."""

    item: Pass
    targets: list[Site]
    whole_graph: bool


def select(name: str, enabled: Pass | None, graph: NormalGraph, sites: Sites, report: GraphReport) -> list[Selection]:
    """The configurations of pass ``name`` that hold somewhere in this graph, each with its sites.

    The innermost decorator around every node of a site decides; without one, ``enabled`` (from the options) does. A
    policy that names no site kinds works on the graph as a whole, and needs every operation to be in its reach.
    """
    kinds = {kind for policy in FACTORIES[name].policies.values() for kind in policy.kinds}
    targets: dict[Pass, list[Site]] = {}
    for site in sites:
        if type(site) not in kinds:
            continue
        said = decision(_computed(site.interior), name)
        if isinstance(said, Disable):
            if enabled is not None:
                report.refuse(Reason("disabled", f"inside {said!r}"), pass_name=name, site=site.id)
            continue
        item = said or enabled
        if item is not None and type(site) in item.policy.kinds:
            targets.setdefault(item, []).append(site)
    chosen = [Selection(item, found, whole_graph=item is enabled) for item, found in targets.items()]
    over_all = _over_all(name, enabled, graph)
    if over_all is not None and not over_all.policy.kinds:
        chosen.append(Selection(over_all, [], whole_graph=True))
    return chosen


def _over_all(name: str, enabled: Pass | None, graph: NormalGraph) -> Pass | None:
    """The pass that holds for every operation of the graph, if there is one."""
    nodes = [node for node in graph.module.graph.nodes if node.op == "call_function" and "nn_module_stack" in node.meta]
    if not any(regions_of(node) for node in nodes):
        return enabled
    said = {id(choice): choice for choice in (decision([node], name) for node in nodes)}
    if len(said) != 1:
        # Some operations are inside a decorated region and some are not.
        return enabled if not any(isinstance(choice, Disable) for choice in said.values()) else None
    (choice,) = said.values()
    return None if isinstance(choice, Disable) else choice or enabled


def _computed(nodes: Iterable[Node]) -> list[Node]:
    # Constants and placeholders carry no annotation; only what was executed inside a region does.
    return [node for node in nodes if node.op == "call_function"]
