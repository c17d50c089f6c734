"""One row of the zoo, measured: what detection finds beside what eager does, and whether every site is proven."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from laconic.patterns import proof
from laconic.patterns.detect import detect
from laconic.patterns.graph import NormalGraph
from laconic.patterns.normalize import normalize
from laconic.patterns.reasons import Reason
from laconic.patterns.sites import Block, Site

from .eager import Eager, observe
from .table import Row, call

KINDS = ("attention", "feedforward", "moe", "scan", "block")


@dataclass(eq=False)
class Result:
    """What came out for one row; ``missing`` is positive for sites not found and negative for false ones."""

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

    @property
    def missing(self) -> dict[str, int]:
        return {kind: self.eager.counts[kind] - self.found[kind] for kind in KINDS}

    @property
    def exact(self) -> bool:
        """Everything found, nothing false, every site proven, every graph in normal form."""
        return not (any(self.missing.values()) or self.unproven or self.given_up)


def capture(module: nn.Module, inputs: Mapping[str, Any]) -> tuple[list[NormalGraph], list[Reason]]:
    """The normal forms of every graph ``torch.compile`` makes of one call, and why others have none."""
    graphs: list[NormalGraph] = []
    reasons: list[Reason] = []

    def backend(source: torch.fx.GraphModule, given: list[Any]) -> Any:
        graph = normalize(source, given)
        (graphs if isinstance(graph, NormalGraph) else reasons).append(graph)  # type: ignore[arg-type]
        return source.forward

    torch._dynamo.reset()
    with torch.no_grad():
        call(torch.compile(module, backend=backend), inputs)  # type: ignore[arg-type]
    return graphs, reasons


def measure(row: Row, verify: str = "first") -> Result:
    """Build, run eagerly, capture, detect, prove and compare."""
    module, inputs = row.build()
    result = Result(row, observe(row, module, inputs))
    graphs, result.given_up = capture(module, inputs)
    result.graphs = len(graphs)
    for graph in graphs:
        result.nodes += len(graph.module.graph.nodes)
        start = time.perf_counter()
        sites = detect(graph)
        result.seconds += time.perf_counter() - start
        result.sites += sites.sites
        result.refusals += sites.refusals
        reasons = [proof.prove(site, graph, verify) for site in sites]
        result.unproven += [reason for reason in reasons if reason is not None]
    result.found = Counter(site.kind for site in result.sites if site.kind != "block")
    result.blocks = [str(site.module) for site in result.sites if isinstance(site, Block)]
    result.found["block"] = len(result.blocks)
    return result
