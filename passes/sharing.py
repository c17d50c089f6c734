"""Equal work of different rewrites done once: queries, keys and values quantise their common input a single time."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterable
from typing import Any

from torch.fx import Node


def share(nodes: Iterable[Node]) -> None:
    """Merge ``laconic::`` nodes (and picks of their results) with equal operands, given in graph order.

    Only values that no node outside ``nodes`` reads are merged, so nothing downstream can write into a shared one.
    """
    ours = list(nodes)
    inside = set(ours)
    first: dict[Hashable, Node] = {}
    for node in ours:
        if not _pure(node) or not all(user in inside for user in node.users):
            continue
        key = (node.target, _key(node.args), _key(node.kwargs))
        kept = first.setdefault(key, node)
        if kept is not node:
            node.replace_all_uses_with(kept)
            node.graph.erase_node(node)


def _pure(node: Node) -> bool:
    return node.op == "call_function" and (
        node.target is operator.getitem or getattr(node.target, "namespace", None) == "laconic"
    )


def _key(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple((name, _key(item)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    # 1, 1.0 and True are equal keys but different arguments.
    return (type(value), value)
