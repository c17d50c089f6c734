"""Writes in place become new values where nobody can tell: part of making the normal form.

``x.add_(y)``, ``scores.masked_fill_(mask, low)`` or ``buffer[:, :k] = v`` on memory that the graph itself made say the
same as their functional forms, but a value that changes under its name hides the data flow every detector reads. A
write stays as it is when the memory is an input, a parameter or a constant, and when a view taken before it that goes
on being read cannot be taken again.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .nodes import RESHAPES, aliased, argument, mutates, operation, tensor, written

aten = torch.ops.aten

# A view of more steps, or more views that go on being read, is left alone.
_VIEWS = 8
_VIEWED = RESHAPES | {"slice", "select", "transpose", "permute", "t", "expand", "detach", "alias"}
_RANGE = ("dim", "start", "end", "step")
_DENSE = torch.contiguous_format

_INHERITED = ("nn_module_stack", "stack_trace", "custom", "from_node", "seq_nr")


class _Memory:
    """Which nodes share the memory of which, by the storages of their fake tensors."""

    def __init__(self, graph: Graph) -> None:
        self.position: dict[Node, float] = {}
        self.key: dict[Node, int] = {}
        self.first: dict[int, Node] = {}
        self._coming: dict[int, deque[Node]] = defaultdict(deque)
        self._live: dict[int, list[Node]] = defaultdict(list)
        for index, node in enumerate(graph.nodes):
            self.position[node] = index
            for value in _tensors(node.meta.get("val")):
                key = value.untyped_storage()._cdata
                self.key[node] = key
                self.first.setdefault(key, node)
                self._coming[key].append(node)

    def add(self, node: Node, key: int) -> None:
        """``node``, made for a write, is in the memory called ``key``."""
        self.key[node] = key
        self._live[key].append(node)

    def read_after(self, node: Node, write: Node) -> bool:
        """True when somebody reads ``node`` after ``write``."""
        here = self.position[write]
        return any(self.position[user] > here for user in node.users)

    def live(self, key: int, write: Node) -> list[Node]:
        """Nodes in a memory, made before ``write`` and read after. Writes are asked for in order: linear in all."""
        coming, here = self._coming[key], self.position[write]
        arrived = []
        while coming and self.position[coming[0]] < here:
            arrived.append(coming.popleft())
        self._live[key] = [node for node in (*self._live[key], *arrived) if self.read_after(node, write)]
        return self._live[key]


def without_writes(graph: Graph, run: Callable[..., Any], gradients: bool = False) -> int:
    """Replace what can be replaced in ``graph``, in order; returns how many writes are gone.

    ``run(target, args, kwargs)`` gives the fake result of an operation. With ``gradients`` on at its start, writes in
    the graph's no_grad regions stay: they leave the gradient history of a value alone, a new value would not.
    """
    writes = (
        [node for node in _with_history(graph) if mutates(node)] if gradients else list(filter(mutates, graph.nodes))
    )
    if not writes:
        return 0
    views = {node for node in writes if _only_seen_anew(node)}
    for node in views:
        node.target = _overload(node)
    memory = _Memory(graph)
    return len(views) + sum(_replaced(node, graph, memory, run) for node in writes if node not in views)


def _only_seen_anew(write: Node) -> bool:
    """Whether ``write`` changes no element, only the shape of the graph's own tensor that nobody asks for again."""
    (target,) = written(write)[:1] or (write,)
    if torch.Tag.inplace_view not in write.target.tags or target.op != "call_function":  # type: ignore[union-attr]
        return False
    return _overload(write) is not None and not any(user > write for user in target.users)


def _overload(write: Node) -> Any:
    """The operation that gives as a new value what ``write`` writes; None if there is none."""
    op: Any = write.target
    packet = getattr(aten, operation(write).removesuffix("_"), None)
    overload = getattr(packet, op._overloadname, None) if packet is not None else None
    return None if overload is None or overload._schema.is_mutable else overload


def _with_history(graph: Graph) -> Iterator[Node]:
    """The nodes outside no_grad regions, of a graph that begins outside one."""
    enabled: object = True
    for node in graph.nodes:
        if getattr(node.target, "__name__", "") == "_set_grad_enabled":
            (enabled,) = node.args
        elif enabled:
            yield node


def _replaced(write: Node, graph: Graph, memory: _Memory, run: Callable[..., Any]) -> bool:
    function = _functional(write)
    targets = written(write)
    if function is None or len(targets) != 1 or tensor(targets[0]) is None or targets[0] not in memory.key:
        return False
    (target,) = targets
    key = memory.key[target]
    chain = _chain(target, memory) if _fresh(memory.first[key]) else None
    if chain is None:
        return False
    whole = chain[-1]
    live = memory.live(key, write)
    same = {node for node in live if _same_view(node, whole)} | {whole}
    views = {node: _chain(node, memory, same) for node in live if node not in same}
    if len(views) > _VIEWS or None in views.values():
        return False
    made: list[Node] = []

    def call(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Node:
        with graph.inserting_before(write):
            node = graph.call_function(op, args, kwargs or {})
        for name in _INHERITED:
            if name in write.meta:
                node.meta[name] = write.meta[name]
        node.meta["val"] = run(op, *_values((args, kwargs or {})))
        made.append(node)
        memory.position[node] = memory.position[write] - 1 / (len(made) + 1)
        return node

    try:
        value = function(call, write, target)
        kept = _shape(value) == _shape(target)
        for view, base in zip(chain, chain[1:], strict=False):
            value = _scattered(call, view, base, value)
        value = value if _alike(value, whole) else _restrided(call, value, whole)
        kept = kept and _alike(value, whole)
    except (RuntimeError, TypeError):
        kept = False
    if not kept:
        for node in reversed(made):
            graph.erase_node(node)
        return False
    memory.add(value, key)
    here = memory.position[write]

    def later(user: Node) -> bool:
        return user is not write and memory.position[user] > here

    for node in same:
        node.replace_all_uses_with(value, later)
    if write.users and target not in same and target not in views:
        views[target] = chain
    part = value
    for node, path in views.items():
        # What was seen before, seen anew: it may have changed, and another write to it must reach the whole again.
        seen = value
        for view in reversed((path or [])[:-1]):
            seen = call(view.target, (seen, *view.args[1:]), dict(view.kwargs))
            memory.add(seen, key)
        node.replace_all_uses_with(seen, later)
        part = seen if node is target else part
    write.replace_all_uses_with(part)
    graph.erase_node(write)
    return True


def _functional(write: Node) -> Callable[[Callable[..., Node], Node, Node], Node] | None:
    """What computes the new value of the written argument, as a function of (call, write, target)."""
    op: Any = write.target
    name = operation(write)
    random = torch.Tag.nondeterministic_seeded in op.tags and not (
        name == "dropout_" and argument(write, "train") is False
    )
    if random or torch.Tag.inplace_view in op.tags or not name.endswith("_"):
        return None
    if name == "copy_":
        return _copied
    if name == "zero_":
        return lambda call, write, target: call(aten.zeros_like.default, (target,))
    overload = _overload(write)
    if overload is None:
        return None

    def applied(call: Callable[..., Node], write: Node, target: Node) -> Node:
        return _cast(call, call(overload, write.args, dict(write.kwargs)), target)

    return applied


def _copied(call: Callable[..., Node], write: Node, target: Node) -> Node:
    source: Any = argument(write, "src")
    value = _cast(call, source, target)
    if _shape(value) != _shape(target):
        value = call(aten.expand.default, (value, _shape(target)))
    # A value of its own: what was copied from may be written later.
    return call(aten.clone.default, (value,))


def _cast(call: Callable[..., Node], value: Node, target: Node) -> Node:
    wanted = target.meta["val"].dtype
    return value if value.meta["val"].dtype == wanted else call(aten.to.dtype, (value, wanted))


def _chain(node: Node, memory: _Memory, ends: Collection[Node] = ()) -> list[Node] | None:
    """``node``, what it is a view of, and so on to one of ``ends`` or else the whole memory; None if that is far."""
    chain, key = [node], memory.key[node]
    while chain[-1] not in ends:
        value = chain[-1].meta["val"]
        source = aliased(chain[-1])
        known = source is not None and memory.key.get(source) == key and operation(chain[-1]) in _VIEWED
        if not known or len(chain) > _VIEWS:
            whole = value.numel() == value.untyped_storage().nbytes() // max(value.element_size(), 1)
            return chain if whole and not ends else None
        chain.append(source)  # type: ignore[arg-type]
    return chain


def _scattered(call: Callable[..., Node], view: Node, base: Node, value: Node) -> Node:
    """``base`` with ``value`` where ``view`` was."""
    name = operation(view)
    if name == "select":
        return call(aten.select_scatter.default, (base, value, view.args[1], view.args[2]))
    if name == "slice":
        return call(aten.slice_scatter.default, (base, value, *(argument(view, name) for name in _RANGE)))
    if name == "transpose":
        return call(aten.transpose.int, (value, view.args[1], view.args[2]))
    if name == "t":
        return call(aten.t.default, (value,))
    if name == "permute":
        order: Any = view.args[1]
        rank = len(order)
        return call(aten.permute.default, (value, sorted(range(rank), key=lambda axis: order[axis] % rank)))
    if name == "expand":
        raise NotImplementedError("one element seen in several places")
    return call(aten.reshape.default, (value, _shape(base)))


def _restrided(call: Callable[..., Node], value: Node, like: Node) -> Node:
    """``value`` laid out in memory as ``like``, whose elements lie side by side in some order of its axes."""
    strides = like.meta["val"].stride()
    if not all(isinstance(step, int) for step in strides):
        raise NotImplementedError("strides that are not known")
    order = sorted(range(len(strides)), key=lambda axis: -strides[axis])
    back = sorted(range(len(order)), key=order.__getitem__)
    dense = call(aten.clone.default, (call(aten.permute.default, (value, order)),), {"memory_format": _DENSE})
    return call(aten.permute.default, (dense, back))


def _fresh(node: Node) -> bool:
    """True for memory that an operation of the graph allocated for its result."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or schema.is_mutable:
        return False
    source = aliased(node)
    return source is None or source.op == "call_function"


def _same_view(node: Node, other: Node) -> bool:
    one, two = tensor(node), tensor(other)
    if one is None or two is None or one.shape != two.shape or one.stride() != two.stride():
        return False
    return one.storage_offset() == two.storage_offset() and one.dtype == two.dtype


def _alike(node: Node, other: Node) -> bool:
    one, two = node.meta["val"], other.meta["val"]
    return one.shape == two.shape and one.stride() == two.stride() and one.dtype == two.dtype


def _shape(node: Node) -> list[Any]:
    return list(node.meta["val"].shape)


def _values(item: Any) -> Any:
    return torch.fx.node.map_arg(item, lambda node: node.meta["val"])


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        return (value,)
    return [item for item in value if isinstance(item, Tensor)] if isinstance(value, list | tuple) else ()
