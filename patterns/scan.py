"""Scan sites: linear recurrences along an axis, however they are spelled, found and proven."""

from __future__ import annotations

import dataclasses
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from .chains import find_chains
from .describe import named_dimensions
from .trial import Region, agree
from .graph import NormalGraph
from .loops import Influence, loop_site
from .reasons import Reason
from .sites import Scan, Sites
from .trees import tree_sites

SHORTEST_REFUSAL = 8
"""A chain of fewer steps that is no scan is ordinary arithmetic, not worth a line in the report."""


def find_scans(graph: NormalGraph | GraphModule, sites: Sites | None = None) -> list[Scan]:
    """Every proven linear recurrence of the graph, in graph order; refusals are added to ``sites``.

    Two spellings are looked for: loops unrolled into a chain of steps, whose operands and readings may be computed in
    each step (they are lifted to one computation over all steps), and regions of +, x and data movement between two
    stacked operands and the stacked states. Linear in the size of the graph.
    """
    module = graph.module if isinstance(graph, NormalGraph) else graph
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    refusals = sites.refusals if sites is not None else []
    found: list[Scan] = []
    chains = find_chains(module.graph)
    influence = Influence(module.graph, chains)
    claimed: set[Node] = set()
    for index, chain in enumerate(chains):
        site = loop_site(index, chain, influence)
        if isinstance(site, Scan):
            site = prove_scan(site, order) or site
        if isinstance(site, Scan):
            found.append(site)
            claimed |= site.interior
        elif len(chain) >= SHORTEST_REFUSAL:
            names = (chain[0].state.name, chain[-1].state.name)
            text = f"a carried value of {len(chain)} steps is left as it is: {site.text}"
            refusals.append(Reason(site.code, text, names))
    found.extend(site for site in tree_sites(module.graph, order) if not claimed & site.interior)
    found.sort(key=lambda site: order[site.outputs[0]])
    return [_with_costs(dataclasses.replace(site, id=f"scan.{number}")) for number, site in enumerate(found)]


def prove_scan(site: Scan, order: dict[Node, int] | None = None) -> Reason | None:
    """Run the site's program beside the subgraph it came from, on small random float64 tensors; None when they agree."""
    program = site.program
    if program is None:
        return Reason("not-proven", "the site has no program", tuple(node.name for node in site.outputs))
    if order is None:
        order = {node: index for index, node in enumerate(site.outputs[0].graph.nodes)}
    region = Region(order, site.inputs, site.outputs, {site.length, site.length + 1})
    names = tuple(node.name for node in site.outputs)
    failure: Any = None
    for shrunk in (True, False):
        generator = torch.Generator().manual_seed(site.length)
        try:
            values = region.samples(generator, shrunk=shrunk, unit=(site.decay,))
            env = region.run(values, shrunk=shrunk)
            rebuilt = _Doubled(program).run(*(values[node] for node in site.inputs))
        except (RuntimeError, ValueError, IndexError, TypeError, MemoryError) as error:
            failure = error
            continue
        if all(agree(value, env[node]) for value, node in zip(rebuilt, site.outputs, strict=True)):
            return None
        return Reason("not-proven", "the rebuilt recurrence gives other values", names)
    return Reason("not-proven", f"the proof could not be run: {type(failure).__name__}: {failure}", names)


class _Doubled(torch.fx.Interpreter):
    """Runs a program in float64: element types among its constants are the graph's own."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        from .trial import doubled

        return super().call_function(target, doubled(args), doubled(kwargs))


def _with_costs(site: Scan) -> Scan:
    """FLOPs (a multiply and an add per element) and bytes (two operands read, the states written)."""
    value = next(item for node in (site.input, site.decay) if isinstance(item := node.meta["val"], Tensor))
    state = value.numel() if site.length and value.dim() else 1
    per_step = state // site.length if site.form == "tree" or site.dim < value.dim() else state
    symbols, example = named_dimensions(L=site.length, E=max(int(per_step), 1) if isinstance(per_step, int) else 1)
    elements = symbols["L"] * symbols["E"]
    return dataclasses.replace(
        site,
        flops=2 * elements,
        bytes=sympy.Integer(3 * value.element_size()) * elements,
        dimensions=example,
    )
