"""Which inputs only condition: they steer the layers of the stream, and are never part of the stream itself."""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Node

from .describe import same
from .graph import NormalGraph
from .nodes import operation, tensor
from .sites import Attention, Block, Convolution, Guidance, Linear, Sites


def conditioning_inputs(
    graph: NormalGraph, sites: Sites, latent: Node | None = None, result: Node | None = None
) -> tuple[Node, ...]:
    """The inputs that feed only the conditioning path, in the order of the graph's inputs.

    The stream is what the main input becomes: ``latent``; when None that of the graph's guidance site, else the first
    input an output has the shape of, else the input most of the graph depends on. An input belongs to the stream when
    it reaches what enters the first block of a stack or, without blocks, what the first layer over the main input
    reads. All other inputs ``result`` (all results when None) depends on (time steps, text states, masks) feed only
    the conditioning path. Linear time.
    """
    guided = next(iter(sites.of(Guidance)), None)
    if guided is not None and latent is None:
        return tuple(guided.conditioning)
    inputs = [node for node in graph.placeholders if not graph.is_static(node) and tensor(node) is not None]
    bit = {node: 1 << index for index, node in enumerate(inputs)}
    reached: dict[Node, int] = {}
    sizes = dict.fromkeys(inputs, 0)
    for node in graph.module.graph.nodes:
        reached[node] = bit.get(node, 0)
        for read in node.all_input_nodes:
            if tensor(read) is not None or isinstance(read.meta.get("val"), list | tuple):
                reached[node] |= reached[read]
    results = reached[graph.output if result is None else result]
    for bits in reached.values():
        # Few distinct combinations exist, but many nodes: counting by node keeps this linear for a handful of inputs.
        for node in inputs if len(inputs) <= 64 else ():
            sizes[node] += bool(bits & bit[node])
    latent = latent or _main(graph, inputs, reached, sizes)
    if latent is None:
        return ()
    main = reached[latent]
    entering = [block.entries for block in sites.of(Block) if block.index == 0]
    stream = _union(reached, (node for entries in entering for node in entries), main)
    if not stream:
        stream = _union(reached, _first_reads(graph, sites, reached, main), main)
    stream |= main
    return tuple(node for node in inputs if bit[node] & results and not bit[node] & stream)


def _main(graph: NormalGraph, inputs: list[Node], reached: dict[Node, int], sizes: dict[Node, int]) -> Node | None:
    bits = {node: reached[node] for node in inputs}
    for output in graph.output.all_input_nodes:
        made = tensor(output)
        for node in inputs:
            value = tensor(node)
            if made is None or value is None or not value.is_floating_point() or not reached[output] & bits[node]:
                continue
            # A learned variance beside the result makes one axis longer.
            if value.dim() == made.dim() > 1 and sum(map(same, value.shape, made.shape)) >= made.dim() - (
                made.dim() > 2
            ):
                return node
    return max(inputs, key=lambda node: sizes[node], default=None)


def _first_reads(graph: NormalGraph, sites: Sites, reached: dict[Node, int], main: int) -> list[Node]:
    """What the first layers over the main input read of it."""
    layers = {site.output: site for site in sites.of(Linear, Convolution, Attention)}
    passed: set[Node] = set()
    found = []
    for node in graph.module.graph.nodes:
        if not reached[node] & main or node.op != "call_function":
            continue
        if any(read in passed for read in node.all_input_nodes):
            passed.add(node)
        elif node in layers or operation(node) == "embedding":
            passed.add(node)
            found += [read for read in node.all_input_nodes if reached[read] & main]
    return found


def _union(reached: dict[Node, int], nodes: Iterable[Node], main: int) -> int:
    """The inputs behind those of ``nodes`` that depend on the main one."""
    bits = 0
    for node in nodes:
        if reached[node] & main:
            bits |= reached[node]
    return bits
