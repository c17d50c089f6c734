"""One row of the zoo, measured: what detection finds beside what eager does, and whether every site is proven."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from laconic.backends.dynamo import for_this_backend
from laconic.patterns import proof
from laconic.patterns.describe import running_modules
from laconic.patterns.detect import detect
from laconic.patterns.graph import NormalGraph
from laconic.patterns.nodes import operation
from laconic.patterns.normalize import normalize
from laconic.patterns.reasons import Reason
from laconic.patterns.sites import Block, FeedForward, Site

from .eager import Eager, observe
from .table import Row, call

_PRODUCTS = {"linear", "matmul", "bmm", "mm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention"} | {
    "conv1d",
    "conv2d",
    "conv3d",
    "convolution",
}

KINDS = ("attention", "feedforward", "moe", "scan", "block")


@dataclass(eq=False)
class Result:
    """What came out for one row. Blocks are compared one by one (:func:`unmatched`), other sites by their number.

    ``error`` is what the default passes change in the model's outputs (see ``compiled.py``), where that was measured.
    """

    row: Row
    eager: Eager
    nodes: int = 0
    graphs: int = 0
    found: Counter[str] = field(default_factory=Counter)
    lost_blocks: list[str] = field(default_factory=list)
    false_blocks: list[str] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    refusals: list[Reason] = field(default_factory=list)
    unproven: list[Reason] = field(default_factory=list)
    given_up: list[Reason] = field(default_factory=list)
    seconds: float = 0.0
    error: float = 0.0

    def expected(self, kind: str) -> int:
        """How many eager ran: of those that no result depends on, as many as were found."""
        count = self.eager.counts[kind]
        return min(max(count, self.found[kind]), count + self.eager.unread[kind])

    @property
    def missing(self) -> dict[str, int]:
        """How many of each kind eager ran that were not found."""
        return {kind: max(0, self.eager.counts[kind] - self.found[kind]) for kind in KINDS[:-1]} | {
            "block": len(self.lost_blocks)
        }

    @property
    def false(self) -> dict[str, int]:
        """How many of each kind were found that eager did not run."""
        ran = self.eager.counts + self.eager.unread
        return {kind: max(0, self.found[kind] - ran[kind]) for kind in KINDS[:-1]} | {"block": len(self.false_blocks)}

    @property
    def exact(self) -> bool:
        """Everything found, nothing false, every site proven, every graph in normal form."""
        return not (any(self.missing.values()) or any(self.false.values()) or self.unproven or self.given_up)


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


def capture(
    module: nn.Module, inputs: Mapping[str, Any], dynamic: bool | None = None, gradients: bool = False
) -> tuple[list[Captured], list[Reason]]:
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
    with torch.set_grad_enabled(gradients), for_this_backend():
        call(torch.compile(module, backend=backend, dynamic=dynamic), inputs)  # type: ignore[arg-type]
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
        result.given_up += [reason for reason in sites.refusals if reason.code == "detector-failed"]
        reasons = [proof.prove(site, graph, verify) for site in sites]
        result.unproven += [reason for reason in reasons if reason is not None]
        # A frame that only runs one expert is a feed-forward layer to itself and a part of a mixture to the model.
        result.found += Counter(
            site.kind
            for site in sites.sites
            for given in item.calls
            if not (isinstance(site, FeedForward) and item.inside(site, given, experts))
        )
    blocks = [site for site in result.sites if isinstance(site, Block)]
    unread = result.eager.unread_blocks
    ran, graphs = [*result.eager.blocks, *unread], [item.graph for item in captured]
    lost, false = unmatched(ran, blocks, graphs)
    # A cut on another level of the module tree misses the blocks on this one, but invents none.
    levels = set(unmatched(result.eager.levels, blocks, graphs)[1])
    result.false_blocks = [block for block in false if block in levels]
    result.lost_blocks = sorted((Counter(lost) - Counter(unread)).elements())
    return result


def unmatched(
    expected: Sequence[str], blocks: Sequence[Block], graphs: Sequence[NormalGraph]
) -> tuple[list[str], list[str]]:
    """Modules of ``expected`` that are no block, and blocks that are none of these modules.

    A block is a module's when most of its products (linear layers, convolutions, attentions) were executed in the
    module, and it holds most of the products the module executed (of a module that ran several times, of one run). One
    block for each execution.
    """
    runs = Counter(expected)
    names = {path: path for path in expected}
    if len(graphs) > 1:
        # A graph that begins in the middle of the model counts its paths from there.
        for path in expected:
            parts = path.split(".")
            names.update({".".join(parts[start:]): path for start in range(1, len(parts) - 1)})
    executed: Counter[str] = Counter()
    for graph in graphs:
        executed.update(home for node in graph.module.graph.nodes for home in _homes(node, names))
    false: list[str] = []
    for block in blocks:
        inside = Counter(home for node in block.interior for home in _homes(node, names))
        size = sum(operation(node) in _PRODUCTS for node in block.interior)
        for home, count in inside.items():
            times = expected.count(home)
            if runs[home] and 2 * count > size and 2 * count * times > executed[home]:
                runs[home] -= 1
                break
        else:
            false.append(f"{block.id} in {block.module}")
    return sorted(runs.elements()), false


def _homes(node: Node, names: Mapping[str, str]) -> list[str]:
    """The modules of ``names`` that ran, or hold one that did; a module inside one may be at home in another."""
    if operation(node) not in _PRODUCTS:
        return []
    running = running_modules(node)
    holding = [path.rpartition(".")[0] for path in running]
    return [names[path] for path in dict.fromkeys((*running, *holding)) if path in names]
