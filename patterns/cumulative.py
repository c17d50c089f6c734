"""Recurrences without a loop: cumulative products and sums of decays, chunked or not, as state-space duals write them.

Anchored on ``cumsum`` and ``cumprod`` of a decay, or on ``cumsum`` of products of keys and values that nothing decays.
What is computed from it runs together in one node again when the recurrence is over; the region in between is probed
for the part each operand plays (``roles.py``).
"""

from __future__ import annotations

import heapq
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
from .probing import MAXIMUM_RANK
from .reasons import Reason
from .recurrence import operands as aligned_operands
from .recurrence import recurrence
from .roles import Roles, find_roles, is_operand
from .sites import Recurrence, Scan
from .trial import subgraph

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


def cumulative_sites(
    graph: Graph, order: dict[Node, int], claimed: Collection[Node], constants: Collection[Node]
) -> Iterator[Scan | Recurrence]:
    """Proven sites of the graph whose interiors do not meet ``claimed``."""
    taken = set(claimed)
    known: dict[object, Roles | None] = {}
    for anchor in graph.nodes:
        if operation(anchor) not in _ANCHORS or anchor in taken or anchor in constants:
            continue
        for start in _sources(anchor):
            site = _first_site(start, order, taken, constants, known)
            if site is not None:
                taken |= site.interior
                yield site
                break


@dataclass(frozen=True)
class _Start:
    """Where a region begins: behind ``node``, which is a decay, its logarithm, or (``gate`` is none) in the region."""

    node: Node
    gate: str

    @property
    def users(self) -> list[Node]:
        if self.gate == "none":
            return [self.node]
        return [user for user in self.node.users if _reaches_anchor(user)]


def _sources(anchor: Node) -> Iterator[_Start]:
    """What the anchor accumulates, and what that was prepared from."""
    node: Any = anchor.args[0]
    gate = "logarithm" if operation(anchor) == "cumsum" else "decay"
    for _ in range(8):
        made = tensor(node)
        if made is None or not made.is_floating_point() or made.dim() > MAXIMUM_RANK:
            return
        yield _Start(node, gate)
        if operation(node) not in _PREPARATIONS:
            break
        gate = "decay" if operation(node) == "log" else gate
        node = node.args[0]
    if gate == "logarithm" and _makes_products(node):
        yield _Start(node, "none")


def _first_site(
    start: _Start,
    order: dict[Node, int],
    taken: set[Node],
    constants: Collection[Node],
    known: dict[object, Roles | None],
) -> Scan | Recurrence | None:
    outside = () if start.gate == "none" else (start.node,)
    for output, inside in _meetings(start.users, order):
        if inside & taken:
            return None
        passed = subgraph((output,), set(outside)) & inside
        products = _products(passed)
        for made in (products, set[Node]()) if products else (products,):
            interior = passed | made
            inputs = (*outside, *_inputs(start.node, interior, constants))
            if not 2 <= len(inputs) <= _OPERANDS or not all(is_operand(node) for node in inputs):
                continue
            described = description(output, frozenset(interior), inputs, (output,))
            # Masks made from nothing are no inputs, but they are part of what is computed.
            masks = subgraph([read for node in interior for read in node.all_input_nodes if read in constants], ())
            name = (start.gate, fingerprint(interior | masks, inputs, (output,)))
            if name not in known:
                with concretely():
                    known[name] = find_roles(inputs, output, start.gate, order)
            roles = known[name]
            if roles is not None:
                return _site(inputs, output, roles, described)
    return None


def _products(interior: Collection[Node]) -> set[Node]:
    """Scores or products with values that ``interior`` reads and nobody else: they may be part of the recurrence."""
    reads = {read for node in interior for read in node.all_input_nodes if read not in interior}
    return {node for node in reads if _makes_products(node) and all(user in interior for user in node.users)}


def _inputs(start: Node, interior: set[Node], constants: Collection[Node]) -> list[Node]:
    """What the region reads besides ``start``.

    Of a tensor read in several arrangements or pieces, what these are arrangements of is read; of complex numbers, the
    real ones that they are made of.
    """
    reads = [read for node in sorted(interior) for read in node.all_input_nodes]
    others = dict.fromkeys(node for node in reads if node not in interior and node is not start)
    return _merged([_real(node, interior) for node in others if node not in constants], interior)


def _real(node: Node, interior: set[Node]) -> Node:
    """The real tensor that a complex one is made of alone; what is made on the way goes into ``interior``."""
    passed = []
    whole = node
    while (made := tensor(node)) is not None and made.is_complex() and len(node.all_input_nodes) == 1:
        passed.append(node)
        (node,) = node.all_input_nodes
    if made is None or made.is_complex():
        return whole
    interior.update(passed)
    return node


def _makes_products(node: Node) -> bool:
    """Products of keys with keys, queries or values: contracted, or element by element (and summed when decayed)."""
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


def _meetings(starts: Sequence[Node], order: dict[Node, int]) -> Iterator[tuple[Node, set[Node]]]:
    """Nodes where everything computed from ``starts`` has run together, with what was passed on the way."""
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
        if not heap and len(inside) >= 3 and made is not None and made.dim() >= 2:
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


def _site(inputs: Sequence[Node], output: Node, roles: Roles, described: dict[str, Any]) -> Scan | Recurrence:
    decay, value = inputs[0], inputs[roles.value]
    made = output.meta["val"]
    length = 1
    for axis in roles.time:
        length *= int(made.shape[axis])
    if roles.is_plain and roles.input.axes == tuple(range(made.dim())):
        shapes = [node.meta["val"].shape for node in (decay, value)]
        if len(shapes[0]) == made.dim() and shapes[1] == made.shape and shapes[0][roles.time[0]] == length:
            return _scan(decay, value, output, roles, length, described)
    form = "chunked" if len(roles.time) == 2 else "cumulative"
    text = f"a {form} recurrence with a {roles.gate} gate has no operator yet"
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
    parts = [copies[decay], copies[value]]
    for place, logarithm in enumerate((roles.logarithm, roles.exponential)):
        if logarithm:
            parts[place] = program.call_function(aten.exp.default, (parts[place],))
    moved = [program.call_function(aten.movedim.int, (node, dim, 0)) for node in parts]
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
