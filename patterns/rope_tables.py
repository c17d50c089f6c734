"""Where the tables of a rotation come from: a cosine and a sine, or from outside."""

from __future__ import annotations

import operator

from torch.fx import Node

from .nodes import CASTS, COPIES, MOVEMENTS, operation, scalar
from .reasons import Reason
from .sites import Rope

_LOOKED_UP = frozenset({"index", "index_select", "gather", "embedding", "take_along_dim"})
_CUT = frozenset({"slice", "narrow", "select", "split", "split_with_sizes", "chunk", "unsafe_chunk", "unbind"})
_JOINED = frozenset({"cat", "stack", "slice_scatter", "select_scatter", "copy", "where", "complex"})
_COPIED = frozenset({"expand", "repeat", "repeat_interleave", "detach", "lift_fresh_copy", "neg"})
_MOVED = (
    MOVEMENTS
    | CASTS
    | COPIES
    | _LOOKED_UP
    | _CUT
    | _JOINED
    | _COPIED
    | {"view_as_complex", "view_as_real", "real", "imag"}
)
_ANGLES = frozenset({"cos", "sin", "polar", "exp"})
_LONGEST = 96


def _origins(table: Node) -> set[str]:
    """``cos``, ``sin``, ``polar`` and ``exp`` where the numbers of ``table`` were computed; ``given``; or ``other``."""
    found: set[str] = set()
    pending, seen = [table], {table}
    while pending and len(seen) < _LONGEST:
        node = pending.pop()
        name = "getitem" if node.target is operator.getitem else operation(node)
        if name in _ANGLES:
            found.add(name)
        elif name == "mul" and any(scalar(item) is not None or _one(item) for item in node.args[:2]):
            reads = [item for item in node.args[:2] if isinstance(item, Node) and not _one(item)]
            pending += [item for item in reads if item not in seen]
            seen.update(reads)
        elif name in _MOVED or name == "getitem":
            # What says where to look is no part of what is found there.
            reads = node.all_input_nodes[:1] if name in _LOOKED_UP else node.all_input_nodes
            pending += [item for item in reads if item not in seen]
            seen.update(reads)
        else:
            found.add("given" if node.op in ("placeholder", "get_attr") else "other")
    return found


def _one(item: object) -> bool:
    """A tensor of a single number."""
    value = item.meta.get("val") if isinstance(item, Node) else None
    return value is not None and hasattr(value, "numel") and value.dim() == 0


def refused_table(site: Rope) -> Reason | None:
    """Why the tables of a rotation are no cosine and sine of an angle; None when they are, or come from outside."""
    tables = [(site.cos, "cos")] if site.sin is None else [(site.cos, "cos"), (site.sin, "sin")]
    for table, wanted in tables:
        origins = _origins(table)
        if site.sin is None:
            right = bool(origins & _ANGLES) or origins == {"given"}
        elif origins & {"cos", "sin"}:
            right = wanted in origins
        else:
            right = origins == {"given"} or bool(origins & {"polar", "exp"})
        if not right:
            return Reason("unsupported-op", f"{table.name} is no {wanted}ine of an angle", (table.name,))
    return None
