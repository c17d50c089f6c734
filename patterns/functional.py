"""Writes in place become new values where nobody can tell: part of making the normal form.

``x.add_(y)``, ``scores.masked_fill_(mask, low)`` or ``buffer[:, :k] = v`` on memory that the graph itself made say the
same as their functional forms, but a value that changes under its name hides the data flow every detector reads. A
write stays as it is when the memory is an input, a parameter or a constant, when a view taken before it is read after
it, and when its functional form would give other strides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .nodes import aliased, argument, mutates, operation, tensor, written

aten = torch.ops.aten

_INHERITED = ("nn_module_stack", "stack_trace", "custom", "from_node", "seq_nr")


class _Memory:
    """Which nodes share the memory of which, by the storages of their fake tensors."""

    def __init__(self, graph: Graph) -> None:
        self.position: dict[Node, float] = {}
        self.family: dict[int, list[Node]] = {}
        self.key: dict[Node, int] = {}
        for index, node in enumerate(graph.nodes):
            self.position[node] = index
            for value in _tensors(node.meta.get("val")):
                # Several results of one operation (chunks) share one storage, or have one each and nobody writes them.
                self.add(node, value.untyped_storage()._cdata)

    def add(self, node: Node, key: int) -> None:
        """``node`` is in the memory called ``key``."""
        self.key[node] = key
        self.family.setdefault(key, []).append(node)

    def read_after(self, node: Node, write: Node) -> bool:
        """True when ``node`` was made before ``write`` and somebody reads it after."""
        here = self.position[write]
        return self.position[node] < here and any(self.position[user] > here for user in node.users)


def without_writes(graph: Graph, run: Callable[..., Any]) -> int:
    """Replace what can be replaced in ``graph``, in order; returns how many writes are gone.

    ``run(target, args, kwargs)`` gives the fake result of an operation.
    """
    writes = [node for node in graph.nodes if mutates(node)]
    if not writes:
        return 0
    memory = _Memory(graph)
    return sum(_replaced(node, graph, memory, run) for node in writes)


def _replaced(write: Node, graph: Graph, memory: _Memory, run: Callable[..., Any]) -> bool:
    function = _functional(write)
    targets = written(write)
    if function is None or len(targets) != 1 or tensor(targets[0]) is None or targets[0] not in memory.key:
        return False
    (target,) = targets
    family = memory.family[memory.key[target]]
    made_here = min(family, key=lambda node: memory.position[node])
    chain = _chain(target, memory) if _fresh(made_here) else None
    if chain is None:
        return False
    whole = chain[-1]
    same = {node for node in family if _same_view(node, whole)}
    if any(memory.read_after(node, write) for node in family if node not in same and node not in (target, write)):
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
        kept = kept and _alike(value, whole)
    except (RuntimeError, NotImplementedError, TypeError):
        kept = False
    if not kept:
        for node in reversed(made):
            graph.erase_node(node)
        return False
    memory.add(value, memory.key[target])
    here = memory.position[write]

    def later(user: Node) -> bool:
        return user is not write and memory.position[user] > here

    for node in same:
        node.replace_all_uses_with(value, later)
    part = value
    if target is not whole and (write.users or memory.read_after(target, write)):
        # The part that was written, seen anew: another write to it must reach the whole again.
        for view in reversed(chain[:-1]):
            part = call(view.target, (part, *view.args[1:]), dict(view.kwargs))
            memory.add(part, memory.key[target])
        target.replace_all_uses_with(part, later)
    write.replace_all_uses_with(part)
    family.remove(write)
    for node in (write, *chain[:-1]):
        if not node.users:
            graph.erase_node(node)
            if node is not write:
                family.remove(node)
    return True


def _functional(write: Node) -> Callable[[Callable[..., Node], Node, Node], Node] | None:
    """What computes the new value of the written argument, as a function of (call, write, target)."""
    op: Any = write.target
    name = operation(write)
    if torch.Tag.nondeterministic_seeded in op.tags or torch.Tag.inplace_view in op.tags or not name.endswith("_"):
        return None
    if name == "copy_":
        return _copied
    if name == "zero_":
        return lambda call, write, target: call(aten.zeros_like.default, (target,))
    packet = getattr(aten, name[:-1], None)
    overload = getattr(packet, op._overloadname, None) if packet is not None else None
    if overload is None or overload._schema.is_mutable:
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


def _chain(target: Node, memory: _Memory) -> list[Node] | None:
    """``target``, what it is a slice of, and so on to a node that is the whole memory; None through other views."""
    chain = [target]
    while True:
        node = chain[-1]
        value = node.meta["val"]
        if value.numel() == value.untyped_storage().nbytes() // max(value.element_size(), 1):
            return chain
        if operation(node) not in ("slice", "select") or memory.key.get(node.args[0]) != memory.key[target]:  # type: ignore[arg-type]
            return None
        chain.append(node.args[0])  # type: ignore[arg-type]


def _scattered(call: Callable[..., Node], view: Node, base: Node, value: Node) -> Node:
    """``base`` with ``value`` where ``view`` was."""
    if operation(view) == "select":
        return call(aten.select_scatter.default, (base, value, view.args[1], view.args[2]))
    arguments = [argument(view, name) for name in ("dim", "start", "end", "step")]
    return call(aten.slice_scatter.default, (base, value, *arguments))


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
