"""The typed places detection finds. Sites hold nodes of one :class:`NormalGraph`; they are read, never changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import sympy
from torch import Tensor
from torch.fx import GraphModule, Node

from .reasons import Reason
from .routing import Routing

Order = tuple[int | None, ...]


@dataclass(frozen=True)
class Operand:
    """A tensor read in a canonical axis order: ``node`` permuted by ``permutation`` (identity when None).

    None among the axes stands for one of size one that the tensor lacks: the head axis of keys that all heads share.
    """

    node: Node
    permutation: Order | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Site:
    """A proven place in the graph.

    ``inputs`` are the nodes read from outside, ``outputs`` the nodes whose values leave, ``interior`` every node in
    between (outputs included). ``module`` is the dotted path in ``named_modules()``; ``source`` is ``file:line``;
    ``form`` is the spelling found (for people; no pass may depend on it). ``flops`` and ``bytes`` are sympy
    expressions in named dimensions, whose example values are in ``dimensions``. ``axes`` gives, where it is known,
    the named dimensions each axis of an input or interior value is made of (major first; none: size one). ``reported``
    names the fields of a subclass that define its meaning.
    """

    kind: ClassVar[str] = "site"
    reported: ClassVar[tuple[str, ...]] = ()
    id: str
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    interior: frozenset[Node]
    module: str | list[str] = ""
    source: str = ""
    form: str = ""
    flops: sympy.Expr = field(default_factory=lambda: sympy.Integer(0))
    bytes: sympy.Expr = field(default_factory=lambda: sympy.Integer(0))
    dimensions: dict[str, int] = field(default_factory=dict)
    fingerprint: str = ""
    axes: Mapping[Node, tuple[tuple[str, ...], ...]] = field(default_factory=dict)

    @property
    def output(self) -> Node:
        """The only output; a site with several raises ValueError."""
        (node,) = self.outputs
        return node

    def fields(self) -> dict[str, Any]:
        """What defines the site's meaning, as plain data for the report; nodes by name."""
        return {name: _named(getattr(self, name)) for name in self.reported}


def _named(value: Any) -> Any:
    if isinstance(value, Operand):
        value = value.node
    if isinstance(value, Reason):
        return str(value)
    return value.name if isinstance(value, Node) else value


@dataclass(frozen=True)
class Bias:
    """A term added to (or a mask applied on) attention scores, in order of application.

    ``kind``: ``additive`` (float, added), ``boolean`` (True is visible), ``hidden`` (True is not visible), ``causal``
    (no node; key ``j`` is visible to query ``i`` when ``j <= i``), ``floor`` (no node; no score is below ``fill``).
    ``value`` broadcasts against scores ``[*batch, S, T]``; an additive one is multiplied by ``factor`` first. With
    ``cut`` each axis of the scores is as many axes of ``value`` as the entry for it says (windows of an image inside
    its batch; rows and columns of an image in place of its queries or keys). ``structure`` names what the mask was
    recognised as, if anything (``causal``, ``window``, ``padding``: the same for every query, ``full``). ``window =
    (left, right)`` says which keys around its own position a query sees (None: no limit on that side). ``fill`` is the
    number put in place of a hidden score; it matters only in rows where every key is hidden.
    """

    kind: str
    value: Node | None = None
    structure: str = "unknown"
    window: tuple[int | None, int | None] | None = None
    fill: float = float("-inf")
    factor: float = 1.0
    cut: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Attention(Site):
    """``softmax(scale * q k^T + biases) v``.

    Between the scale and the biases the scores may be multiplied by ``factor`` (a learned temperature, broadcasting
    against ``[*batch, S, T]``) and then bent by ``soft_cap * tanh(scores / soft_cap)``. ``sinks`` (broadcasting against
    ``[*batch, S, 1]``) is one more score of every query, whose weight goes to no value. Where there is ``added``, the
    weights are mixed with others: ``share`` (None: one) times the weights plus ``added``, divided by the sum of that
    over the keys; both broadcast against ``[*batch, S, T]``.

    ``query [*batch, S, D]``, ``key [*batch, T, D]``, ``value [*batch, T, E]`` after each operand's permutation, and
    ``output [*batch, S, E]`` is permuted by ``output_permutation`` to give the site's output node. ``groups`` is the
    number of query heads per key head, on the last batch axis (1: equal). ``hidden_rows`` is what a query that sees
    no key gets when the hidden scores are infinite: ``"nan"`` or ``"zero"``.
    """

    kind: ClassVar[str] = "attention"
    query: Operand
    key: Operand
    value: Operand
    scale: float
    biases: tuple[Bias, ...] = ()
    groups: int = 1
    dropout: float = 0.0
    output_permutation: tuple[int, ...] | None = None
    hidden_rows: str = "nan"
    factor: Node | None = None
    soft_cap: float | None = None
    sinks: Node | None = None
    share: Node | None = None
    added: Node | None = None

    @property
    def causal(self) -> bool:
        """True when a bias is known to hide exactly the keys after the query."""
        return any(bias.kind == "causal" for bias in self.biases)

    def fields(self) -> dict[str, Any]:
        return {
            "query": self.query.node.name,
            "key": self.key.node.name,
            "value": self.value.node.name,
            "scale": self.scale,
            "biases": [
                {
                    "kind": b.kind,
                    "value": b.value.name if b.value else None,
                    "structure": b.structure,
                    "window": b.window,
                    "factor": b.factor,
                }
                for b in self.biases
            ],
            "groups": self.groups,
            "dropout": self.dropout,
            "factor": self.factor.name if self.factor else None,
            "soft_cap": self.soft_cap,
            "sinks": self.sinks.name if self.sinks else None,
            "share": self.share.name if self.share else None,
            "added": self.added.name if self.added else None,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearAttention(Site):
    """``scale * q (k^T v)``, divided by ``q . sum(k) + epsilon`` where it is ``normalised``: attention without a
    softmax.

    The operands are read after their feature maps (``relu(q)``, ``elu(k) + 1``, a softmax over the keys): in the
    shapes of :class:`Attention`. No query sees more or less of one key than of another but by its product.
    """

    kind: ClassVar[str] = "attention"
    reported: ClassVar[tuple[str, ...]] = ("query", "key", "value", "scale", "normalised", "epsilon", "groups")
    query: Operand
    key: Operand
    value: Operand
    scale: float = 1.0
    normalised: bool = True
    epsilon: float = 0.0
    groups: int = 1
    output_permutation: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class GatheredAttention(Site):
    """Attention in which each query has its own keys, gathered beside each other: sliding windows, bands, blocks.

    ``query [*batch, S, D]``, ``key [*batch, T, D]`` and ``value [*batch, T, E]`` after each operand's permutation.
    Query ``i`` has W scores, ``scale`` times its product with key ``keys[i, w]`` (``keys [S, W]``, int64; -1: no key,
    no weight). The scores ``[*batch, S, W]``, permuted by ``slots``, meet ``biases``, each added; after the softmax
    weights become zero where one of ``hidden`` is true. All of these broadcast. ``output [*batch, S, E]``, permuted by
    ``output_permutation``, gives the site's output node.
    """

    kind: ClassVar[str] = "attention"
    query: Operand
    key: Operand
    value: Operand
    scale: float
    keys: Tensor
    slots: tuple[int, ...]
    biases: tuple[Node, ...] = ()
    hidden: tuple[Node, ...] = ()
    output_permutation: tuple[int, ...] | None = None

    @property
    def window(self) -> tuple[int, int] | None:
        """``(left, right)`` when each query has exactly the keys from ``left`` before to ``right`` behind its place."""
        rows, slots = (self.keys >= 0).nonzero(as_tuple=True)
        reach = self.keys[rows, slots] - rows
        left, right = -int(reach.min()), int(reach.max())
        keys = self.key.node.meta["val"].shape[(self.key.permutation or range(8))[self.key.node.meta["val"].dim() - 2]]
        places = range(self.keys.shape[0])
        wanted = sum(min(keys, place + right + 1) - max(0, place - left) for place in places)
        pairs = len({*zip(rows.tolist(), self.keys[rows, slots].tolist(), strict=True)})
        return (left, right) if wanted == pairs == len(rows) else None

    def fields(self) -> dict[str, Any]:
        return {
            "query": self.query.node.name,
            "key": self.key.node.name,
            "value": self.value.node.name,
            "scale": self.scale,
            "keys_per_query": self.keys.shape[1],
            "window": self.window,
            "biases": [node.name for node in self.biases],
            "hidden": [node.name for node in self.hidden],
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class MappedAttention(Site):
    """Attention whose scores become weights by a program of the graph, with a softmax over the keys in it.

    ``scores [*batch, S, T]`` are ``scale`` times the products of ``query [*batch, S, D]`` and ``key [*batch, T, D]``.
    ``weights [*heads, S, K]`` are computed from them, each query's from its own scores; heads may be mixed, keys
    joined, chosen or left out. ``value [*heads, K, E]`` gives the output ``[*heads, S, E]``, which permuted by
    ``output_permutation`` is the first of the site's outputs; the others are scores or weights that are read elsewhere.
    ``way`` is a fingerprint of the program between scores and weights; ``obstacle`` is why this is no
    :class:`Attention`, and why nothing rewrites it.
    """

    kind: ClassVar[str] = "attention"
    reported: ClassVar[tuple[str, ...]] = ("query", "key", "value", "scale", "scores", "weights", "way", "obstacle")
    query: Operand
    key: Operand
    value: Operand
    scores: Operand
    weights: Operand
    way: str
    obstacle: Reason
    scale: float = 1.0
    output_permutation: tuple[int, ...] | None = None


ATTENTIONS = (Attention, LinearAttention, GatheredAttention, MappedAttention)
"""Every form of attention; a pass that cannot take one refuses it, so that the report says why."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Site):
    """``x W^T + b`` with ``input [..., in]`` and ``weight [out, in]`` (``transposed``: ``[in, out]``).

    ``weight`` is the node as it is stored (usually a parameter placeholder); ``bias [out]`` may be None.
    """

    kind: ClassVar[str] = "linear"
    reported: ClassVar[tuple[str, ...]] = ("input", "weight", "bias", "transposed")
    input: Node
    weight: Node
    bias: Node | None = None
    transposed: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Convolution(Site):
    """A convolution; ``input [N, C, *]`` and ``weight [O, C/groups, *]`` (``transposed``: ``[C, O/groups, *]``).

    ``stride``, ``padding`` (or its name), ``dilation`` and ``output_padding`` have one number for each axis after C.
    """

    kind: ClassVar[str] = "conv"
    reported: ClassVar[tuple[str, ...]] = (
        "input",
        "weight",
        "bias",
        "stride",
        "padding",
        "dilation",
        "groups",
        "transposed",
    )
    input: Node
    weight: Node
    bias: Node | None = None
    stride: tuple[int, ...] = (1,)
    padding: tuple[int, ...] | str = (0,)
    dilation: tuple[int, ...] = (1,)
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = (0,)


@dataclass(frozen=True, eq=False, kw_only=True)
class Norm(Site):
    """``layer``, ``rms``, ``group`` or ``batch`` normalisation of ``input``.

    ``layer`` and ``rms`` normalise over ``dims`` (counted from the end); ``weight`` and ``bias`` broadcast against the
    input. ``group`` takes ``groups`` groups of axis 1 at a time; ``batch`` uses the stored ``mean`` and ``variance`` of
    each channel (axis 1), or with neither those of the batch. For these two ``weight`` and ``bias`` are ``[C]``.
    """

    kind: ClassVar[str] = "norm"
    reported: ClassVar[tuple[str, ...]] = ("input", "norm", "weight", "bias", "epsilon", "dims", "groups")
    input: Node
    norm: str
    weight: Node | None = None
    bias: Node | None = None
    epsilon: float = 1e-5
    dims: tuple[int, ...] = (-1,)
    groups: int = 1
    mean: Node | None = None
    variance: Node | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Rope(Site):
    """Rotary position embedding: ``input [*rows, D]`` with pairs of features turned, ``x cos + turned(x) sin``.

    ``turn`` says which features ``(a, b)``, turned to ``(-b, a)``, are a pair: ``half`` (``i`` and ``i + D/2``),
    ``neighbour`` (``2i`` and ``2i + 1``) or ``regrouped`` (neighbours, whose results are put where ``half`` has
    them), counted within ``features = (start, stop)``, the ones that are turned; the others pass unchanged. ``cos``
    and ``sin`` broadcast against the rows and have a number for each feature or for each pair. ``sin`` is None where
    ``cos`` is a table of complex numbers ``cos + i sin``, one for each pair. Su et al. 2021, "RoFormer", equation 34.
    """

    kind: ClassVar[str] = "rope"
    reported: ClassVar[tuple[str, ...]] = ("input", "cos", "sin", "turn", "features")
    input: Node
    cos: Node
    sin: Node | None
    turn: str
    features: tuple[int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class FeedForward(Site):
    """``down(act(up(x)))`` or, gated, ``down(act(gate(x)) * up(x))``. Linears are sites of their own too.

    ``activation`` is a key of :data:`laconic.patterns.activations.ACTIVATIONS`, or with ``constants`` (numbers
    written in the graph that it takes, in its order) of ``FAMILIES``, or of ``GATED`` for a function of both. Where
    one layer computes gate and up at once, both fields hold it and ``up_half`` and ``gate_half`` say which half of
    its outputs each one is (the even or odd ones where they are ``interleaved``). The layers are 1x1 convolutions
    where the features are axis 1. ``joined`` is not empty where ``down`` reads a concatenation along the features (an
    attention beside the layer): its parts in order, None for this layer's own. ``dropout`` is the probability of
    dropping a hidden value in training. ``channels = (start, stop)`` are the hidden channels the activation is
    applied to where it is not all of them; the others pass unchanged (without a gate only). ``parameters`` are the
    stored numbers of an activation that has its own (``PARAMETRIC``). ``run = (start, stop)`` are the features of the
    first layer that are this site's where it computes others beside (queries, keys and values of an attention in
    parallel, Dehghani et al. 2023, "ViT-22B"); gate and up are then halves of that run, and ``run_bias [H]``, if
    there, is added to it.
    """

    kind: ClassVar[str] = "feedforward"
    input: Node
    up: Linear | Convolution
    down: Linear | Convolution
    activation: str
    gate: Linear | Convolution | None = None
    up_half: int | None = None
    gate_half: int | None = None
    interleaved: bool = False
    joined: tuple[Node | None, ...] = ()
    dropout: float = 0.0
    channels: tuple[int, int] | None = None
    parameters: tuple[Node, ...] = ()
    constants: tuple[float, ...] = ()
    run: tuple[int, int] | None = None
    run_bias: Node | None = None

    def fields(self) -> dict[str, Any]:
        return {
            "input": self.input.name,
            "up": self.up.id,
            "down": self.down.id,
            "gate": self.gate.id if self.gate else None,
            "activation": self.activation,
            "halves": [self.up_half, self.gate_half],
            "interleaved": self.interleaved,
            "joined": [part.name if part else None for part in self.joined],
            "run": self.run,
            "dropout": self.dropout,
            "channels": self.channels,
            "parameters": [node.name for node in self.parameters],
            "constants": list(self.constants),
        }


@dataclass(frozen=True, eq=False)
class Stack:
    """One layer of every expert: a single ``weights [experts, out, in]``, or one ``[out, in]`` for each expert.

    ``transposed``: stored as ``[..., in, out]``. ``biases`` are ``[experts, out]`` or one ``[out]`` each, or none.
    """

    weights: tuple[Node, ...]
    biases: tuple[Node, ...] = ()
    transposed: bool = False

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (*self.weights, *self.biases)


@dataclass(frozen=True, eq=False, kw_only=True)
class MixtureOfExperts(Site):
    """``sum over experts e of w_e(x) down_e(act(gate_e(x)) * up_e(x))``, and a shared expert if there is one.

    ``w = routing.weights(router(x), selection_bias)`` is zero for all but ``routing.top_k`` of ``experts``. ``gate``,
    the halves, ``activation`` and ``constants`` are as in :class:`FeedForward`.
    ``shared`` is added to the sum, times ``sigmoid(shared_gate(x))`` if that is there. ``flat``: the output has the
    tokens ``[tokens, features]`` in one axis, whatever axes they have in the input. ``scaled_inputs``: the weights
    multiply what the chosen experts read, ``down_e(act(up_e(w_e(x) x)))``. The fields say what is computed
    for each token; how tokens are brought to experts (sorted, masked, one by one) is not part of the meaning.
    """

    kind: ClassVar[str] = "moe"
    input: Node
    router: Linear
    experts: int
    routing: Routing
    up: Stack
    down: Stack
    activation: str
    constants: tuple[float, ...] = ()
    gate: Stack | None = None
    up_half: int | None = None
    gate_half: int | None = None
    interleaved: bool = False
    selection_bias: Node | None = None
    shared: FeedForward | None = None
    shared_gate: Linear | None = None
    flat: bool = False
    scaled_inputs: bool = False

    def fields(self) -> dict[str, Any]:
        return {
            "input": self.input.name,
            "router": self.router.id,
            "experts": self.experts,
            "top_k": self.routing.top_k,
            "routing": {
                "scores": self.routing.scores,
                "normalised": self.routing.normalised,
                "scale": self.routing.scale,
                "groups": self.routing.groups,
                "top_groups": self.routing.top_groups,
            },
            "up": [node.name for node in self.up.nodes],
            "gate": [node.name for node in self.gate.nodes] if self.gate else None,
            "down": [node.name for node in self.down.nodes],
            "activation": self.activation,
            "constants": list(self.constants),
            "halves": [self.up_half, self.gate_half],
            "interleaved": self.interleaved,
            "selection_bias": self.selection_bias.name if self.selection_bias else None,
            "scaled_inputs": self.scaled_inputs,
            "shared": self.shared.id if self.shared else None,
            "shared_gate": self.shared_gate.id if self.shared_gate else None,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Scan(Site):
    """``h_t = decay_t * h_{t-1} + input_t`` along ``dim`` of the tensors it is read from, for ``length`` steps.

    ``decay`` and ``input`` are those tensors, or what the first step reads when each step computes its own. ``gate`` is
    what the decay is: ``none`` (1: a plain sum), ``scalar`` (one number for a whole state, or for each matrix of a
    state with more than two axes), ``diagonal`` (a number for each element or row). The exact meaning is ``program``: a
    graph module from ``inputs`` to ``outputs`` that calls :func:`laconic.patterns.recurrence.recurrence` once.
    ``unfolded`` says why readings of single states, if any, could not be folded into one operation over the stack.
    """

    kind: ClassVar[str] = "scan"
    decay: Node
    input: Node
    initial: Node | None
    dim: int
    reverse: bool = False
    length: int = 0
    program: GraphModule | None = None
    unfolded: tuple[Reason, ...] = ()
    gate: str = "diagonal"

    def fields(self) -> dict[str, Any]:
        return {
            "gate": self.gate,
            "decay": self.decay.name,
            "input": self.input.name,
            "initial": self.initial.name if self.initial else None,
            "dim": self.dim,
            "reverse": self.reverse,
            "length": self.length,
            "unfolded": [str(reason) for reason in self.unfolded],
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Recurrence(Site):
    """Values carried from step to step that are understood, but that no operator of ours computes.

    ``gate`` says how the next state depends on the last one: ``none``, ``scalar`` and ``diagonal`` as in
    :class:`Scan`, ``delta`` (a diagonal plus a matrix of rank one), ``dense`` (any other linear map) or ``nonlinear``.
    ``states`` are the values after the last step, ``initial`` those before the first, ``operands`` what the steps read
    (whole sequences), ``length`` the number of steps (0: not known when compiling). ``obstacle`` is why no rewrite
    takes it.
    """

    kind: ClassVar[str] = "scan"
    gate: str
    states: tuple[Node, ...]
    initial: tuple[Node, ...]
    operands: tuple[Node, ...]
    length: int
    obstacle: Reason

    def fields(self) -> dict[str, Any]:
        return {
            "gate": self.gate,
            "states": [node.name for node in self.states],
            "initial": [node.name for node in self.initial],
            "operands": [node.name for node in self.operands],
            "length": self.length,
            "obstacle": str(self.obstacle),
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class SelectiveScan(Site):
    """``y_t = sum_n read_tn h_tn``, ``h_t = exp(delta_t rate) h_{t-1} + input_t expand_t``: states read, never kept.

    ``recurrence`` is the node that computes the states now. Each field holds the factors of one operand; ``program`` is
    the exact meaning, from ``inputs`` to ``outputs``, and calls :func:`laconic.patterns.recurrence.selective` once.
    """

    kind: ClassVar[str] = "scan"
    recurrence: Node
    delta: tuple[Node, ...]
    rate: tuple[Node, ...]
    input: tuple[Node, ...]
    expand: tuple[Node, ...]
    read: Node
    length: int
    program: GraphModule
    gate: ClassVar[str] = "diagonal"

    def fields(self) -> dict[str, Any]:
        return {
            "gate": self.gate,
            "recurrence": self.recurrence.name,
            "delta": [node.name for node in self.delta],
            "rate": [node.name for node in self.rate],
            "input": [node.name for node in self.input],
            "expand": [node.name for node in self.expand],
            "read": self.read.name,
            "length": self.length,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Block(Site):
    """One layer of the residual stream, from ``entries`` (outside) to ``exits``.

    ``index`` counts within its ``stack``. Blocks of one stack need not be equal: those of one ``variant`` have equal
    ``fingerprint`` and are interchangeable programs. ``entries`` and ``exits`` have one node per stream, in the same
    order; a stream that ends in a block has an entry and no exit, after all others. All sites lying inside are named
    in ``members``; ``parts`` are the kinds of the attentions, feed-forwards, mixtures and scans among them, in order.
    A block holds ``period`` layers: more than one only where no module says where one of several kinds ends.
    ``writes`` are the inputs it writes to in place: caches of keys, states that are kept.
    """

    kind: ClassVar[str] = "block"
    entries: tuple[Node, ...]
    exits: tuple[Node, ...]
    stack: int
    index: int
    variant: int = 0
    members: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    period: int = 1
    writes: tuple[Node, ...] = ()

    def fields(self) -> dict[str, Any]:
        return {
            "entries": [n.name for n in self.entries],
            "exits": [n.name for n in self.exits],
            "stack": self.stack,
            "index": self.index,
            "variant": self.variant,
            "members": list(self.members),
            "parts": list(self.parts),
            "period": self.period,
            "writes": [n.name for n in self.writes],
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Skip(Site):
    """A long skip: ``producer`` is read far away by ``consumer``, together with what it became.

    ``consumer`` concatenates along ``axis``, or adds (``axis`` None); ``operand`` is the skip's place among its two
    operands. ``index`` counts from the outside in: 0 is read last of all.
    """

    kind: ClassVar[str] = "skip"
    reported: ClassVar[tuple[str, ...]] = ("producer", "consumer", "operand", "axis", "index")
    producer: Node
    consumer: Node
    operand: int
    axis: int | None
    index: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Guidance(Site):
    """``outputs[0] = u + s * (c - u)`` with ``s = scale_offset + scale_factor * scale``: classifier-free guidance.

    ``latent`` x ``[B, ...]`` is held twice by ``doubled`` ``[2B, ...]``; ``result`` is what the network makes of it,
    and ``unconditional`` u and ``conditional`` c are the halves of that, in ``order``. ``scale`` is a number or a node.
    ``doubled_inputs`` are the values from outside of which each half reads its own half (text states, time steps), and
    ``batch_axes`` all interior values with two halves, each with the axis they lie along. ``conditioning`` are the
    graph's inputs that feed only the conditioning path. ``inputs`` begin with ``latent`` and ``doubled_inputs``;
    further ``outputs`` are values of the network that are read elsewhere too.
    """

    kind: ClassVar[str] = "guidance"
    latent: Node
    doubled: Node
    result: Node
    unconditional: Node
    conditional: Node
    order: tuple[str, str]
    scale: float | Node
    scale_factor: float = 1.0
    scale_offset: float = 0.0
    doubled_inputs: Mapping[Node, int] = field(default_factory=dict)
    batch_axes: Mapping[Node, int] = field(default_factory=dict)
    conditioning: tuple[Node, ...] = ()

    def fields(self) -> dict[str, Any]:
        return {
            "latent": self.latent.name,
            "result": self.result.name,
            "order": list(self.order),
            "scale": self.scale.name if isinstance(self.scale, Node) else self.scale,
            "scale_factor": self.scale_factor,
            "scale_offset": self.scale_offset,
            "doubled_inputs": {node.name: axis for node, axis in self.doubled_inputs.items()},
            "conditioning": [node.name for node in self.conditioning],
        }


@dataclass(eq=False)
class Sites:
    """Everything found in one graph, and the refusals on the way; ``near_misses`` are these with the kind refused."""

    sites: list[Site] = field(default_factory=list)
    refusals: list[Reason] = field(default_factory=list)
    near_misses: list[tuple[str, Reason]] = field(default_factory=list)
    residual_stream: tuple[Node, ...] = ()

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def of(self, *kinds: type[Site]) -> Sequence[Any]:
        """The sites of the given classes, in graph order."""
        return [site for site in self.sites if isinstance(site, kinds)]
