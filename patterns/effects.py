"""What is written and what is constant: the two facts about a whole graph that every detector needs. One pass each."""

from __future__ import annotations

import contextlib
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator

from torch.fx import Graph, Node

from .graph import NormalGraph
from .nodes import aliased, mutates, readers, tensor, written
from .reasons import Reason

_RANDOM = ("rand", "bernoulli", "normal", "uniform", "multinomial", "dropout", "empty")


class Effects:
    """In-place writes of one graph, and which of its values depend on no input."""

    def __init__(self, graph: Graph) -> None:
        self.position: dict[Node, int] = {}
        self.writes: list[tuple[Node, frozenset[Node]]] = []
        self.constants: set[Node] = set()
        self._root: dict[Node, Node] = {}
        self._writers: dict[Node, list[Node]] = {}
        for index, node in enumerate(graph.nodes):
            self.position[node] = index
            source = aliased(node)
            self._root[node] = node if source is None else self._root[source]
            if mutates(node):
                self.writes.append((node, frozenset(self._root[target] for target in written(node))))
            elif _constant(node) and all(read in self.constants for read in node.all_input_nodes):
                self.constants.add(node)
        for node, roots in self.writes:
            for root in roots:
                self._writers.setdefault(root, []).append(node)
        spoiled = {root for _, roots in self.writes for root in roots}
        if spoiled:
            self._spoil(graph, spoiled)

    def _spoil(self, graph: Graph, roots: set[Node]) -> None:
        gone: set[Node] = set()
        for node in graph.nodes:
            if node in self.constants and (self._root[node] in roots or any(n in gone for n in node.all_input_nodes)):
                gone.add(node)
        self.constants -= gone

    def root(self, node: Node) -> Node:
        """The node whose memory the value of ``node`` is, or may be, part of."""
        return self._root[node]

    def is_written(self, node: Node) -> bool:
        """True when something writes to the memory that the value of ``node`` is part of."""
        return self._root[node] in self._writers

    def mutation(
        self, inputs: Iterable[Node], interior: Collection[Node], *, own: bool = False, inside: bool = False
    ) -> Reason | None:
        """A ``mutation`` reason when something is written inside, or written to what the site has read before.

        A rewrite computes everything at the place of the last output, so a write to an input between the first node
        that reads it and the last interior node would be seen too early. (Keys that are written into a cache, which
        the site then reads, come before.) With ``own`` an interior node may write to values that are made inside:
        from outside the site is a function all the same, as long as none of them escapes. With ``inside`` interior
        nodes may write anything but constants: the site is a program that changes its inputs.
        """
        if not self.writes:
            return None
        last = max(self.position[node] for node in interior)
        touched = {self._root[node] for node in (*inputs, *interior)}
        first: dict[Node, int] | None = None
        for node, roots in self.writes:
            if node in interior and (own and self.within(node, interior) or inside and _no_constants(roots)):
                continue
            wrong = node in interior
            if not wrong and self.position[node] <= last and roots & touched:
                first = self._first_reads(interior) if first is None else first
                wrong = any(first.get(root, last + 1) <= self.position[node] for root in roots)
            if wrong:
                return Reason("mutation", f"{node.target} writes to a value of the site", (node.name,))
        return None

    def _first_reads(self, interior: Iterable[Node]) -> dict[Node, int]:
        """Where each memory is first made or read by a node of ``interior``. A view of it reads nothing yet."""
        first = {node: self.position[node] for node in interior if self._root[node] is node}
        for node in interior:
            for root in {self._root[read] for read in node.all_input_nodes}:
                if not _shared(node, root):
                    first[root] = min(first.get(root, self.position[node]), self.position[node])
        return first

    def writers(self, values: Collection[Node]) -> list[Node]:
        """The nodes that write to memory of ``values``, in graph order."""
        if not self.writes:
            return []
        roots = {self._root[node] for node in values}
        return sorted({writer for root in roots for writer in self._writers.get(root, ())})

    def written_between(self, first: int, last: int) -> list[tuple[Node, frozenset[Node]]]:
        """Writes at places between two of the graph, with the memory they change."""
        start = bisect_right(self.writes, first, key=self._place)
        return self.writes[start : bisect_left(self.writes, last, key=self._place)]

    def _place(self, write: tuple[Node, frozenset[Node]]) -> int:
        return self.position[write[0]]

    def written_by(self, interior: Collection[Node], inputs: Iterable[Node]) -> tuple[Node, ...]:
        """Those of ``inputs`` whose memory a node of ``interior`` writes to."""
        roots = {root for node, written_roots in self.writes if node in interior for root in written_roots}
        return tuple(node for node in inputs if roots and self._root[node] in roots)

    def within(self, writer: Node, interior: Collection[Node]) -> bool:
        """True when ``writer`` writes only to memory that a node of ``interior`` made."""
        return all(self._root[target] in interior for target in written(writer))

    def escape(self, interior: Collection[Node], outputs: Collection[Node]) -> Reason | None:
        """``weights-escape`` when an interior value is read outside, ``mutation`` when it is written there."""
        for node in interior:
            if node in outputs:
                continue
            for user in readers(node):
                if user in interior:
                    continue
                roots = {self._root[node]}
                writer = next((w for w, written_roots in self.writes if written_roots & roots), None)
                if writer is not None:
                    return Reason("mutation", f"{writer.target} writes to {node.name}", (writer.name, node.name))
                return Reason("weights-escape", f"{node.name} is also read by {user.name}", (node.name, user.name))
        return None


def _no_constants(roots: Iterable[Node]) -> bool:
    return all(root.op != "get_attr" for root in roots)


def _shared(node: Node, root: Node) -> bool:
    """True when the value of ``node`` is surely a view of that of ``root``."""
    view, whole = tensor(node), tensor(root)
    if aliased(node) is None or view is None or whole is None:
        return False
    return view.untyped_storage()._cdata == whole.untyped_storage()._cdata


_kept: weakref.WeakKeyDictionary[NormalGraph, Effects] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def shared_effects(graph: NormalGraph) -> Iterator[None]:
    """Inside, :func:`effects_of` this graph computes nothing anew: for those who promise not to change it."""
    _kept[graph] = Effects(graph.module.graph)
    try:
        yield
    finally:
        del _kept[graph]


def effects_of(graph: NormalGraph) -> Effects:
    """What is written and what is constant in ``graph`` as it is now."""
    known = _kept.get(graph)
    return Effects(graph.module.graph) if known is None else known


def _constant(node: Node) -> bool:
    if node.op == "get_attr":
        return True
    if node.op != "call_function" or any(word in str(node.target) for word in _RANDOM):
        return False
    value = tensor(node)
    return value is not None and all(isinstance(size, int) for size in value.shape)
