"""What eager execution does: attentions, feed-forward layers, layers of experts, recurrences and repeated layers.

Everything is counted while the model runs, on real tensors and modules, and shares no code with detection. What no
result of the model depends on (a last layer's stream that nobody reads) is counted apart, as ``unread``: a graph may
hold it or not.

- **attention**: a fused attention operator; or a softmax (or exponential of scores less the logarithm of their sum)
  whose argument comes, element by element and by data movement, from a product of two computed tensors, and whose
  result goes in the same way into another such product. A router (its scores come from a linear layer), a pooling head
  (its weights multiply element by element) and a classifier are none of these. Linear attention, which has no softmax
  over scores: an execution of a module that the row names.
- **feedforward**: a linear layer (or 1x1 convolution), an element-wise function that is not linear, and a linear layer
  that returns the width the first one read, whose result is added to a value the first one's input was computed from.
  What enters in between comes from a linear layer with the same input, or is a parameter.
- **moe**: an execution of a layer of experts: a module with at least two parameters stacked along one leading axis, or
  with a list of equal modules with linear layers none of which reads what another gave, where something was picked
  (``topk``, ``argmax``, ``max``). What one of the list runs is part of it, and no feed-forward layer.
- **scan**: an execution of a module of a class that the row names as recurrent.
- **block**: executed modules that return what they read (of two values read as one the younger: the
  other is a skip), add something to it or to its norm on the way (or their caller does), and whose results are read; of
  these, those
  that agree with another member of the list: one class, the same stream, a weight of the same shape. So first and last
  layers that do more or less than the others count, and layers of alternating kinds. A list in a list whose parts the
  caller runs one after the other is a member like any other. Lists inside a counted member do
  not count.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .table import Row, call

_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "mv", "dot", "addmv", "addbmm"}
_FUSED = {
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
    "_native_multi_head_attention",
}
_SOFTMAX = {"_softmax", "_safe_softmax"}
_MOVEMENT = (
    {"view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "expand", "squeeze", "unsqueeze"}
    | {"select", "slice", "split", "split_with_sizes", "chunk", "unbind", "clone", "_to_copy", "alias", "detach"}
    | {"as_strided", "contiguous", "constant_pad_nd", "index", "index_select", "gather", "cat", "stack", "roll", "flip"}
    | {
        "repeat",
        "unfold",
        "lift_fresh",
        "copy_",
        "diagonal",
        "narrow",
        "movedim",
        "masked_fill",
        "masked_fill_",
        "where",
    }
    | {"native_dropout", "tril", "triu", "slice_scatter", "select_scatter", "pixel_shuffle", "pixel_unshuffle"}
)
_BENT = (
    {"gelu", "silu", "relu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "elu", "leaky_relu", "mish", "softplus"}
    | {
        "_prelu_kernel",
        "celu",
        "erf",
        "exp",
        "pow",
        "clamp_min",
        "clamp",
        "hardtanh",
        "square",
        "log_sigmoid_forward",
        "maximum",
        "threshold",
    }
    | {"glu", "gelu_", "silu_", "relu_", "hardswish_", "sigmoid_", "hardtanh_", "leaky_relu_", "elu_", "tanh_", "mish_"}
)
_NORMS = {"native_layer_norm", "_fused_rms_norm", "native_group_norm", "native_batch_norm"}
_SIZES = {"rsqrt", "sqrt", "linalg_vector_norm"}
_SUMS = {"add", "add_", "sub", "sub_"}
_SAME = {
    "view",
    "_unsafe_view",
    "reshape",
    "_reshape_alias",
    "clone",
    "alias",
    "detach",
    "_to_copy",
    "transpose",
    "permute",
}
_PICKS = {"topk", "argmax", "max"}


@dataclass(eq=False)
class Facts:
    """What is known about one tensor of the run."""

    index: int = 0
    """Its number, 0 for parameters, buffers and constants."""
    ancestors: int = 0
    """One bit for the number of each tensor it was computed from."""
    parameter: int | None = None
    """The rank of the parameter it is a view or cast of."""
    product: bool = False
    """Comes element by element from a product of two computed tensors: it may be scores."""
    matrices: int = 0
    """How many matrices that product has: one for each head, in each example."""
    logarithm: bool = False
    """Scores less the logarithm of the sum of their exponentials, or that logarithm."""
    weights: frozenset[int] = frozenset()
    """Numbers of the softmaxes over scores that it comes from element by element."""
    hidden: frozenset[Layer] | None = None
    """The linear layers it comes from element by element, when nothing else entered."""
    bent: bool = False
    """A function that is not linear was applied since those layers."""
    source: Facts | None = None
    """The value this is a view or copy of."""
    terms: frozenset[int] = frozenset()
    """Numbers of the values it is a sum or concatenation of, each perhaps scaled by a parameter."""
    raised: bool = False
    """Exponentials of scores."""
    total: int = 0
    """The number of the exponentials it is the sum of."""
    last: frozenset[Layer] = frozenset()
    """Possible last layers of a feed-forward whose result this is, scaled, normalised or summed."""
    stacked: list[int] | None = None
    """The axis along which it is a stack of several values."""
    size: bool = False
    """A root of squares, or one over it."""
    joined: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """Number and shape of the values it is a concatenation of."""

    @property
    def summed(self) -> frozenset[int]:
        """The values it is a sum of: at least itself."""
        return self.terms | {self.root.index}

    @property
    def root(self) -> Facts:
        """The value itself, behind views and copies."""
        return self.source or self


@dataclass(eq=False)
class Layer:
    """One execution of a linear layer."""

    source: Facts
    width: int
    running: frozenset[nn.Module]
    first: Layer | None = None
    chained: bool = False
    result: int = 0
    """Number of the sum it was counted at."""


class Tracker(TorchDispatchMode):
    """Follows every tensor of one eager run."""

    def __init__(self, module: nn.Module, inputs: Any, running: Sequence[nn.Module]) -> None:
        super().__init__()
        self.attention: set[int] = set()
        self.feedforward: list[Layer] = []
        self.picking: set[int] = set()
        self.sums: list[frozenset[int]] = []
        self.parts: set[int] = set()
        """Numbers that several values share, because one operator made them."""
        self.direct: list[frozenset[int]] = []
        """The two values of each of ``sums``."""
        self.operands: dict[int, frozenset[int]] = {}
        """The two values that a sum is of."""
        self.norms: dict[int, int] = {}
        """The value that a norm's result comes from."""
        self.projections: dict[int, int] = {}
        """The value that a linear layer's or convolution's result comes from."""
        self._running = running
        self._facts: dict[int, Facts] = {}
        self._kept: list[Tensor] = []
        self._count = 0
        for parameter in module.parameters():
            self._know(parameter, Facts(parameter=parameter.dim()))
        for tensor in tree_leaves(inputs):
            if isinstance(tensor, Tensor):
                self._know(tensor, self._fresh())

    def _fresh(self, known: Sequence[Facts] = ()) -> Facts:
        self._count += 1
        ancestors = 0
        for item in known:
            ancestors |= item.ancestors | (1 << item.index)
        return Facts(self._count, ancestors & ~1)

    def _know(self, tensor: Tensor, facts: Facts) -> None:
        self._kept.append(tensor)
        self._facts[id(tensor)] = facts

    def of(self, tensor: Tensor) -> Facts:
        """What is known; a tensor never seen before is a buffer or a constant."""
        return self._facts.get(id(tensor)) or Facts()

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, HigherOrderOperator):
            return self._whole(func, args, kwargs)
        name = func._schema.name.split("::")[1]
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = [self.of(tensor) for tensor in read]
        result = func(*args, **(kwargs or {}))
        if name in _PICKS and (name == "topk" or (len(args) > 1 and isinstance(args[1], int))):
            self.picking.update(map(id, self._running[-3:]))
        made = self._made(name, func, args, read, known)
        if isinstance(result, list):
            self.parts.add(made.index)
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            self._know(tensor, made)
            if func._schema.is_mutable and tensor._base is not None:
                # Whoever reads the whole later reads what was written into a part of it.
                self._know(tensor._base, _joined(made, self.of(tensor._base)))
        return result

    def _whole(self, func: HigherOrderOperator, args: Any, kwargs: Any) -> Any:
        """An operator that runs functions: what is in those is not looked at."""
        result = func(*args, **(kwargs or {}))
        facts = self._fresh([self.of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])
        if func.name() == "flex_attention":
            self.attention.add(facts.index)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._know(tensor, facts)
        return result

    def _made(self, name: str, func: Any, args: Any, read: Sequence[Tensor], known: Sequence[Facts]) -> Facts:
        facts = self._fresh(known)
        computed = [item for item in known if item.index]
        moves = torch.Tag.pointwise in func.tags or name in _MOVEMENT | _BENT
        if name in _FUSED:
            self.attention.add(facts.index)
        elif name in _PRODUCTS or name == "convolution":
            self._product(name, read, known, facts)
        elif not computed:
            ranks = [item.parameter for item in known if item.parameter is not None]
            return Facts(parameter=ranks[0] if ranks and moves else None) if known or not facts.ancestors else facts
        elif name in _SOFTMAX:
            facts.weights = frozenset({facts.index}) if known[0].product else frozenset()
            facts.matrices = known[0].matrices
        elif name == "logsumexp":
            facts.logarithm = known[0].product
        elif name == "sum" and known[0].raised:
            facts.total = known[0].index
        elif name == "sum" and known[0].stacked == args[1]:
            facts.last = known[0].last
        elif name == "exp" and known[0].logarithm and known[0].product:
            facts.weights = frozenset({facts.index})
        elif name in _NORMS:
            facts.last = known[0].last
            self.norms[facts.index] = known[0].root.index
        elif name == "linalg_vector_norm":
            facts.size = True
        elif moves:
            if name in _SAME and len(computed) == 1:
                facts.source = computed[0].root
            if name == "stack":
                facts.stacked = [args[1] if len(args) > 1 else 0]
            if name == "cat":
                facts.joined = tuple(
                    (item.root.index, tuple(value.shape)) for item, value in zip(known, read, strict=True)
                )
            if name in _SUMS or name == "cat" or (len(computed) == 1 and name not in _BENT):
                facts.terms = frozenset().union(*(item.summed for item in computed))
            if name in _SUMS and len(known) == 2:
                normed = frozenset(self.norms[item.index] for item in known if item.index in self.norms)
                self.sums.append(normed.union(*(item.summed for item in known)))
                self.operands[facts.index] = frozenset(item.root.index for item in known)
                self.direct.append(self.operands[facts.index])
            facts.product = any(item.product for item in computed)
            facts.matrices = max(item.matrices for item in computed)
            facts.raised = name == "exp" and facts.product
            facts.logarithm = any(item.logarithm for item in computed)
            facts.weights = frozenset().union(*(item.weights for item in computed))
            if name == "div" and len(known) == 2 and known[0].raised and known[1].total == known[0].index:
                facts.weights = frozenset({facts.index})
            self._hidden(name, facts, computed)
            self._last(name, facts, computed)
            self._norm(name, facts, computed)
        return facts

    def _norm(self, name: str, facts: Facts, computed: Sequence[Facts]) -> None:
        """Norms written out: a value times or by the root of something computed from it, perhaps times a weight."""
        facts.size = name in _SIZES or (
            len(computed) == 1 and name in _SAME | {"clamp_min", "expand"} and computed[0].size
        )
        if name in ("mul", "div") and len(computed) == 2:
            for value, other in (computed, computed[::-1]):
                if other.size and other.ancestors >> value.root.index & 1:
                    self.norms[facts.index] = value.root.index
        elif len(computed) == 1 and name in _SAME | {"mul"} and computed[0].index in self.norms:
            self.norms[facts.index] = self.norms[computed[0].index]

    def _product(self, name: str, read: Sequence[Tensor], known: Sequence[Facts], facts: Facts) -> None:
        if name == "convolution":
            weight = read[1]
            self.projections[facts.index] = known[0].root.index
            self._mixes_heads(known[0], weight.shape[1], weight.shape[0], facts)
            if known[1].parameter is not None and all(size == 1 for size in weight.shape[2:]):
                if weight.shape[1] == read[0].shape[1]:
                    self._linear(known[0], weight.shape[1], weight.shape[0], facts)
            return
        left, right = (-2, -1) if name in ("addmm", "baddbmm", "addmv", "addbmm") else (0, 1)
        one, other = known[left], known[right]
        if one.index and other.index:
            facts.product = not (one.weights or other.weights)
            facts.matrices = read[left].shape[0] if read[left].dim() == 3 else 1
            self.attention |= one.weights | other.weights
        elif read[right].dim() < 2 or read[left].dim() < 2:
            return  # a vector mixes no heads
        elif other.parameter is not None:
            self._mixes_heads(one, read[right].shape[-2], read[right].shape[-1], facts)
        elif one.parameter is not None:
            self._mixes_heads(other, read[left].shape[-1], read[left].shape[-2], facts)
        if one.index and other.parameter == 2 and name in ("mm", "addmm", "bmm"):
            self._linear(one, read[right].shape[-2], read[right].shape[-1], facts)

    def _mixes_heads(self, source: Facts, heads: int, features: int, facts: Facts) -> None:
        """Scores or weights stay what they are when a parameter mixes the heads of each example."""
        if heads > 1 and source.matrices and source.matrices % heads == 0:
            facts.product, facts.weights = source.product, source.weights
            facts.matrices = source.matrices // heads * features

    def _linear(self, source: Facts, width: int, features: int, facts: Facts) -> None:
        layer = Layer(source.root, width, frozenset(self._running))
        self.projections[facts.index] = source.root.index
        hidden = source.hidden if source.bent and source.hidden else frozenset()
        layer.chained = bool(hidden)
        first = next(iter(hidden), None)
        if first is not None and first.width == features and not first.chained:
            layer.first = first
            facts.last = frozenset({layer})
        facts.hidden = frozenset({layer})

    def _hidden(self, name: str, facts: Facts, computed: Sequence[Facts]) -> None:
        if name == "cat":
            # An attention's result may lie beside the hidden values.
            computed = [item for item in computed if item.hidden and item.bent] or computed
        if any(item.hidden is None for item in computed):
            return
        layers = frozenset().union(*(item.hidden or frozenset() for item in computed))
        if len({id(layer.source) for layer in layers}) == 1 and len(layers) <= 2:
            facts.hidden = layers
            gated = name in ("mul", "mul_") and len(computed) == 2
            facts.bent = gated or name in _BENT or any(item.bent for item in computed)

    def _last(self, name: str, facts: Facts, computed: Sequence[Facts]) -> None:
        if name in _BENT:
            return
        layers = frozenset().union(*(item.last for item in computed))
        if name in _SUMS and len(computed) == 2:
            for one, other in (computed, computed[::-1]):
                for layer in one.last:
                    assert layer.first is not None
                    source = layer.first.source
                    stream = source.ancestors | (1 << source.index)
                    if not layer.result and any(stream >> term & 1 for term in other.summed):
                        layer.result = facts.index
                        self.feedforward.append(layer)
        facts.last = frozenset(layer for layer in layers if not layer.result)


def _joined(one: Facts, other: Facts) -> Facts:
    return Facts(
        one.index,
        one.ancestors | other.ancestors | (1 << other.index) & ~1,
        product=one.product or other.product,
        weights=one.weights | other.weights,
    )


@dataclass(eq=False)
class Member:
    """An execution of a member of a module list: the values it reads, and how many sums were made before it."""

    path: str
    reads: list[Facts]
    sums: int
    container: bool
    keys: set[Any] = field(default_factory=set)
    """Class, shape of a stream and shape of a weight, in all combinations: members agree that have one in common."""
    adds: bool = False
    listed: bool = False
    normed: frozenset[int] = frozenset()
    """Numbers of the values it reads, and of those they are norms of."""
    streams: frozenset[int] = frozenset()
    """These, and the two values that each is a sum of: the stream may be read with positions added to it."""
    returned: set[int] = field(default_factory=set)
    parts: set[str] = field(default_factory=set)
    """Of a list that is a member: what ran of it."""

    def added(self, sums: Sequence[frozenset[int]], direct: Sequence[frozenset[int]]) -> bool:
        """True when the caller adds what it returns to what it read, or to what that is a norm of."""
        return self.listed and any(
            self.returned & terms and (self.normed & terms or self.streams & operands)
            for terms, operands in zip(sums, direct, strict=True)
        )


@dataclass(eq=False)
class Eager:
    """The counts of one eager run, and where the things counted by module are, in the order they ran."""

    counts: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    """How many more ran, whose results nothing that the model returns depends on."""
    blocks: list[str] = field(default_factory=list)
    unread_blocks: list[str] = field(default_factory=list)
    levels: list[str] = field(default_factory=list)
    """Repeated modules on all levels of the module tree, of which one is in ``blocks``."""
    recurrent: list[str] = field(default_factory=list)
    linear: list[str] = field(default_factory=list)
    experts: list[str] = field(default_factory=list)
    result: Any = None


def observe(row: Row, module: nn.Module, inputs: Mapping[str, Any]) -> Eager:
    """Run ``module`` eagerly once and count what it does."""
    found = Eager()
    running: list[nn.Module] = []
    tracker = Tracker(module, dict(inputs), running)
    paths = {child: path for path, child in module.named_modules()}
    lists: dict[str, list[Member]] = defaultdict(list)
    holders = {member: holder for holder in paths for member in holder.children() if _weighted(member)}
    started: list[Member] = []
    ran: dict[str, list[Member]] = defaultdict(list)
    experts: list[tuple[str, set[int]]] = []

    def enter(child: nn.Module, args: Any, kwargs: Any) -> None:
        running.append(child)
        if child in holders:
            reads = [tracker.of(leaf).root for leaf in tree_leaves((args, kwargs)) if _floats(leaf)]
            started.append(Member(paths[child], reads, len(tracker.sums), isinstance(child, nn.Sequential)))

    def leave(child: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        running.pop()
        found.recurrent += [paths[child]] * row.recurrent.count(type(child).__name__)
        if {type(child).__name__, type(getattr(child, "processor", None)).__name__} & set(row.linear):
            found.linear.append(paths[child])
        if _stacks_experts(child):
            experts.append((paths[child], {id(child), id(running[-1])} if running else {id(child)}))
        experts.extend((f"{paths[child]}.{name}".strip("."), {id(child)}) for name in _lists_of_experts(child))
        if child in holders:
            member = started.pop()
            given, made = _shapes((args, kwargs)), _shapes(result)
            own = {facts.index for facts in member.reads}
            joined = member.reads[0].joined if member.reads else ()
            if joined and made and made[0] not in given:
                # Read beside a skip: the stream is the younger one. It may be projected on its way to the sum.
                given = [max(joined)[1]]
                own |= {index for index, source in tracker.projections.items() if source in own}
            member.normed = frozenset(own | {tracker.norms[index] for index in own if index in tracker.norms})
            sums = (tracker.operands.get(index, frozenset()) for index in member.normed)
            member.streams = member.normed.union(*sums) - tracker.parts
            own |= {index for index, source in tracker.norms.items() if source in own}
            member.adds = any(own & terms for terms in tracker.sums[member.sums :])
            member.listed = isinstance(holders[child], nn.ModuleList | nn.Sequential | nn.ModuleDict)
            weights = {tuple(weight.shape) for weight in child.parameters() if weight.squeeze().dim() >= 2}
            member.keys = {(type(child), shape, weight) for shape in {*made} & {*given} for weight in weights}
            member.returned = {tracker.of(leaf).root.index for leaf in tree_leaves(result) if _floats(leaf)}
            ran[paths[holders[child]]].append(member)
            if member.keys:
                lists[paths[holders[child]]].append(member)

    with torch.no_grad(), tracker, _watched(paths, enter, leave):
        found.result = call(module, inputs)
    read = 0
    for leaf in tree_leaves(_plain(found.result)):
        if isinstance(leaf, Tensor):
            facts = tracker.of(leaf)
            read |= facts.ancestors | (1 << facts.index)
    lists.update(_grouped(lists, paths))
    found.blocks = _repeated(lists, read, tracker)
    found.experts = [
        path
        for path, nearby in experts
        if nearby & tracker.picking
        and not any(block.startswith(f"{path}.") for block in found.blocks)
        and not _chained(ran.get(path, ()))
    ]
    held = {expert for path in found.experts for expert in module.get_submodule(path).children()}
    tracker.feedforward = [layer for layer in tracker.feedforward if not layer.running & held]
    every = _repeated(lists, -1, tracker)
    found.levels = _repeated(lists, -1, tracker, apart=False)
    found.unread_blocks = sorted((Counter(every) - Counter(found.blocks)).elements())
    attention = sum(read >> number & 1 for number in tracker.attention)
    feedforward = sum(read >> layer.result & 1 for layer in tracker.feedforward)
    found.unread = Counter(
        attention=len(tracker.attention) - attention,
        feedforward=len(tracker.feedforward) - feedforward,
        block=len(found.unread_blocks),
    )
    found.counts = Counter(
        attention=attention + len(found.linear),
        feedforward=feedforward,
        moe=len(found.experts),
        scan=len(found.recurrent),
        block=len(found.blocks),
    )
    return found


def _chained(members: Sequence[Member]) -> bool:
    """True when one of ``members`` reads something computed from what another returned."""
    made = sum(1 << value for value in {value for member in members for value in member.returned})
    return any((read.ancestors | 1 << read.index) & made for member in members for read in member.reads)


def _grouped(lists: Mapping[str, Sequence[Member]], paths: Mapping[nn.Module, str]) -> dict[str, list[Member]]:
    """Lists of lists: each inner one as a member that was executed from its first part to its last.

    Only where the inner lists hold no lists of weighted modules themselves.
    """
    found: dict[str, list[Member]] = {}
    for outer, path in paths.items():
        inner = list(outer.children())
        kinds = nn.ModuleList | nn.ModuleDict
        if not isinstance(outer, nn.ModuleList) or not all(isinstance(group, kinds) for group in inner):
            continue
        if any(
            isinstance(part, kinds) and any(map(_weighted, part.children()))
            for group in inner
            for part in group.children()
        ):
            continue
        for group in inner:
            for member in lists.get(paths[group], ()):
                members = found.setdefault(path, [])
                if not members or members[-1].path != paths[group] or member.path in members[-1].parts:
                    members.append(Member(paths[group], member.reads, member.sums, container=True, listed=True))
                whole = members[-1]
                whole.parts.add(member.path)
                whole.keys |= {(type(group), *key[1:]) for key in member.keys}
                whole.adds = whole.adds or member.adds
                whole.returned |= member.returned
                whole.normed |= member.normed
                whole.streams |= member.streams
    return found


@contextlib.contextmanager
def _watched(modules: Iterable[nn.Module], enter: Callable[..., None], leave: Callable[..., None]) -> Iterator[None]:
    """``enter`` and ``leave`` around each ``forward``, also where one is called past its module, which no hook sees.

    Layers that torch would run as one operator, with nothing inside to be seen, run as they are written.
    """

    def watched(child: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            enter(child, args, kwargs)
            result = forward(*args, **kwargs)
            leave(child, args, kwargs, result)
            return result

        return run

    own = {child: child.__dict__.get("forward") for child in modules}
    for child in own:
        child.forward = watched(child, child.forward)  # type: ignore[method-assign]
    fast, compiled = torch.backends.mha.get_fastpath_enabled(), flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG
    torch.backends.mha.set_fastpath_enabled(False)
    flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True  # it would compile itself
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = compiled
        for child, forward in own.items():
            del child.__dict__["forward"]
            if forward is not None:
                child.forward = forward  # type: ignore[method-assign]


def _weighted(module: nn.Module) -> bool:
    return any(weight.dim() >= 2 for weight in module.parameters())


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _shapes(value: Any) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in tree_leaves(value) if _floats(leaf)]


def _plain(result: Any) -> Any:
    """Results of libraries as tuples, so that the tensors in them are seen."""
    if isinstance(result, Mapping):
        return [_plain(value) for value in result.values()]
    if hasattr(result, "__dataclass_fields__"):
        return [_plain(getattr(result, name)) for name in result.__dataclass_fields__]
    return [_plain(value) for value in result] if isinstance(result, list | tuple) else result


def _stacks_experts(module: nn.Module) -> bool:
    matrices = (weight for weight in module.parameters(recurse=False) if weight.dim() == weight.squeeze().dim() == 3)
    stacked = Counter(weight.shape[0] for weight in matrices)
    return any(experts >= 2 and number >= 2 for experts, number in stacked.items())


def _lists_of_experts(module: nn.Module) -> list[str]:
    found = []
    for name, child in module.named_children():
        members = [member for member in child.children() if next(member.parameters(), None) is not None]
        if isinstance(child, nn.ModuleList | nn.ModuleDict) and len(members) >= 2:
            linears = [sum(isinstance(part, nn.Linear) for part in member.modules()) for member in members]
            if len({type(member) for member in members}) == 1 and min(linears) >= 2:
                found.append(name)
    return found


def _repeated(lists: Mapping[str, Sequence[Member]], read: int, tracker: Tracker, apart: bool = True) -> list[str]:
    """Paths of repeated members, outer ones first; a sequence counts where nothing inside it repeats.

    ``read`` has one bit for the number of each value that the model's results depend on. Members that read one stream
    and whose results are summed are parts of one layer. Without ``apart`` what lies inside others counts too.
    """
    found: list[str] = []
    # Lists first, then sequences, then children with names of their own.
    for listed, sequences in ((True, False), (True, True), (False, False), (False, True)):
        for _, members in sorted(lists.items()):
            runs = Counter(member.path for member in members)
            live = [
                member
                for member in members
                if (member.adds or member.added(tracker.sums, tracker.direct))
                and any(read >> value & 1 for value in member.returned)
                # What is no member of a list and runs again and again is a tool of other modules.
                and (member.listed or runs[member.path] == 1)
            ]
            streams = Counter(member.normed for member in live)
            live = [member for member in live if member.adds or streams[member.normed] == 1]
            counts = Counter(key for member in live for key in member.keys)
            for member in live:
                path = member.path
                nested = any(path.startswith(f"{other}.") or other.startswith(f"{path}.") for other in found)
                turn = (member.listed, member.container) == (listed, sequences)
                if turn and not (apart and nested) and any(counts[key] > 1 for key in member.keys):
                    found.append(path)
    return found
