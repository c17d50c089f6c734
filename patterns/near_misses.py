"""What came closest to a pattern in a region of a graph, and what stopped it: at which node, from which source line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch.fx import Node

from .describe import module_path, source_line, source_of
from .graph import NormalGraph
from .nodes import operation
from .reasons import Reason
from .sites import ATTENTIONS, Sites

# How much of a pattern had been found when a reason of this code came up: the rest of the codes are about less.
_CLOSENESS = {
    "not-proven": 0.9,
    "mutation": 0.8,
    "weights-escape": 0.8,
    "dropout-active": 0.8,
    "unsupported-mask": 0.7,
    "wrong-axis": 0.6,
    "unsupported-shape": 0.5,
    "unsupported-op": 0.4,
}


@dataclass(frozen=True)
class NearMiss:
    """Something that is almost a site of ``kind``.

    ``reason`` is the rule that stopped it, ``node`` the first of its nodes; ``module`` and ``source`` say where that
    is, ``line`` is the text of the source line. ``score`` is between 0 and 1: how much of the pattern was there.
    """

    kind: str
    reason: Reason
    node: str
    module: str
    source: str
    line: str
    score: float

    def __str__(self) -> str:
        where = f"{self.source}: {self.line}" if self.line else self.source or "(no source line)"
        return f"{self.kind} stopped by {self.reason}\n    at {self.node}, {where}"


def near_misses(graph: NormalGraph, sites: Sites, path: str) -> list[NearMiss] | None:
    """The near misses in a region, the best first; None when ``path`` is neither a module nor a node of the graph.

    ``path`` is a module's dotted path (with everything below it) or the name of a node. Refusals of the detectors count
    where one of their nodes lies in the region, and so does a softmax that no detector took up.
    """
    nodes = {node.name: node for node in graph.module.graph.nodes}
    inside = region(nodes.values(), path)
    if not inside:
        return None
    names = {node.name for node in inside}
    found = []
    for kind, reason in (*sites.near_misses, *_unused_softmaxes(sites, inside)):
        here = [name for name in reason.nodes if name in names]
        if here and (first := next((nodes[name] for name in reason.nodes if name in nodes), None)) is not None:
            score = _CLOSENESS.get(reason.code, 0.2) + 0.1 * len(here) / len(reason.nodes)
            found.append(
                NearMiss(kind, reason, first.name, module_path(first), source_of(first), source_line(first), score)
            )
    return sorted(dict.fromkeys(found), key=lambda miss: -miss.score)


def _unused_softmaxes(sites: Sites, inside: Sequence[Node]) -> Iterator[tuple[str, Reason]]:
    taken = {node for site in sites.of(*ATTENTIONS) for node in site.interior}
    refused = {name for _, reason in sites.near_misses for name in reason.nodes}
    for node in inside:
        if operation(node) in ("softmax", "_softmax") and node not in taken and node.name not in refused:
            yield "attention", Reason("unsupported-op", "no product with a value reads this softmax", (node.name,))


def region(nodes: Iterable[Node], path: str) -> list[Node]:
    """The nodes executed in the module at ``path`` or below it, or the node of that name."""
    nodes = list(nodes)
    named = [node for node in nodes if node.name == path]
    below = [node for node in nodes if node.op == "call_function" and _under(module_path(node), path)]
    return below or named


def known_paths(nodes: Sequence[Node]) -> set[str]:
    """Every module path the nodes were executed in, with all that lie above."""
    paths = {module_path(node) for node in nodes}
    return {
        ".".join(parts[:length]) for path in paths for parts in [path.split(".")] for length in range(len(parts) + 1)
    }


def _under(path: str, wanted: str) -> bool:
    return not wanted or path == wanted or path.startswith(f"{wanted}.")
