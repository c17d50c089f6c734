"""What moves along a trajectory: the graph input that is the latent, and the output that continues it."""

from __future__ import annotations

from torch import Tensor
from torch.fx import Node

from ..patterns.graph import NormalGraph
from ..patterns.reasons import Reason
from .plan import CachedRegion, Plan
from .reuse import CachePolicy, unfit


def whole_network(graph: NormalGraph, policy: CachePolicy, latent: str | None, *watch: Node) -> Plan:
    """One region, the whole graph from the latent (then ``watch``) to every computed output, or why there is none."""
    found = unfit(graph) or find_latent(graph, latent)
    if isinstance(found, Reason):
        return Plan(refusals=[(None, found)])
    moving, output = found
    computed = [node for node in results(graph) if node.op == "call_function"]
    others = [node for node in dict.fromkeys(computed) if node is not output]
    for node in others:
        if not isinstance(node.meta.get("val"), Tensor):
            text = f"output {node.name} is a computed {type(node.meta.get('val')).__name__}, which cannot be kept"
            return Plan(refusals=[(None, Reason("unsupported-op", text, (node.name,)))])
    return Plan(regions=[CachedRegion(entries=(moving, *watch), exits=(output, *others), policy=policy)])


def find_latent(graph: NormalGraph, name: str | None = None) -> tuple[Node, Node] | Reason:
    """The graph input that moves along a trajectory, and the output of its shape; a ``no-latent`` reason otherwise.

    Parameters, buffers and prepared tensors are no candidates, nor are inputs the output does not depend on. An output
    of exactly the input's shape and dtype wins over one of another floating-point dtype, and that over one with twice
    the channels; then the first output and the first input. ``name`` picks the input by its argument name instead.
    """
    inputs = [node for node in moving_inputs(graph) if _is_floating(node)]
    if name is not None:
        names = [argument_name(node) for node in inputs]
        if name not in names:
            return Reason("no-latent", f"no tensor argument is named {name!r}; there are {', '.join(names) or 'none'}")
        inputs = [node for node in inputs if argument_name(node) == name]
    best: tuple[int, Node, Node] | None = None
    for output in results(graph):
        if output.op != "call_function" or not _is_floating(output):
            continue
        near = [
            (cost, node) for node in inputs if (cost := _distance(node.meta["val"], output.meta["val"])) is not None
        ]
        if not near or (best is not None and best[0] <= min(cost for cost, _ in near)):
            continue
        sources = _ancestors(output)
        for cost, node in near:
            if node in sources and (best is None or cost < best[0]):
                best = (cost, node, output)
    if best is None:
        return Reason("no-latent", "no floating-point output has the shape of an input it is computed from")
    return best[1], best[2]


def moving_inputs(graph: NormalGraph) -> list[Node]:
    """The tensor inputs that may differ from call to call: neither parameters and buffers nor prepared from them."""
    prepared = {node for _, nodes in graph.facts.get("prepared", ()) for node in nodes}
    return [
        node
        for node in graph.placeholders
        if node not in prepared and not graph.is_static(node) and isinstance(node.meta.get("val"), Tensor)
    ]


def argument_name(node: Node) -> str:
    """What the user calls a graph input: the argument's name where Dynamo recorded it, else the placeholder's."""
    source = getattr(node, "_dynamo_source", None)
    while source is not None and getattr(source, "local_name", None) is None:
        index = getattr(source, "index", None)
        if isinstance(index, str):
            return index
        source = getattr(source, "base", None)
    return str(source.local_name) if source is not None else str(node.meta.get("laconic.name", node.name))


def results(graph: NormalGraph) -> list[Node]:
    """The nodes among the graph's outputs, in order."""
    return list(graph.output.all_input_nodes)


def _is_floating(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype.is_floating_point and value.dim() > 0


def _distance(value: Tensor, result: Tensor) -> int | None:
    """0 for the same shape and dtype, 1 for another dtype, 2 for twice the channels, None for no match."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    if value.dim() != result.dim():
        return None
    pairs = enumerate(zip(value.shape, result.shape, strict=True))
    longer = [axis for axis, (size, other) in pairs if not (size is other or statically_known_true(size == other))]
    if not longer:
        return int(value.dtype != result.dtype)
    # A learned variance doubles the channels: axis 1 of images and videos, the last of token sequences.
    channels = value.dim() - 1 if value.dim() <= 3 else 1
    if longer == [channels] and statically_known_true(result.shape[channels] == 2 * value.shape[channels]):
        return 2
    return None


def _ancestors(node: Node) -> set[Node]:
    seen = {node}
    queue = [node]
    while queue:
        for operand in queue.pop().all_input_nodes:
            if operand not in seen:
                seen.add(operand)
                queue.append(operand)
    return seen


def part(value: Tensor, like: Tensor) -> Tensor:
    """The leading part of ``value`` that has the shape of ``like``: a view, and ``value`` itself for equal shapes."""
    for axis, (size, wanted) in enumerate(zip(value.shape, like.shape, strict=True)):
        if size != wanted:
            return value.narrow(axis, 0, wanted)
    return value
