"""Recurrences without a loop: cumulative products and sums of decays, chunked or not, as state-space duals write them.

Anchored on ``cumsum`` and ``cumprod`` of a tensor. What is computed from it runs together in one node again when the
recurrence is over; the region in between is probed for the part each operand plays, then proven by running it beside
the plain recurrence at random points.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from . import batched
from .describe import description, fingerprint
from .evaluate import concretely
from .nodes import CONTRACTIONS, MOVEMENTS, operation, tensor
from .probing import MAXIMUM_RANK, Influence, Probe, canonical, gated
from .reasons import Reason
from .recurrence import operands as aligned_operands
from .recurrence import recurrence
from .sites import Recurrence, Scan
from .trial import Region, agree, sample, subgraph

aten = torch.ops.aten

_ANCHORS = frozenset({"cumsum", "cumprod"})
_PREPARATIONS = frozenset(
    {
        "unsqueeze",
        "expand",
        "masked_fill",
        "permute",
        "transpose",
        "view",
        "reshape",
        "clone",
        "contiguous",
        "to",
        "log",
    }
)
"""What may stand between a decay and its cumulative product."""
_MOVES = MOVEMENTS | {"select", "slice", "expand", "narrow"}
_LONGEST_MOVE = 8
LARGEST_REGION = 4096
_CANDIDATES = 12
_OPERANDS = 6
_FIRST_STEPS = 6
_STRONGEST = 0.1
"""Logarithms of decays tried lie between minus this and 0: their products neither vanish nor grow."""

_WEAKER = 0.5
"""The other operands are made smaller by this, so that a state from which keys are erased does not grow either."""


@dataclass(frozen=True)
class Roles:
    """Positions in the region's inputs (the decay is input 0). ``logarithm``: the decay is ``exp`` of its operand."""

    logarithm: bool
    value: int
    key: int | None
    query: int | None
    erase: int | None
    time: tuple[int, ...]
    decay: Influence
    input: Influence
    gate: str


def cumulative_sites(
    graph: Graph, order: dict[Node, int], claimed: Collection[Node], constants: Collection[Node]
) -> Iterator[Scan | Recurrence]:
    """Proven sites of the graph whose interiors do not meet ``claimed``."""
    taken = set(claimed)
    known: dict[str, Roles | None] = {}
    for anchor in graph.nodes:
        if operation(anchor) not in _ANCHORS or anchor in taken or anchor in constants:
            continue
        for decay, logarithm in _sources(anchor):
            site = _first_site(decay, logarithm, order, taken, constants, known)
            if site is not None:
                taken |= site.interior
                yield site
                break


def _sources(anchor: Node) -> Iterator[tuple[Node, bool]]:
    """What the anchor accumulates, and what that was prepared from; whether it would be a decay's logarithm."""
    node: Any = anchor.args[0]
    logarithm = operation(anchor) == "cumsum"
    for _ in range(8):
        made = tensor(node)
        if made is None or not made.is_floating_point() or made.dim() > MAXIMUM_RANK:
            return
        yield node, logarithm
        if operation(node) not in _PREPARATIONS:
            return
        logarithm = logarithm and operation(node) != "log"
        node = node.args[0]


def _first_site(
    decay: Node,
    logarithm: bool,
    order: dict[Node, int],
    taken: set[Node],
    constants: Collection[Node],
    known: dict[str, Roles | None],
) -> Scan | Recurrence | None:
    for output, inside in _meetings(decay, order):
        if inside & taken:
            return None
        interior = subgraph((output,), {decay}) & inside
        inputs = _inputs(decay, interior, constants)
        if not 2 <= len(inputs) <= _OPERANDS or not all(_is_operand(node) for node in inputs):
            continue
        described = description(output, frozenset(interior), inputs, (output,))
        # Masks made from nothing are no inputs, but they are part of what is computed.
        made = subgraph([read for node in interior for read in node.all_input_nodes if read in constants], ())
        name = fingerprint(interior | made, inputs, (output,))
        if name not in known:
            with concretely():
                known[name] = _roles(inputs, output, logarithm, order)
        roles = known[name]
        if roles is not None:
            return _site(inputs, output, roles, described)
    return None


def _inputs(decay: Node, interior: set[Node], constants: Collection[Node]) -> tuple[Node, ...]:
    """What the region reads, the decay first. Scores that only it reads are made in it: they go into ``interior``.

    Of a tensor read in several arrangements or pieces, what these are arrangements of is read.
    """
    scores = {
        read
        for node in interior
        for read in node.all_input_nodes
        if read not in interior and _makes_scores(read) and all(user in interior for user in read.users)
    }
    interior |= scores
    reads = [read for node in sorted(interior) for read in node.all_input_nodes]
    others = dict.fromkeys(node for node in reads if node not in interior and node is not decay)
    return (decay, *_merged([node for node in others if node not in constants], interior))


def _makes_scores(node: Node) -> bool:
    """Products of keys with keys or queries: contracted, or element by element and summed when they are decayed."""
    if operation(node) != "mul":
        return operation(node) in CONTRACTIONS
    sizes = [value.numel() for value in map(tensor, node.all_input_nodes) if value is not None]
    return len(sizes) == 2 and node.meta["val"].numel() > max(sizes)


def _merged(reads: Sequence[Node], interior: set[Node]) -> list[Node]:
    """``reads`` with those that are moved from one tensor replaced by it; the movements go into ``interior``."""
    chains = [_moved(node) for node in reads]
    sharing: dict[Node, list[list[Node]]] = {}
    for chain in chains:
        sharing.setdefault(chain[-1], []).append(chain)
    merged: dict[Node, None] = {}
    for chain in chains:
        alike = sharing[chain[-1]]
        shared = set(chain).intersection(*alike)
        place = next(index for index, node in enumerate(chain) if node in shared)
        interior.update(chain[:place])
        merged[chain[place]] = None
    return list(merged)


def _moved(node: Node) -> list[Node]:
    """``node`` and what it was moved or cut from, the oldest last."""
    chain = [node]
    while len(chain) < _LONGEST_MOVE and operation(node) in _MOVES and tensor(node.args[0]) is not None:
        node = node.args[0]  # type: ignore[assignment]
        chain.append(node)
    return chain


def _is_operand(node: Node) -> bool:
    made = tensor(node)
    return made is not None and made.is_floating_point() and 0 < made.dim() <= MAXIMUM_RANK


def _meetings(decay: Node, order: dict[Node, int]) -> Iterator[tuple[Node, set[Node]]]:
    """Nodes where everything accumulated from ``decay`` has run together, with what was passed on the way."""
    starts = [user for user in decay.users if _reaches_anchor(user)]
    heap = [(order[node], node) for node in dict.fromkeys(starts)]
    heapq.heapify(heap)
    seen = set(starts)
    inside: set[Node] = set()
    found = 0
    while heap and len(inside) < LARGEST_REGION and found < _CANDIDATES:
        _, node = heapq.heappop(heap)
        if node.op != "call_function" or not batched.is_repeatable(node.target):
            return
        inside.add(node)
        made = tensor(node)
        if not heap and len(inside) >= 4 and made is not None and made.dim() >= 2:
            found += 1
            yield node, set(inside)
        for user in node.users:
            if user not in seen and (user.users or user.op == "output"):
                seen.add(user)
                heapq.heappush(heap, (order[user], user))


def _reaches_anchor(node: Node) -> bool:
    for _ in range(8):
        if operation(node) in _ANCHORS:
            return True
        if operation(node) not in _PREPARATIONS or len(node.users) != 1:
            return False
        (node,) = node.users
    return False


def _roles(inputs: Sequence[Node], output: Node, logarithm: bool, order: dict[Node, int]) -> Roles | None:
    sizes = {int(size) for size in inputs[0].meta["val"].shape if isinstance(size, int)}
    region = Region(order, inputs, (output,), sizes, {})
    if tuple(region.inputs) != tuple(inputs) and any(not _is_operand(node) for node in region.inputs):
        return None
    for shrunk in (True, False):
        generator = torch.Generator().manual_seed(7)
        try:
            values = region.samples(generator, shrunk=shrunk)
            for node in inputs[1:]:
                values[node] = values[node] * _WEAKER
            values[inputs[0]] = _decays(values[inputs[0]].shape, generator, logarithm=logarithm)
            probe = Probe(region, output, values, shrunk=shrunk)
        except (RuntimeError, ValueError, IndexError, TypeError, MemoryError, NotImplementedError):
            continue
        if not torch.isfinite(probe.result).all():
            return None
        try:
            return _found(inputs, probe, logarithm=logarithm)
        except (RuntimeError, ValueError, IndexError, TypeError, MemoryError, NotImplementedError):
            return None
    return None


def _decays(shape: Sequence[int], generator: torch.Generator, *, logarithm: bool) -> Tensor:
    value = -_STRONGEST * (sample(shape, generator).abs() + 0.01)
    return value if logarithm else value.exp()


def _found(inputs: Sequence[Node], probe: Probe, *, logarithm: bool) -> Roles | None:
    influences = []
    for node in inputs:
        influence = probe.influence(node)
        if influence is None or len(influence.summed) > 1:
            return None
        influences.append(influence)
    decay = influences[0]
    rank = probe.result.dim()
    time = tuple(axis for axis in range(rank) if axis in decay.spread and axis in decay.axes)
    if not 1 <= len(time) <= 2:
        return None
    keyed = [place for place, item in enumerate(influences) if place and item.summed]
    plain = [place for place, item in enumerate(influences) if place and not item.summed]
    if len(plain) != 1 or len(keyed) not in (0, 2, 3):
        return None
    (value,) = plain
    if keyed:
        matched = {axis for place in (0, *keyed) for axis in influences[place].axes if axis is not None}
        matched |= {axis for axis in range(rank) if probe.result.shape[axis] == 1}
    else:
        matched = set(range(rank))
    batch = tuple(axis for axis in range(rank) if axis in matched and axis not in time)
    wide = tuple(axis for axis in range(rank) if axis not in matched and axis not in time)
    like = probe.result

    def of(place: int) -> Tensor:
        influence = influences[place]
        own = influence.summed if place != value else tuple(influence.axes.index(axis) for axis in wide)
        return canonical(probe.values[inputs[place]], influence, batch, time, own, like)

    decays, values = of(0), of(value)
    decays = decays.exp() if logarithm else decays
    results = like.permute(*batch, *time, *wide).reshape(values.shape)
    for query, key, erase in _assignments(keyed):
        parts = [None if place is None else of(place) for place in (key, query, erase)]
        # The first few steps tell most wrong assignments.
        for steps in (_FIRST_STEPS, values.shape[1]):
            cut = [None if part is None else part[:, :steps] for part in parts]
            if not agree(results[:, :steps], gated(decays[:, :steps], values[:, :steps], *cut)):
                break
        else:
            gate = "delta" if erase is not None else _gate(decay, keyed, batch)
            return Roles(logarithm, value, key, query, erase, time, decay, influences[value], gate)
    return None


def _assignments(keyed: Sequence[int]) -> Iterator[tuple[int | None, int | None, int | None]]:
    """Which keyed operand is the query, which the key and which erases."""
    if not keyed:
        yield None, None, None
    for places in itertools.permutations(keyed):
        yield (places[0], places[1], places[2] if len(places) > 2 else None)


def _gate(decay: Influence, keyed: Sequence[int], batch: Sequence[int]) -> str:
    if keyed:
        return "diagonal" if decay.summed else "scalar"
    return "diagonal" if batch and max(batch) in decay.axes else "scalar"


def _site(inputs: Sequence[Node], output: Node, roles: Roles, described: dict[str, Any]) -> Scan | Recurrence:
    decay, value = inputs[0], inputs[roles.value]
    made = output.meta["val"]
    length = 1
    for axis in roles.time:
        length *= int(made.shape[axis])
    if roles.key is None and len(roles.time) == 1 and roles.input.axes == tuple(range(made.dim())):
        if decay.meta["val"].dim() == made.dim() and value.meta["val"].shape == made.shape:
            return _scan(decay, value, output, roles, length, described)
    form = "chunked" if len(roles.time) == 2 else "cumulative"
    text = f"a {form} recurrence of matrices with a {roles.gate} gate has no operator yet"
    return Recurrence(
        id="",
        form=form,
        gate=roles.gate,
        states=(output,),
        initial=(),
        operands=tuple(inputs),
        length=length,
        obstacle=Reason("no-operator", text, (output.name,)),
        **described,
    )


def _scan(decay: Node, value: Node, output: Node, roles: Roles, length: int, described: dict[str, Any]) -> Scan:
    made: Tensor = output.meta["val"]
    (dim,) = roles.time
    program = Graph()
    copies = {node: program.placeholder(node.name) for node in described["inputs"]}
    factors: Any = copies[decay]
    if roles.logarithm:
        factors = program.call_function(aten.exp.default, (factors,))
    moved = [program.call_function(aten.movedim.int, (node, dim, 0)) for node in (factors, copies[value])]
    ready = program.call_function(aligned_operands, (*moved, None, (True, True), made.dim() - 1, length, made.dtype))
    parts = [program.call_function(batched.part, (ready, position)) for position in range(3)]
    states = program.call_function(recurrence, (*parts, 0, False))
    program.output((program.call_function(aten.movedim.int, (states, 0, dim)),))
    module = GraphModule(torch.nn.Module(), program)
    module.meta["laconic.time"] = {decay: dim, value: dim}
    module.meta["laconic.state"] = made.select(dim, 0)
    return Scan(
        id="",
        form="cumulative",
        decay=decay,
        input=value,
        initial=None,
        dim=dim,
        length=length,
        program=module,
        gate=roles.gate,
        **described,
    )
