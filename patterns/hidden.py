"""What the last linear layer of a feed-forward reads, followed up to the first layers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch.fx import Node

from .activations import dropout_probability, elementwise, recognise
from .channels import partly, region_of
from .convolution import pointwise
from .describe import same
from .effects import Effects
from .halves import half_of, is_axis, run_of
from .nodes import CASTS, COPIES, RESHAPES, argument, operation, scalar, tensor
from .reasons import Reason
from .sites import Convolution, Linear, Sites

Layer = Linear | Convolution
Key = tuple[str, int | None, bool, tuple[int, int] | None, Node | None]

# The longest spelling of a gated tanh-GELU has eleven operations; twice that leaves room for casts and views.
_LONGEST = 32


# What makes a chain between two linear layers worth a word when it is no feed-forward layer.
_BENT = frozenset({"relu", "gelu", "silu", "sigmoid", "tanh", "mish", "softplus", "elu", "leaky_relu", "softmax"})


class Refused(Exception):
    """A candidate came close; ``reason`` says what was missing."""

    def __init__(self, code: str, text: str, *nodes: Node) -> None:
        super().__init__(text)
        self.reason = Reason(code, text, tuple(node.name for node in nodes))

    @classmethod
    def because(cls, reason: Reason) -> Refused:
        """With a reason made elsewhere."""
        refused = cls(reason.code, reason.text)
        refused.reason = reason
        return refused


class Layers:
    """The linear layers of a graph by the node they compute, each with the axis its features are on."""

    def __init__(self, sites: Sites, effects: Effects, fixed: Collection[Node] = ()) -> None:
        self.effects, self.fixed = effects, fixed
        self.all: list[Layer] = [
            site for site in sites if isinstance(site, Linear) or (isinstance(site, Convolution) and pointwise(site))
        ]
        self.by_output: dict[Node, Layer] = {site.output: site for site in self.all}

    def is_number(self, node: Node) -> bool:
        """True for a stored tensor of one real number."""
        made = tensor(node)
        stored = node.op == "placeholder" and node in self.fixed and made is not None
        return stored and made.is_floating_point() and made.numel() == 1  # type: ignore[union-attr]

    def shifted(self, node: Node) -> tuple[Node, Node] | None:
        """A value and the stored ``[features]`` that ``node`` adds to it."""
        made, terms = tensor(node), node.args[:2]
        if operation(node) != "add" or node.kwargs.get("alpha", 1) != 1 or made is None or not made.dim():
            return None
        for value, bias in (terms, terms[::-1]):
            stored, before = tensor(bias), tensor(value)
            if stored is None or before is None or not before.dim() or bias not in self.fixed or stored.dim() != 1:
                continue
            if same(stored.shape[0], made.shape[-1]) and same(before.shape[-1], made.shape[-1]):
                return value, bias  # type: ignore[return-value]
        return None

    @staticmethod
    def feature_axis(site: Layer) -> int:
        """Counted from the front for a convolution, from the end for a linear layer."""
        return 1 if isinstance(site, Convolution) else -1


@dataclass(frozen=True, eq=False)
class Leaf:
    """A hidden value as a first layer computes it: all its features, a run of them, or one of two halves of that.

    ``bias`` is added to what was cut out.
    """

    layer: Layer
    node: Node
    half: int | None = None
    interleaved: bool = False
    run: tuple[int, int] | None = None
    bias: Node | None = None

    @property
    def key(self) -> Key:
        """Equal for equal values read at different nodes."""
        return self.layer.id, self.half, self.interleaved, self.run, self.bias


@dataclass(eq=False)
class Hidden:
    """``activation(leaves[active])``, times the other leaf if there are two; the rest as in a site."""

    leaves: list[Leaf]
    activation: str
    active: int
    node: Node
    joined: tuple[Node | None, ...] = ()
    dropout: float = 0.0
    channels: tuple[int, int] | None = None
    parameters: tuple[Node, ...] = ()
    constants: tuple[float, ...] = ()


@dataclass(eq=False)
class Candidate:
    """A last layer and the hidden value it reads."""

    down: Layer
    hidden: Hidden

    @property
    def gate(self) -> Leaf | None:
        """The leaf the activation is applied to, where another one is multiplied with it."""
        return self.hidden.leaves[self.hidden.active] if len(self.hidden.leaves) == 2 else None

    @property
    def up(self) -> Leaf:
        """The leaf that is not the gate."""
        return self.hidden.leaves[1 - self.hidden.active if len(self.hidden.leaves) == 2 else 0]

    @property
    def firsts(self) -> list[Layer]:
        """The distinct first layers, in order."""
        return list({leaf.layer.id: leaf.layer for leaf in self.hidden.leaves}.values())

    @property
    def returns_its_width(self) -> bool:
        """As many features come out as went in."""
        axis = Layers.feature_axis(self.down)
        return same(self.up.layer.input.meta["val"].shape[axis], self.down.output.meta["val"].shape[axis])


def hidden_value(down: Layer, layers: Layers) -> Hidden | None:
    """What ``down`` reads, if that is an activation of other layers; None when it is something else.

    Raises:
        Refused: arithmetic between two layers that is no known activation.
    """
    axis = Layers.feature_axis(down)
    start, dropped = _unwrap(down.input, axis)
    if operation(start) == "cat" and is_axis(start, argument(start, "dim"), axis):
        found = _joined(start, axis, layers, dropped)
    else:
        found = _activation(start, axis, layers, dropped)
    found = found or _partly(start, down, layers, dropped)
    if found is None:
        _refuse_near_miss(start, down, layers)
    return found


def _joined(node: Node, axis: int, layers: Layers, dropped: float) -> Hidden | None:
    """One part of a concatenation is an activation, the others (an attention's output) are just read."""
    parts = argument(node, "tensors")
    found: list[tuple[int, Hidden]] = []
    for index, part in enumerate(parts):
        start, more = _unwrap(part, axis)
        hidden = _activation(start, axis, layers, 1 - (1 - dropped) * (1 - more))
        if hidden is not None:
            found.append((index, hidden))
    if len(found) != 1:
        return None
    index, hidden = found[0]
    own = {leaf.layer for leaf in hidden.leaves}
    beside = (_leaf(part, axis, layers) for position, part in enumerate(parts) if position != index)
    if any(leaf is not None and leaf.layer in own for leaf in beside):
        return None  # hidden values that pass unchanged: the layer's own
    hidden.joined = tuple(None if position == index else part for position, part in enumerate(parts))
    return hidden


def _activation(start: Node, axis: int, layers: Layers, dropped: float) -> Hidden | None:
    if _leaf(start, axis, layers) is not None:
        return None
    region: list[Node] = []
    leaves: dict[Node, Leaf] = {}
    distinct: dict[Key, Node] = {}
    own: set[Node] = set()
    pending, seen = [start], {start}
    while pending:
        node = pending.pop()
        leaf = _leaf(node, axis, layers)
        if leaf is not None:
            leaves[node] = leaf
            distinct.setdefault(leaf.key, node)
            continue
        if layers.is_number(node):
            own.add(node)
            continue
        wrapped = wrapper(node, axis)
        if operation(node) == "dropout" and wrapped is not None:
            # Inside the arithmetic only a dropout that does nothing is a plain value.
            wrapped = wrapped if dropout_probability(node) == 0.0 else None
        if wrapped is None and not elementwise(node):
            return None
        region.append(node)
        for read in [wrapped] if wrapped is not None else node.all_input_nodes:
            if read not in seen and scalar(read) is None:
                seen.add(read)
                pending.append(read)
        if len(region) > _LONGEST:
            return None
    if not 1 <= len(distinct) <= 2:
        return None
    # Two nodes of one value (a slice written twice) are one leaf.
    nodes = sorted(distinct.values())
    numbers = {node: nodes.index(distinct[leaf.key]) for node, leaf in leaves.items()}
    stored = sorted(own)
    found = recognise(sorted(region), numbers, stored)
    if found is None or (found[0] == "identity" and len(nodes) == 1):
        views = sum(1 for node in region if wrapper(node, axis) is not None)
        if len(region) == views or len({leaf.layer.input for leaf in leaves.values()}) > 1:
            return None
        raise Refused("unsupported-op", "the arithmetic between two linear layers is no known activation", start)
    activation, active, order, constants = found
    return Hidden(
        [leaves[node] for node in nodes],
        activation,
        active,
        start,
        dropout=dropped,
        parameters=tuple(stored[index] for index in order),
        constants=constants,
    )


def _partly(start: Node, down: Layer, layers: Layers, dropped: float) -> Hidden | None:
    """An activation of some channels of one layer.

    Raises:
        Refused: channels of one layer go different ways, and no known function is applied to a run of them.
    """
    axis = Layers.feature_axis(down)
    found = region_of(start, down.output, layers.effects, lambda node: node in layers.by_output)
    if found is None or len(found[1]) != 1 or not found[0]:
        return None
    region, (node,) = found
    leaf = _leaf(node, axis, layers)
    if leaf is None:
        return None
    function = partly(region, node, start, axis)
    if function is None:
        if not any(elementwise(item) for item in region):
            return None
        raise Refused("unsupported-op", "no known function on a run of the hidden channels", start)
    return Hidden([leaf], function[0], 0, start, dropout=dropped, channels=function[1])


def _refuse_near_miss(start: Node, down: Layer, layers: Layers) -> None:
    """Raise Refused where a single chain leads through an activation to a layer, but something else is in between."""
    node, foreign, bent, axis = start, "", False, Layers.feature_axis(down)
    for _ in range(_LONGEST // 2):
        leaf = _leaf(node, axis, layers)
        if leaf is not None:
            wide = leaf.layer.input.meta["val"].shape[axis]
            if bent and same(wide, down.output.meta["val"].shape[axis]):
                what = foreign or "another value"
                raise Refused("unsupported-op", f"{what} stands between the two linear layers", start)
            return
        name = operation(node)
        bent = bent or name.removesuffix("_") in _BENT
        if not elementwise(node) and wrapper(node, axis) is None:
            foreign = foreign or name
        if not name or not node.args or not isinstance(node.args[0], Node):
            return
        node = node.args[0]


def _unwrap(node: Node, axis: int) -> tuple[Node, float]:
    """Above casts, copies, dropouts and views that keep the feature axis; and how much the dropouts drop."""
    kept = 1.0
    while True:
        source = wrapper(node, axis)
        if source is None:
            return node, 1.0 - kept
        if operation(node) == "dropout":
            probability = dropout_probability(node)
            if probability is None:
                return node, 1.0 - kept
            kept *= 1.0 - probability
        node = source


def unwrapped(node: Node, axis: int) -> Node:
    """``node`` above casts, copies and views that keep the feature axis."""
    source = wrapper(node, axis) if operation(node) != "dropout" else None
    while source is not None:
        node = source
        source = wrapper(node, axis) if operation(node) != "dropout" else None
    return node


def wrapper(node: Node, axis: int) -> Node | None:
    """What ``node`` passes on unchanged, feature by feature."""
    name = operation(node)
    if name not in COPIES and name not in CASTS and name not in RESHAPES and name != "dropout":
        return None
    source, made = node.args[0], tensor(node)
    before = tensor(source)
    if before is None or made is None or not before.dtype.is_floating_point or not made.dtype.is_floating_point:
        return None
    if name in RESHAPES:
        # A row-major regrouping that keeps the size of the last axis keeps the axis.
        if axis != -1 or not before.dim() or not made.dim() or not same(before.shape[-1], made.shape[-1]):
            return None
    return source  # type: ignore[return-value]


def _leaf(node: Node, axis: int, layers: Layers) -> Leaf | None:
    """``node`` as the output of a layer, or a part of it, casts and views in between."""
    place, half, interleaved = node, None, False
    run: tuple[int, int] | None = None
    bias: Node | None = None
    for _ in range(8):
        layer = layers.by_output.get(place)
        if layer is not None:
            if bias is not None and run is None and half is None:
                return None  # of all features: a bias of the layer itself
            return Leaf(layer, node, half, interleaved, run, bias) if Layers.feature_axis(layer) == axis else None
        source = wrapper(place, axis)
        if source is not None and operation(place) != "dropout":
            place = source
            continue
        cut = half_of(place, axis) if half is None and run is None else None
        part = run_of(place, axis) if cut is None else None
        if cut is not None:
            place, half, interleaved = cut.whole, cut.half, cut.interleaved
        elif part is not None:
            first = run[0] if run is not None else 0
            last = run[1] if run is not None else part.stop - part.start
            place, run = part.whole, (part.start + first, part.start + last)
        elif axis == -1 and half is None and run is None and bias is None and (shifted := layers.shifted(place)):
            place, bias = shifted
        else:
            return None
    return None
