"""Layers: executions of modules that hand on the stream as they got it, with something added.

Where kinds of layers alternate, or a layer at an edge does more or less than the others, nothing need repeat exactly.
There the module tree says where a layer begins and ends (paths and classes are compared with each other, never with a
name), and data flow says what it is: from each value of the stream that enters, a path without a weighted layer on it
leads to what goes on, through a sum with something the module computed.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from .describe import running_modules
from .graph import NormalGraph
from .nodes import CASTS, CONTRACTIONS, DROPOUTS, MOVEMENTS, operation, readers, tensor
from .segments import type_of
from .sites import Site

STOPS = CONTRACTIONS | {"linear", "softmax", "embedding", "scaled_dot_product_attention"}
"""Nothing goes on unchanged through these, nor through a weighted layer."""

_SUMS = frozenset({"add", "add_", "sub", "sub_", "addcmul", "addcmul_", "lerp", "lerp_"})
_VIEWS = MOVEMENTS | CASTS
_SCALED = DROPOUTS | {"mul", "mul_", "div"}
_AFTER = 12
"""Nodes from the end of a module to the sum its caller adds it in, at most."""

_PARTS = {"attention": "mixing", "scan": "mixing", "feedforward": "channels", "moe": "channels"}
"""Kinds of sites as what they do to tokens."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One execution of a module, from position ``first`` to ``last`` of the graph.

    ``pairs`` are ``(entry, exit)`` for each value of the stream, ``parts`` what it does to tokens; where no site says
    that, its weighted layers: a class of wrappers says nothing about what they hold. ``like`` is equal for siblings of
    one class; that of a member that never ran is the classes of its parts.
    """

    path: str
    like: tuple[str, Any]
    nodes: tuple[Node, ...]
    first: int
    last: int
    pairs: tuple[tuple[Node, Node], ...]
    parts: frozenset[Any]

    @property
    def keys(self) -> set[Any]:
        """Two layers agree when they have one of these in common: siblings, on equal streams, with equal parts."""
        holder, kind = self.like
        kinds = kind if isinstance(kind, frozenset) else (kind,)
        return {(holder, one, type_of(entry), part) for one in kinds for entry, _ in self.pairs for part in self.parts}


def parts_of(sites: Iterable[Site]) -> dict[Node, str]:
    """What sites do to tokens, by their first output."""
    return {site.outputs[0]: _PARTS[site.kind] for site in sites if site.kind in _PARTS}


def find_layers(
    graph: NormalGraph, order: Sequence[Node], layers: set[Node], doing: Mapping[Node, str], kept: Mapping[Node, Node]
) -> list[Layer]:
    """Every execution that is a layer, outer ones too, in the order they begin, the outer first.

    ``order`` is the graph, ``layers`` the nodes computed by weighted layers and attentions, ``doing`` what
    :func:`parts_of` says, ``kept`` maps values of long skips to their readers: these are no part of the stream. Linear
    in the size of the graph times the depth of its module tree; no guard on a symbolic size.
    """
    found = []
    ran = {path for node in order for path in running_modules(node)}
    position = {node: index for index, node in enumerate(order)}
    for path, kind, first, last in _executions(order, ran, layers):
        nodes = [node for node in order[first : last + 1] if node.op == "call_function"]
        if not any(node in layers for node in nodes):
            continue
        joined: list[Node] = []
        pairs = _pairs(graph, nodes, layers, kept)
        if pairs and path not in ran:
            # Its last part may be added to the stream by the caller.
            added = _added(nodes, order, last)
            longer = _pairs(graph, [*nodes, *added], layers, kept) if added else ()
            if {entry for entry, _ in pairs} <= {entry for entry, _ in longer}:
                pairs, nodes, last = longer, [*nodes, *added], position[added[-1]]
        if not pairs:
            # What comes in may be joined with a skip right in front of the module.
            joined = _joined(nodes)
            pairs = _pairs(graph, [*joined, *nodes], layers, kept, frozenset(joined)) if joined else ()
        if not pairs and _held(path, ran):
            added = _added(nodes, order, last)
            pairs = _pairs(graph, [*nodes, *added], layers, kept) if added else ()
            pairs = pairs if all(_read(entry, nodes, layers) for entry, _ in pairs) else ()
            nodes, last = ([*nodes, *added], position[added[-1]]) if pairs else (nodes, last)
        if pairs:
            parts: frozenset[Any] = frozenset(doing[node] for node in nodes if node in doing)
            parts = parts or frozenset(_weighted(node) for node in nodes if node in layers)
            like = (path.rpartition(".")[0], kind)
            found.append(Layer(path, like, (*joined, *nodes), first, last, pairs, parts))
    return sorted(found, key=lambda layer: (layer.first, -layer.last))


def agreeing(layers: Sequence[Layer]) -> list[Layer]:
    """Those that agree with another one. Several runs of one module are equal or nothing: :mod:`.stacks` finds them."""
    counts = Counter(key for _, key in {(layer.path, key) for layer in layers for key in layer.keys})
    return [layer for layer in layers if any(counts[key] > 1 for key in layer.keys)]


def _executions(order: Sequence[Node], ran: Collection[str], layers: set[Node]) -> Iterable[tuple[str, Any, int, int]]:
    """``(path, class, first, last)`` of every run of neighbours that one module executed; ``ran`` has all paths.

    A member that was never called itself runs from one of its parts to the next, until a weighted layer of another
    module runs, or a part begins a second time.
    """
    around = functools.cache(lambda path: _unseen(path, ran))
    open_: dict[str, _Run] = {}
    for index, node in enumerate(order):
        here = running_modules(node)
        # What was executed nowhere (casts a rewrite added) belongs to what surrounds it.
        if not here:
            continue
        unseen = around(next(reversed(here)))
        for path in [path for path in open_ if path not in here and path not in unseen]:
            # What runs in the caller itself may be inlined; what runs in another module is not.
            if path in ran or (node in layers and not all(path.startswith(f"{other}.") for other in here if other)):
                yield open_.pop(path).found(path)
        for path, kind in here.items():
            if path:
                open_.setdefault(path, _Run(kind, index, index)).last = index
        for path in unseen:
            part = next(other for other in here if other.startswith(f"{path}."))
            if path in open_ and node in layers and open_[path].again(part):
                yield open_.pop(path).found(path)
            run = open_.setdefault(path, _Run(set(), index, index))
            run.kind.add((part[len(path) :], here[part]))
            run.last = index
            if node in layers and part not in run.parts:
                run.parts.append(part)
    for path, run in open_.items():
        yield run.found(path)


@dataclass(eq=False)
class _Run:
    """A module that is running: its class, or the classes of its parts and those with weighted layers in order."""

    kind: Any
    first: int
    last: int
    parts: list[str] = field(default_factory=list)

    def again(self, part: str) -> bool:
        return part in self.parts[:-1]

    def found(self, path: str) -> tuple[str, Any, int, int]:
        return path, frozenset(self.kind) if isinstance(self.kind, set) else self.kind, self.first, self.last


def _unseen(path: str, ran: Collection[str]) -> list[str]:
    """Members of lists around ``path`` whose ``forward`` was called past the module: Dynamo does not note these.

    Neither they nor what holds them ever ran. Their class is not known; the classes of what they hold are.
    """
    names = path.split(".")
    around = [".".join(names[:length]) for length in range(1, len(names))]
    return [one for holder, one in itertools.pairwise(around) if one not in ran and holder not in ran]


def _held(path: str, ran: Collection[str]) -> bool:
    """True for a member of a list: what holds it never ran."""
    holder = path.rpartition(".")[0]
    return bool(holder) and holder not in ran


def _added(nodes: Sequence[Node], order: Sequence[Node], last: int) -> list[Node]:
    """What the caller does with the one result of ``nodes``, up to the sum that takes it; [] when there is none.

    Where lists of parts take turns (an attention of one, a feed-forward of the other) the caller adds them up.
    """
    inside = set(nodes)
    reached: dict[Node, None] = {}
    for node in order[last + 1 : last + 1 + _AFTER]:
        if not any(read in inside or read in reached for read in node.all_input_nodes):
            continue
        if operation(node) in _SUMS:
            return [*reached, node]
        if operation(node) not in _VIEWS and operation(node) not in _SCALED:
            break
        reached[node] = None
    return []


def _read(entry: Node, nodes: Sequence[Node], layers: set[Node]) -> bool:
    """True when ``nodes`` read ``entry``, or what norms and scales make of it."""
    inside = set(nodes)
    pending = list(dict.fromkeys(read for node in nodes for read in node.all_input_nodes if read not in inside))
    steps = len(pending) + _AFTER
    for node in pending:  # which grows
        if node is entry:
            return True
        if node not in layers and operation(node) not in STOPS and len(pending) < steps:
            pending += node.all_input_nodes
    return False


def _weighted(node: Node) -> tuple[Any, ...]:
    """A weighted layer up to its input: its operation and the types of all else it reads."""
    return (operation(node), *map(type_of, node.all_input_nodes[1:]))


def _joined(nodes: Sequence[Node]) -> list[Node]:
    """Concatenations in front of ``nodes`` that only they read."""
    inside = set(nodes)
    reads = dict.fromkeys(read for node in nodes for read in node.all_input_nodes if read not in inside)
    return [node for node in reads if operation(node) == "cat" and all(user in inside for user in readers(node))]


def _pairs(
    graph: NormalGraph,
    nodes: Sequence[Node],
    layers: set[Node],
    kept: Mapping[Node, Node],
    joined: frozenset[Node] = frozenset(),
) -> tuple[tuple[Node, Node], ...]:
    """What comes in and goes on: ``(entry, exit)`` of equal type, connected by sums; in the order of the entries.

    A value ``joined`` with another one may be projected back once on its way to the sum.
    """
    inside = set(nodes)
    entries: list[Node] = []
    free: dict[Node, int] = {}
    summed: dict[Node, int] = {}
    layered: set[Node] = set()
    whole: set[Node] = set()
    for node in nodes:
        for read in node.all_input_nodes:
            if read not in inside and read not in free:
                enters = _enters(graph, read) and kept.get(read) is not node
                free[read] = 1 << len(entries) if enters else 0
                entries += [read] if enters else []
        reads = node.all_input_nodes
        stops = node in layers or operation(node) in STOPS
        if node in joined or (operation(node) in _VIEWS and reads and reads[0] in whole):
            whole.add(node)
        if stops:
            free[node] = free[reads[0]] if reads and reads[0] in whole else 0
            summed[node] = 0
        else:
            free[node] = summed[node] = 0
            for read in reads:
                free[node] |= free.get(read, 0)
                summed[node] |= summed.get(read, 0)
            if operation(node) in _SUMS:
                for read in reads:
                    if any(other in layered for other in reads if other is not read):
                        summed[node] |= free.get(read, 0)
            summed[node] &= free[node]
        if stops or any(read in layered for read in reads):
            layered.add(node)
    exits: dict[Node, Node] = {}
    for node in nodes:
        if summed.get(node) and tensor(node) is not None and any(user not in inside for user in readers(node)):
            kind = type_of(node)
            taken = {entry for entry, exit in exits.items() if exit in node.all_input_nodes}
            matching = [entry for index, entry in enumerate(entries) if summed[node] >> index & 1]
            matching = [entry for entry in matching if type_of(entry) == kind]
            # Of several the one it continues, else one that nothing continues yet.
            matching.sort(key=lambda entry: (entry not in taken, entry in exits))
            if matching:
                exits[matching[0]] = node
    return tuple((entry, exits[entry]) for entry in entries if entry in exits)


def _enters(graph: NormalGraph, node: Node) -> bool:
    value = tensor(node)
    return value is not None and value.is_floating_point() and node.op != "get_attr" and not graph.is_static(node)
