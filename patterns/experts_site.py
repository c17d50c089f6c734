"""From the region between a router's input and a place where everything comes together to a proven site."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sympy
from torch.fx import Node

from .describe import description, element_bytes, named_dimensions, shape_of, size_hint
from .effects import Effects
from .evaluate import before
from .experts_trial import Fields, fitted, readings, routings, stacks
from .graph import NormalGraph
from .hidden import Refused, unwrapped
from .linear import fixed_nodes, row_names
from .nodes import CASTS, COPIES, RESHAPES, mutates, operation, readers, tensor
from .proof import prove, sizes_to_try
from .reasons import Reason
from .reference_experts import FEATURES, scale_down
from .routing import Routing
from .sites import FeedForward, Linear, MixtureOfExperts, Sites, Stack

Axes = dict[Node, tuple[tuple[str, ...], ...]]

# How a region brings tokens to experts, by an operation that only it has; for people.
_FORMS = (
    ("sort", "sorted"),
    ("index_add", "indexed"),
    ("index_add_", "indexed"),
    ("bmm", "gathered"),
    ("einsum", "dense"),
)

# The largest "everything" of a slice.
_ALL = 2**63 - 1


@dataclass(frozen=True)
class Choice:
    """How many experts are chosen; ``grouped``: how many groups, kept groups, and experts that speak for a group."""

    top_k: int
    grouped: tuple[int, int, int] | None = None


class Regions:
    """Builds sites in one graph."""

    def __init__(self, graph: NormalGraph, sites: Sites, effects: Effects) -> None:
        self.graph, self.effects = graph, effects
        self.fixed = fixed_nodes(graph)
        self.layers: dict[Node, Linear] = {site.output: site for site in sites.of(Linear)}
        self.shared: dict[Node, FeedForward] = {site.output: site for site in sites.of(FeedForward)}

    def site(self, router: Linear, x: Node, output: Node, choice: Choice, name: str) -> MixtureOfExperts | None:
        """The region from ``x`` to ``output`` as a mixture of experts, proven; None when it holds no experts.

        Raises:
            Refused: experts are there, and it is something else or not a function of its inputs.
        """
        experts = shape_of(router.output)[-1]
        own = [node for node in (router.weight, router.bias) if node is not None]
        nodes = before([output], [x, *own])
        stored = self._stored(nodes)
        layers = [self.layers[node] for node in nodes if node in self.layers and node is not router.output]
        layers = [layer for layer in layers if layer.weight in stored]
        weights = stacks(stored, layers, experts)
        if weights is None:
            return None
        self._check_reads(nodes, x, output)
        width = size_hint(shape_of(x)[-1])
        possible = list(readings(weights, stored, layers, experts, width))
        if not possible:
            return None
        inputs = (x, *own, *stored)
        interior = self._interior(x, inputs, output)
        shape = possible[0]
        dimensions, axes = _named(x, router, experts, shape)
        bias = next((node for node in stored if _one_each(node, experts)), None)
        if bias is not None:
            axes[bias] = (*(() for _ in shape_of(bias)[1:]), ("E",))
        site = MixtureOfExperts(
            id=name,
            input=x,
            router=router,
            experts=experts,
            routing=Routing(choice.top_k, groups=choice.grouped[0] if choice.grouped else 1),
            selection_bias=bias,
            flat=len(shape_of(output)) != len(shape_of(x)),
            activation="identity",
            form=next((form for name, form in _FORMS if any(operation(node) == name for node in interior)), "masked"),
            dimensions=dimensions,
            axes=axes,
            **{name: value for name, value in shape.items() if name != "hidden"},
            **_costs(dimensions, choice.top_k, gated=shape["gate"] is not None, size=element_bytes(output)),
            **description(output, interior, inputs, (output,)),
        )
        thresholds = _fractions(interior, ("gt", "ge", "lt", "le"))
        ways = list(routings(choice.top_k, choice.grouped, thresholds, _fractions(interior, ("add", "add_"))))
        made = fitted(site, ways, possible)
        if made is None:
            raise Refused("not-proven", "what comes together behind the router is no weighted sum of experts", output)
        reason = prove(made, self.graph) or _limited(made)
        if reason is not None:
            raise Refused.because(reason)
        return made

    def with_shared(self, site: MixtureOfExperts) -> MixtureOfExperts:
        """``site`` with the shared expert that is added to it, if there is one."""
        added = self._added(site.output)
        if added is None:
            return site
        output, shared, gate = added
        if unwrapped(shared.input, -1) is not unwrapped(site.input, -1) or shared.channels or shared.joined:
            return site
        layers = [layer for layer in (shared.up, shared.gate, shared.down, gate) if layer is not None]
        stored = [node for layer in layers for node in (layer.weight, layer.bias) if node is not None]
        inputs = tuple(dict.fromkeys((*site.inputs, *stored)))
        names = {"H": "U", "G": "F"}
        axes: Axes = {
            node: tuple(tuple(names.get(name, name) for name in axis) for axis in shared.axes[node])
            for node in stored
            if node in shared.axes
        }
        dimensions = {**site.dimensions, "U": shared.dimensions["H"]}
        if "G" in shared.dimensions:
            dimensions["F"] = 2
        if gate is not None:
            axes |= {gate.weight: (("K",), ()) if gate.transposed else ((), ("K",))}
            axes |= {gate.bias: ((),)} if gate.bias is not None else {}
        try:
            interior = self._interior(site.input, inputs, output)
        except Refused:
            return site
        made = dataclasses.replace(
            site,
            shared=shared,
            shared_gate=gate,
            axes={**axes, **site.axes},
            dimensions=dimensions,
            flat=len(shape_of(output)) != len(shape_of(site.input)),
            **_costs(dimensions, site.routing.top_k, gated=site.gate is not None, size=element_bytes(output)),
            **description(output, interior, inputs, (output,)),
        )
        return made if prove(made, self.graph) is None else site

    def _added(self, node: Node) -> tuple[Node, FeedForward, Linear | None] | None:
        """The sum of ``node`` and a feed-forward layer, that layer, and what gates it."""
        while True:
            users = readers(node)
            if len(users) != 1:
                return None
            (user,) = users
            if operation(user) in RESHAPES | CASTS | COPIES:
                node = user
                continue
            break
        if operation(user) not in ("add", "add_") or len(user.all_input_nodes) != 2:
            return None
        (other,) = (read for read in user.all_input_nodes if read is not node)
        other = unwrapped(other, -1)
        if other in self.shared:
            return user, self.shared[other], None
        parts = other.all_input_nodes if operation(other) == "mul" else []
        for one, two in (parts, parts[::-1]) if len(parts) == 2 else ():
            value, scores = unwrapped(one, -1), unwrapped(two, -1)
            gate = self.layers.get(unwrapped(scores.args[0], -1)) if operation(scores) == "sigmoid" else None  # type: ignore[arg-type]
            if value in self.shared and gate is not None and same_rows_one(gate):
                return user, self.shared[value], gate
        return None

    def _stored(self, nodes: list[Node]) -> list[Node]:
        """Parameters and buffers, in order of first use."""
        known = {node for node in nodes if node.op == "placeholder" and node in self.fixed and tensor(node) is not None}
        return list(dict.fromkeys(read for node in nodes for read in node.all_input_nodes if read in known))

    def _check_reads(self, nodes: list[Node], x: Node, output: Node) -> None:
        position, first = self.effects.position, self.effects.position[x]
        for node in nodes:
            if node in self.fixed or tensor(node) is None or node in self.effects.constants:
                continue
            outside = position[node] < first and any(tensor(read) is not None for read in node.all_input_nodes)
            if node.op == "placeholder" or outside:
                raise Refused("unsupported-op", f"the experts also read {node.name}", output)

    def _interior(self, x: Node, inputs: tuple[Node, ...], output: Node) -> frozenset[Node]:
        """Everything between, with the writes to its memory and the constants only it reads. Raises Refused."""
        effects, last, ends = self.effects, self.effects.position[output], [output]
        while True:
            nodes = before(ends, inputs)
            known, depends, inside = set(nodes), {x}, set[Node]()
            for node in nodes:
                listed = isinstance(node.meta.get("val"), list | tuple)
                if any(read in depends for read in node.all_input_nodes):
                    depends.add(node)
                elif node in self.fixed or not all(user in known for user in node.users):
                    continue
                if tensor(node) is not None or listed:
                    inside.add(node)
            more = [n for n in effects.writers(inside) if n not in inside and effects.position[n] < last]
            more = [node for node in more if effects.within(node, inside)]
            if not more:
                break
            ends += more
        # Of an operation with several results some may go unread.
        unread = {user for node in inside for user in node.users if user.op == "call_function" and not user.users}
        interior = frozenset(inside | {node for node in unread if not mutates(node)})
        # A view of what is read may be read by others too: it is no result of the experts.
        views = {node for node in interior if operation(node) in RESHAPES and unwrapped(node, -1) is unwrapped(x, -1)}
        reason = effects.mutation(inputs, interior, own=True) or effects.escape(interior, (output, *views))
        if reason is not None:
            raise Refused.because(reason)
        return interior


def same_rows_one(gate: Linear) -> bool:
    """True for a layer with a single output."""
    size = shape_of(gate.output)[-1]
    return isinstance(size, int) and size == 1


def _named(x: Node, router: Linear, experts: int, shape: Fields) -> tuple[dict[str, int], Axes]:
    """Sizes of the named axes, and the axes of what is read."""
    *rows, width = shape_of(x)
    names = row_names(len(rows))
    _, dimensions = named_dimensions(**dict(zip(names, rows, strict=True)), K=width, H=shape["hidden"], E=experts)
    if shape["up_half"] is not None:
        dimensions["F"] = 2
    made = ("F", "H") if shape["up_half"] is not None else ("H",)
    axes: Axes = {x: (*((name,) for name in names), ("K",))}
    axes[router.weight] = (("K",), ("E",)) if router.transposed else (("E",), ("K",))
    if router.bias is not None:
        axes[router.bias] = (("E",),)

    def name(layer: Stack | None, out: tuple[str, ...], inner: tuple[str, ...]) -> None:
        for node in layer.weights if layer is not None else ():
            pair = (inner, out) if layer is not None and layer.transposed else (out, inner)
            axes[node] = (("E",), *pair) if len(shape_of(node)) == 3 else pair
        for node in layer.biases if layer is not None else ():
            axes[node] = (("E",), out) if len(shape_of(node)) == 2 else (out,)

    name(shape["up"], made, ("K",))
    name(shape["gate"], made, ("K",))
    name(shape["down"], ("K",), ("H",))
    return dimensions, axes


def _costs(dimensions: dict[str, int], top_k: int, *, gated: bool, size: int) -> dict[str, Any]:
    """Operations of the chosen experts alone, and every weight and token once."""
    symbols, _ = named_dimensions(**dimensions)
    tokens: sympy.Expr = math.prod((symbols[n] for n in dimensions if n not in FEATURES), start=sympy.Integer(1))
    matrices, k, h, e = 3 if gated else 2, symbols["K"], symbols["H"], symbols["E"]
    shared = 3 * symbols["U"] if "U" in symbols else sympy.Integer(0)
    return {
        "flops": 2 * tokens * k * (e + top_k * matrices * h + shared),
        "bytes": (2 * tokens * k + k * (e + e * matrices * h + shared)) * size,
    }


def _limited(site: MixtureOfExperts) -> Reason | None:
    """A reason when a number in the region may be a limit of tokens that the proof's few tokens did not reach."""
    sizes = sizes_to_try(site)[0]
    if not sizes:
        return None
    resize = scale_down(site)
    free = {site.experts - 1, site.experts, site.experts + 1, _ALL}
    for node in site.interior:
        compared = operation(node) in ("lt", "le", "gt", "ge")
        for value in _numbers((node.args, node.kwargs)):
            if value > (1 if compared else 8) and value not in free and resize(value) == value:
                return Reason("not-proven", f"{value} may limit how many tokens an expert takes", (node.name,))
    return None


def _one_each(node: Node, experts: int) -> bool:
    """True for a stored tensor with one number for each expert, along its last axis."""
    *others, last = shape_of(node) or (0,)
    return last == experts and all(size == 1 for size in others)


def _fractions(interior: frozenset[Node], names: Collection[str]) -> list[float]:
    """Numbers between zero and one that operations of some names are given."""
    given = [node.args[1] for node in interior if operation(node) in names and len(node.args) > 1]
    return sorted({number for number in given if isinstance(number, float) and 0 < number < 1})


def _numbers(value: Any) -> list[int]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []
