"""What a value is computed from: the nodes on the way from an input of a site, and the inputs of the whole graph."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch.fx import Node

from .describe import same
from .effects import Effects
from .evaluate import before
from .graph import NormalGraph
from .nodes import CASTS, COPIES, MOVEMENTS, argument, operation, readers, tensor
from .sites import FeedForward

# What may lie between a layer and the sum it enters: scaling, a gate from conditioning, a norm, dropout, views.
_PASSED = MOVEMENTS | CASTS | COPIES | {"dropout", "mul", "div", "layer_norm", "rms_norm", "native_layer_norm"}
_LONGEST = 48


class Provenance:
    """For every value, the set of inputs that are no parameters it depends on, as bits of a number."""

    def __init__(self, graph: NormalGraph) -> None:
        self._bits: dict[Node, int] = {}
        fresh = 1
        for node in graph.module.graph.nodes:
            bits = 0
            for read in node.all_input_nodes:
                if tensor(read) is not None or isinstance(read.meta.get("val"), list | tuple):
                    bits |= self._bits.get(read, 0)
            if node.op == "placeholder" and not graph.is_static(node):
                bits, fresh = fresh, fresh << 1
            self._bits[node] = bits

    def _comes_in(self, node: Node, branch: Node) -> bool:
        """Whether ``node`` is an input of the graph, viewed as or not, in the shape of what is added to it."""
        stream, added = tensor(node), tensor(branch)
        while operation(node) in MOVEMENTS and isinstance(node.args[0], Node):
            node = node.args[0]
        if node.op != "placeholder" or not self._bits[node] or stream is None or added is None:
            return False
        return len(stream.shape) == len(added.shape) and all(map(same, stream.shape, added.shape))

    def joins_its_stream(self, site: FeedForward) -> bool:
        """True when the output is added to a value that comes from the same inputs, or is a result of the graph.

        In a piece of a model that a graph break cut out, the stream itself comes in from outside: an input of the
        same shape.
        """
        mine, whole = self._bits[site.input], _cut_from(site.input)
        pending, seen = [site.output], {site.output}
        while pending and len(seen) < _LONGEST:
            node = pending.pop()
            for user in readers(node):
                if user.op == "output":
                    return True
                name = operation(user)
                if name in ("add", "add_", "sub"):
                    others = [read for read in user.all_input_nodes if read is not node and tensor(read) is not None]
                    if not others:
                        pending += [user] if user not in seen else []  # a number, as the zero that sums start with
                        seen.add(user)
                    if any(self._bits[other] & mine or self._comes_in(other, node) for other in others):
                        return True
                passed = name in _PASSED or (name == "slice" and _keeps_features(node, user)) or _summed(node, user)
                if (passed or (whole is not None and _put_back(user, whole))) and user not in seen:
                    seen.add(user)
                    pending.append(user)
        return False


def _summed(node: Node, user: Node) -> bool:
    """Whether ``user`` puts ``node`` beside others of its shape, or adds up what was put beside each other."""
    if operation(user) == "stack":
        return True
    if operation(user) != "sum" or operation(node) != "stack" or len(user.args) < 2:
        return False
    dims: Any = user.args[1]
    rank = len(node.meta["val"].shape)
    return [dim % rank for dim in dims] == [argument(node, "dim") % rank]


def _cut_from(node: Node) -> Node | None:
    """The value that ``node`` is some tokens of, whole, perhaps normalised since."""
    for _ in range(_LONGEST):
        source: Any = node.args[0] if node.args and node.op == "call_function" else None
        if operation(node) in ("slice", "narrow") and _keeps_features(node, source):
            return source
        if operation(node) not in _PASSED or not isinstance(source, Node):
            return None
        node = source
    return None


def _put_back(node: Node, whole: Node) -> bool:
    """Whether ``node`` joins tokens with others of ``whole``: a class token is put back beside those it attends to."""
    if operation(node) != "cat":
        return False
    parts: Any = node.args[0]
    others = [part for part in parts if _cut_from(part) is whole]
    return bool(others) and _keeps_features(node, others[0])


def _keeps_features(node: Node, part: Node) -> bool:
    """Whether ``part`` has some tokens of ``node``, whole: streams that share a layer take parts of its result."""
    whole, kept = tensor(node), tensor(part)
    if whole is None or kept is None:
        return False
    widths = (whole.shape[-1], kept.shape[-1])
    return all(isinstance(width, int) for width in widths) and widths[0] == widths[1]


_differentiated: weakref.WeakKeyDictionary[NormalGraph, set[Node]] = weakref.WeakKeyDictionary()


def differentiated(graph: NormalGraph) -> set[Node]:
    """Nodes a gradient may flow through: everything computed from an input that requires one, in a graph that records.

    Dataflow decides, because the fake values of a retraced graph are detached. Kept per graph.
    """
    if graph not in _differentiated:
        reached: set[Node] = set()
        if graph.grad_enabled:
            for node in graph.module.graph.nodes:
                if node.op == "placeholder":
                    hit = bool(getattr(node.meta.get("val"), "requires_grad", False))
                else:
                    hit = operation(node) not in ("detach", "detach_") and any(
                        operand in reached for operand in node.all_input_nodes
                    )
                if hit:
                    reached.add(node)
        _differentiated[graph] = reached
    return _differentiated[graph]


def between(x: Node, inputs: Iterable[Node], *outputs: Node) -> frozenset[Node]:
    """The tensors computed from ``x`` on the way to ``outputs``, which are among them; ``inputs`` end the way."""
    dependent, interior = {x}, []
    for node in before(outputs, inputs):
        if any(read in dependent for read in node.all_input_nodes):
            dependent.add(node)
            if isinstance(node.meta.get("val"), list | tuple) or tensor(node) is not None:
                interior.append(node)
    return frozenset(interior)


def with_writers(x: Node, inputs: Iterable[Node], output: Node, effects: Effects) -> frozenset[Node]:
    """:func:`between`, and what writes to the memory of those values before ``output`` is there."""
    inputs = list(inputs)
    interior, outputs = between(x, inputs, output), [output]
    while True:
        last = effects.position[output]
        more = [node for node in effects.writers(interior) if node not in interior and effects.position[node] < last]
        # A write to an input is no part of the site; it is refused as a mutation.
        more = [node for node in more if effects.within(node, interior)]
        if not more:
            return interior
        outputs += more
        interior = between(x, inputs, *outputs) | frozenset(more)
