"""One row of the zoo, measured: what detection finds beside what eager does, and whether every site is proven."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from laconic.patterns import proof
from laconic.patterns.detect import detect
from laconic.patterns.graph import NormalGraph
from laconic.patterns.normalize import normalize
from laconic.patterns.reasons import Reason
from laconic.patterns.sites import Block, FeedForward, Site

from .eager import Eager, observe
from .table import Row, call

KINDS = ("attention", "feedforward", "moe", "scan", "block")


@dataclass(eq=False)
class Result:
    """What came out for one row; ``missing`` is positive for sites not found and negative for false ones.

    ``error`` is what the default passes change in the model's outputs (see ``compiled.py``), where that was measured.
    """

    row: Row
    eager: Eager
    nodes: int = 0
    graphs: int = 0
    found: Counter[str] = field(default_factory=Counter)
    blocks: list[str] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    refusals: list[Reason] = field(default_factory=list)
    unproven: list[Reason] = field(default_factory=list)
    given_up: list[Reason] = field(default_factory=list)
    seconds: float = 0.0
    error: float = 0.0

    @property
    def missing(self) -> dict[str, int]:
        return {kind: self.eager.counts[kind] - self.found[kind] for kind in KINDS}

    @property
    def exact(self) -> bool:
        """Everything found, nothing false, every site proven, every graph in normal form."""
        return not (any(self.missing.values()) or self.unproven or self.given_up)


@dataclass(eq=False)
class Captured:
    """A graph, and the tensors it was called with each time: layers of one class share the graph of a broken frame."""

    graph: NormalGraph
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def inside(self, site: Site, call: tuple[Any, ...], owned: Collection[int]) -> bool:
        """True when all parameters that ``site`` reads in a call are among ``owned`` (by ``id``)."""
        places = dict(zip(self.graph.placeholders, call, strict=True))
        held = [places[node] for node in site.inputs if node in places]
        held = [value for value in held if isinstance(value, nn.Parameter)]
        return bool(held) and all(id(value) in owned for value in held)


def capture(module: nn.Module, inputs: Mapping[str, Any]) -> tuple[list[Captured], list[Reason]]:
    """The normal forms of every graph ``torch.compile`` makes of one call, and why others have none."""
    graphs: list[Captured] = []
    reasons: list[Reason] = []

    def backend(source: torch.fx.GraphModule, given: list[Any]) -> Any:
        graph = normalize(source, given)
        if not isinstance(graph, NormalGraph):
            reasons.append(graph)
            return source.forward
        graphs.append(captured := Captured(graph))

        def run(*args: Any) -> Any:
            captured.calls.append(args)
            return source(*args)

        return run

    torch._dynamo.reset()
    with torch.no_grad():
        call(torch.compile(module, backend=backend), inputs)  # type: ignore[arg-type]
    return graphs, reasons


def measure(row: Row, verify: str = "first") -> Result:
    """Build, run eagerly, capture, detect, prove and compare."""
    module, inputs = row.build()
    result = Result(row, observe(row, module, inputs))
    captured, result.given_up = capture(module, inputs)
    result.graphs = len(captured)
    experts = {id(weight) for path in result.eager.experts for weight in module.get_submodule(path).parameters()}
    for item in captured:
        graph = item.graph
        result.nodes += len(graph.module.graph.nodes)
        start = time.perf_counter()
        sites = detect(graph)
        result.seconds += time.perf_counter() - start
        result.sites += sites.sites
        result.refusals += sites.refusals
        reasons = [proof.prove(site, graph, verify) for site in sites]
        result.unproven += [reason for reason in reasons if reason is not None]
        # A frame that only runs one expert is a feed-forward layer to itself and a part of a mixture to the model.
        result.found += Counter(
            site.kind
            for site in sites.sites
            for given in item.calls
            if not (isinstance(site, FeedForward) and item.inside(site, given, experts))
        )
    result.blocks = [str(site.module) for site in result.sites if isinstance(site, Block)]
    return result
