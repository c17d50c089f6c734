"""Scan sites: linear recurrences along an axis, however they are spelled, found and proven."""

from __future__ import annotations

import dataclasses
from typing import Any

import sympy
import torch
from torch.fx import GraphModule, Node

from .carried import SHORTEST_REFUSAL, Refused
from .causal_scores import causal_sites
from .chains import Step, find_chains
from .cumulative import cumulative_sites
from .describe import named_dimensions, size_hint
from .effects import effects_of
from .evaluate import concretely
from .graph import NormalGraph
from .loops import Influence, loop_site
from .nodes import tensor
from .reasons import Reason
from .recurrences import unrolled_sites, whole_sites
from .scan_operator import operator_sites
from .selective import selective_sites
from .sites import Attention, Recurrence, Scan, SelectiveScan, Site, Sites
from .trees import tree_sites
from .trial import CANNOT_BE_RUN, Region, agree, doubled, widened

AnyScan = Scan | SelectiveScan | Recurrence


def find_scan(graph: NormalGraph, sites: Sites) -> tuple[list[Site], list[Reason]]:
    """Every linear recurrence of the graph, proven, in graph order, and why near misses were refused.

    Two spellings are looked for: loops unrolled into a chain of steps, whose operands and readings may be computed in
    each step (they are lifted to one computation over all steps), and regions of +, x and data movement between two
    stacked operands and the stacked states. Recurrences that are one operator already are looked at for how their
    states are made and read. Linear in the size of the graph.
    """
    module = graph.module
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    found: list[AnyScan] = []
    effects = effects_of(graph)
    chains = find_chains(module.graph)
    influence = Influence(module.graph, chains, {root for _, roots in effects.writes for root in roots})
    claimed: set[Node] = set()
    failed: list[tuple[list[Step], Reason]] = []
    for index, chain in enumerate(chains):
        site = loop_site(index, chain, influence)
        if isinstance(site, Scan):
            site = effects.mutation(site.inputs, site.interior) or prove_scan(site, order) or site
        if isinstance(site, Scan):
            found.append(site)
            claimed |= site.interior
        elif len(chain) >= SHORTEST_REFUSAL:
            failed.append((chain, site))
    for tree in tree_sites(module.graph, order, claimed):
        if not claimed & tree.interior and effects.mutation(tree.inputs, tree.interior) is None:
            found.append(tree)
            claimed |= tree.interior
    for cumulative in cumulative_sites(module.graph, order, claimed, effects.constants):
        if effects.mutation(cumulative.inputs, cumulative.interior) is None:
            found.append(cumulative)
            claimed |= cumulative.interior
    for site in operator_sites(module.graph):
        if effects.mutation(site.inputs, site.interior) is None and prove_scan(site, order) is None:
            found.append(site)
            claimed |= site.interior
    refusals: list[Reason] = []
    told = set(claimed)
    for loop in unrolled_sites(graph, order, claimed):
        if isinstance(loop, Refused):
            refusals.append(loop.reason)
            told |= loop.states
        else:
            found.append(loop)
            told |= loop.interior
    attended = {node for site in sites.of(Attention) for node in site.interior}
    for parallel in causal_sites(module.graph, order, attended | told, effects.constants):
        if effects.mutation(parallel.inputs, parallel.interior) is None:
            found.append(parallel)
            told |= parallel.interior
    for chain, reason in failed:
        # Said already, and better, where the chain is part of a loop.
        if not any(step.state in told for step in chain):
            names = (chain[0].state.name, chain[-1].state.name)
            text = f"a carried value of {len(chain)} steps is left as it is: {reason.text}"
            refusals.append(Reason(reason.code, text, names))
    for whole in whole_sites(graph, claimed):
        if isinstance(whole, Reason):
            refusals.append(whole)
        else:
            found.append(whole)
    found.extend(
        site
        for site in selective_sites(module.graph)
        if effects.mutation(site.inputs, site.interior) is None and prove_scan(site, order) is None
    )
    found.sort(key=lambda site: order[site.outputs[0]])
    return [_with_costs(dataclasses.replace(site, id=f"scan.{number}")) for number, site in enumerate(found)], refusals


def prove_scan(site: Scan | SelectiveScan, order: dict[Node, int] | None = None) -> Reason | None:
    """Run the site's program beside the subgraph it came from, on small random float64 tensors.

    None when they agree, else a ``not-proven`` reason.
    """
    program = site.program
    if program is None:
        return Reason("not-proven", "the site has no program", tuple(node.name for node in site.outputs))
    if order is None:
        order = {node: index for index, node in enumerate(site.outputs[0].graph.nodes)}
    with concretely():
        return _trial(site, program, order)


def _trial(site: Scan | SelectiveScan, program: GraphModule, order: dict[Node, int]) -> Reason | None:
    region = Region(
        order, site.inputs, site.outputs, {site.length, site.length + 1}, program.meta.get("laconic.time", {})
    )
    names = tuple(node.name for node in site.outputs)
    failure: Any = None
    for shrunk in (True, False):
        generator = torch.Generator().manual_seed(site.length)
        try:
            values = region.samples(generator, shrunk=shrunk, unit=(site.decay,) if isinstance(site, Scan) else ())
            env = region.run(values, shrunk=shrunk)
            rebuilt = _Doubled(program).run(*(values[node] for node in site.inputs))
        except CANNOT_BE_RUN as error:
            failure = error
            continue
        if all(agree(value, env[node]) for value, node in zip(rebuilt, site.outputs, strict=True)):
            return None
        return Reason("not-proven", "the rebuilt recurrence gives other values", names)
    return Reason("not-proven", f"the proof could not be run: {type(failure).__name__}: {failure}", names)


class _Doubled(torch.fx.Interpreter):
    """Runs a program in float64: element types among its constants are the graph's own."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return widened(super().call_function(target, doubled(args), doubled(kwargs)))


def _with_costs(site: AnyScan) -> AnyScan:
    """FLOPs and bytes of the operands read and the result written, in sympy over named dimensions."""
    if isinstance(site, Recurrence):
        states = sum(size_hint(value.numel()) for node in site.initial if (value := tensor(node)) is not None)
        symbols, example = named_dimensions(L=max(site.length, 1), E=max(states, 1))
        moved = sum(size_hint(value.numel()) for node in site.inputs if (value := tensor(node)) is not None)
        # At least one multiply-add per element of the state and step; what the step computes besides is not counted.
        return dataclasses.replace(
            site, flops=2 * symbols["L"] * symbols["E"], bytes=sympy.Integer(4 * moved), dimensions=example
        )
    if isinstance(site, SelectiveScan):
        value = site.recurrence.meta["val"]
        elements = max(size_hint(value.numel()) // site.length, 1)
        symbols, example = named_dimensions(L=site.length, E=elements)
        total = symbols["L"] * symbols["E"]
        moved = sum(size_hint(node.meta["val"].numel()) for node in (*site.inputs, *site.outputs))
        # exp, two multiply-adds and the two outer products
        return dataclasses.replace(
            site, flops=7 * total, bytes=sympy.Integer(moved * value.element_size()), dimensions=example
        )
    state = site.program.meta["laconic.state"] if site.program is not None else site.input.meta["val"]
    symbols, example = named_dimensions(L=site.length, E=max(size_hint(state.numel()), 1))
    total = symbols["L"] * symbols["E"]
    # One multiply-add per element; decay and input read, the states written.
    return dataclasses.replace(site, flops=2 * total, bytes=3 * state.element_size() * total, dimensions=example)
