"""Places no detector takes up, looked at again for a person who asks why: what would it have been, and what is odd?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.fx import Node

from .activations import ARITHMETIC
from .axes import same
from .describe import source_of
from .graph import NormalGraph
from .nodes import CASTS, COPIES, EXPANSIONS, MOVEMENTS, operation, readers, scalar, tensor
from .reasons import Reason
from .sites import Attention, FeedForward, Linear, Sites

_SHORTEST_LOOP = 3
_LONGEST_STEP = 64
_LONGEST_HIDDEN = 32
_LINEAR = (
    MOVEMENTS | CASTS | COPIES | EXPANSIONS | {"add", "sub", "mul", "div", "neg", "slice", "select", "cat", "stack"}
)


def probe(graph: NormalGraph, sites: Sites, region: Sequence[Node]) -> Iterator[tuple[str, Reason]]:
    """``(kind, reason)`` for what resembles a site and is neither found nor refused by a detector. Linear time."""
    taken = {node for site in sites for node in site.interior if not isinstance(site, Linear)}
    refused = {name for _, reason in sites.near_misses for name in reason.nodes}
    yield from _softmaxes(region, sites, refused)
    yield from _hidden_layers(region, sites)
    yield from _loops(region, taken)


def _softmaxes(region: Sequence[Node], sites: Sites, refused: set[str]) -> Iterator[tuple[str, Reason]]:
    inside = {node for site in sites.of(Attention) for node in site.interior}
    for node in region:
        if operation(node) in ("softmax", "_softmax") and node not in inside and node.name not in refused:
            yield "attention", Reason("unsupported-op", "no product with a value reads this softmax", (node.name,))


def _hidden_layers(region: Sequence[Node], sites: Sites) -> Iterator[tuple[str, Reason]]:
    """Two linear layers that return as many features as they read, with something else than an activation between."""
    layers: dict[Node, Linear] = {site.output: site for site in sites.of(Linear)}
    known = {
        layer.id for site in sites.of(FeedForward) for layer in (site.up, site.gate, site.down) if layer is not None
    }
    here = set(region)
    for output, down in layers.items():
        if output not in here or down.id in known:
            continue
        pending, seen, odd = [down.input], {down.input}, []
        ups: list[Linear] = []
        while pending and len(seen) <= _LONGEST_HIDDEN:
            node = pending.pop()
            if node in layers:
                ups.append(layers[node])
                continue
            if node.op != "call_function":
                continue
            if operation(node) not in ARITHMETIC and operation(node) not in MOVEMENTS | CASTS | {"dropout"}:
                odd.append(node)
            for read in node.all_input_nodes:
                if read not in seen and tensor(read) is not None and scalar(read) is None:
                    seen.add(read)
                    pending.append(read)
        if odd and any(same(_width(up.input), _width(output)) and up.id not in known for up in ups):
            last = max(odd)
            text = f"{last.target} between two linear layers is no element-wise function"
            yield "feedforward", Reason("unsupported-op", text, (last.name, output.name))


def _width(node: Node) -> object:
    return node.meta["val"].shape[-1]


def _loops(region: Sequence[Node], taken: set[Node]) -> Iterator[tuple[str, Reason]]:
    """A value carried through steps of one source line, each computed from the last: why that is no recurrence."""
    lines: dict[tuple[object, ...], list[Node]] = {}
    for node in region:
        value = tensor(node)
        if node.op == "call_function" and value is not None and node not in taken and len(readers(node)) > 0:
            lines.setdefault((node.target, source_of(node), _type(value)), []).append(node)
    told: set[str] = set()
    for (_, source, _), steps in lines.items():
        if len(steps) < _SHORTEST_LOOP or source in told:
            continue
        paths = [_path(one, other) for one, other in zip(steps[:3], steps[1:3], strict=False)]
        if not all(paths):
            continue
        odd = next((node for node in paths[0] or () if operation(node) not in _LINEAR), None)
        if odd is not None:
            told.add(str(source))
            text = f"a value carried through {len(steps)} steps goes through {odd.target}, which is not linear in it"
            yield "scan", Reason("unsupported-op", text, (odd.name, steps[0].name, steps[-1].name))


def _type(value: Tensor) -> tuple[object, ...]:
    return (value.dtype, *map(str, value.shape))


def _path(start: Node, end: Node) -> list[Node] | None:
    """The nodes after ``start`` on the way to ``end``, if it is computed from it within one step."""
    parents: dict[Node, Node] = {}
    pending = [end]
    while pending and len(parents) < _LONGEST_STEP:
        node = pending.pop(0)
        for read in node.all_input_nodes:
            if read in parents or read is end:
                continue
            parents[read] = node
            if read is start:
                path = [parents[start]]
                while path[-1] is not end:
                    path.append(parents[path[-1]])
                return path
            pending.append(read)
    return None
