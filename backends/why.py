"""``explain(..., why=region)``: what came closest to a pattern there, which rule stopped it, at which node and line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from ..passes.base import UserError
from ..passes.report import RefusalRecord
from ..patterns.detect import detect
from ..patterns.graph import NormalGraph
from ..patterns.near_misses import NearMiss, known_paths, near_misses, region
from ..patterns.normalize import normalize
from ..patterns.sites import Site, Sites
from .options import Options
from .verification import unproven

_SHOWN = 3
"""Near misses printed, the best first."""


class Why:
    """Collects, over all graphs of one model, what is known about the region ``path`` (a module or a node's name)."""

    def __init__(self, path: str, options: Options) -> None:
        self.path = path
        self.options = options
        self.reached = False
        self.known: set[str] = set()
        self.found: list[Site] = []
        self.misses: list[NearMiss] = []

    def look(self, module: GraphModule, inputs: Sequence[Any]) -> None:
        """Look at one graph as Dynamo made it. A graph that has no normal form has no regions."""
        graph = normalize(module, inputs)
        if not isinstance(graph, NormalGraph):
            return
        sites = unproven(detect(graph), graph, self.options.verify)
        nodes = list(graph.module.graph.nodes)
        self.known |= known_paths(nodes) | {node.name for node in nodes if node.op == "call_function"}
        misses = near_misses(graph, sites, self.path)
        if misses is None:
            return
        self.reached = True
        self.misses += misses
        self.found += _within(sites, set(region(nodes, self.path)))

    def lines(self, model: Any, refusals: Sequence[RefusalRecord]) -> list[str]:
        """The answer for the report, given what its passes refused.

        Raises:
            UserError: the region is neither a module of ``model`` nor a module or node of any of its graphs.
        """
        modules = {name for name, _ in model.named_modules()} if isinstance(model, torch.nn.Module) else set()
        if not self.reached:
            if self.path in modules:
                return [f"why {self.path}:", "  nothing of this module was executed in a graph laconic could read"]
            raise UserError(f"no module or node is called {self.path!r}{_nearest(self.path, modules | self.known)}")
        lines = [f"why {self.path or '(root)'}:"]
        for site in self.found:
            lines.append(f"  found {site.kind} {site.id} ({site.form}) at {site.source}")
            told = dict.fromkeys((row.pass_name, row.code, row.text) for row in refusals if row.site == site.id)
            lines += [f"    left alone by {name or 'detection'}: ({code}) {text}" for name, code, text in told]
        for number, miss in enumerate(sorted(self.misses, key=lambda item: -item.score)[:_SHOWN]):
            head = "nearest miss" if number == 0 else "also"
            lines += [
                f"  {head}: {line}" if not index else f"  {line}" for index, line in enumerate(str(miss).split("\n"))
            ]
        if not self.misses:
            lines.append(
                "  nothing else here came close to a pattern"
                if self.found
                else "  nothing here came close to a pattern"
            )
        return lines


def _within(sites: Sites, nodes: set[Any]) -> list[Site]:
    """The sites of a region; single layers only where they are all there is."""
    inside = [site for site in sites if nodes.issuperset(node for node in site.interior if node.op == "call_function")]
    large = [site for site in inside if site.kind not in ("linear", "conv", "norm")]
    return large or inside


def _nearest(path: str, known: set[str]) -> str:
    close = difflib.get_close_matches(path, sorted(known - {""}), n=1, cutoff=0.0)
    return f"; the closest is {close[0]!r}" if close else ""
