"""Long skips: a value kept from early on and joined with what became of it much later, nested from the outside in.

A skip is long when whole layers with residual sums of their own lie between its ends, or other skips do. Residual sums
around one layer are no skips: they are part of a block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sympy
from torch.fx import Node

from .describe import description, same, size_hint
from .graph import NormalGraph
from .nodes import CASTS, COPIES, MOVEMENTS, argument, dimension, operation, readers, tensor
from .sites import Attention, Convolution, Linear, Site, Sites, Skip

_PASSED = MOVEMENTS | CASTS | COPIES
_VIEWS = 6
"""Views and casts between a skip's value and the sum or concatenation that takes it, at most."""


@dataclass(frozen=True, eq=False)
class _Span:
    """``join`` adds or concatenates ``kept`` (its operand ``operand``, a view of ``source``) with what it became."""

    source: Node
    kept: Node
    join: Node
    operand: int
    start: int
    end: int


def find_skips(graph: NormalGraph, sites: Sites) -> list[Site]:
    """The long skips of a graph, outermost first within each nest. Linear time; no guard on a symbolic size.

    U-Net (Ronneberger et al. 2015) and U-ViT (Bao et al. 2022) skips, concatenated or added: one value has one reader
    far away, and the other operand there is computed from it through at least one layer.
    """
    order = list(graph.module.graph.nodes)
    position = {node: index for index, node in enumerate(order)}
    layers = {site.output for site in sites.of(Attention, Linear, Convolution)}
    spans = _spans(order, position, layers)
    chosen = _long(spans)
    found: list[Site] = []
    nest: list[_Span] = []
    for span in sorted(chosen, key=lambda item: (item.start, -item.end)):
        while nest and nest[-1].end < span.end:
            nest.pop()
        value = span.join.meta["val"]
        name = operation(span.join)
        axis = dimension(argument(span.join, "dim"), value.dim()) if name == "cat" else None
        inputs = tuple(dict.fromkeys(span.join.all_input_nodes))
        elements = size_hint(value.numel())
        found.append(
            Skip(
                id=f"skip.{len(found)}",
                form=name,
                producer=span.source,
                consumer=span.join,
                operand=span.operand,
                axis=axis,
                index=len(nest),
                flops=sympy.Integer(elements if axis is None else 0),
                bytes=sympy.Integer(2 * elements * value.element_size()),
                **description(span.join, frozenset({span.join}), inputs, (span.join,)),
            )
        )
        nest.append(span)
    return found


def _spans(order: list[Node], position: dict[Node, int], layers: set[Node]) -> list[_Span]:
    """Every sum or concatenation of a value with what became of it through a layer."""
    taken: dict[tuple[Node, bool], list[_Span]] = {}
    for node in order:
        if operation(node) not in ("add", "add_", "cat"):
            continue
        operands: list[Any] = list(argument(node, "tensors")) if operation(node) == "cat" else list(node.args[:2])
        if len(operands) != 2 or any(tensor(item) is None for item in operands):
            continue
        if operation(node) != "cat" and not all(map(same, *(item.meta["val"].shape for item in operands))):
            continue
        sources = [_source(item) for item in operands]
        older = 0 if position[sources[0]] < position[sources[1]] else 1
        source = sources[older]
        if sources[0] is not sources[1] and source.op == "call_function" and len(readers(source)) > 1:
            span = _Span(source, operands[older], node, older, position[source], position[node])
            taken.setdefault((source, operation(node) == "cat"), []).append(span)
    # A value joined in many places is an input of each (a conditioning vector, features collected on the way), not kept
    # for one of them. Two sums are a residual one and a skip.
    alone = [span for (_, joined), spans in taken.items() if len(spans) <= 2 - joined for span in spans]
    steps = 64 * len(order)
    found = []
    for span in sorted(alone, key=lambda item: item.end - item.start):
        steps -= span.end - span.start
        if steps < 0:
            break
        if _becomes(span, order, layers):
            found.append(span)
    return found


def _source(node: Node) -> Node:
    for _ in range(_VIEWS):
        if operation(node) not in _PASSED or not isinstance(node.args[0], Node) or len(readers(node)) > 1:
            break
        node = node.args[0]
    return node


def _becomes(span: _Span, order: list[Node], layers: set[Node]) -> bool:
    """True when the other operand is computed from the kept value through a layer."""
    reached: dict[Node, bool] = {span.source: False}
    for node in order[span.start + 1 : span.end]:
        if node.op != "call_function" or node is span.kept:
            continue
        states = [reached[read] for read in node.all_input_nodes if read in reached]
        if states:
            reached[node] = any(states) or node in layers
    others = [read for read in span.join.all_input_nodes if read is not span.kept]
    return any(reached.get(read, False) for read in others)


def _long(spans: Iterable[_Span]) -> list[_Span]:
    """Those that hold another span and are concatenated, and nests of at least two that do.

    Spans that begin at one value (a block in a block) or cross others count for nothing.
    """
    ordered = sorted(spans, key=lambda item: (item.end, -item.start))
    holds: dict[_Span, int] = {}
    open_: list[_Span] = []
    for span in ordered:
        depth = 0
        while open_ and open_[-1].start >= span.start:
            inner = open_.pop()
            depth = max(depth, holds[inner] + 1)
        holds[span] = depth
        open_.append(span)
    joined = [span for span in ordered if operation(span.join) == "cat"]
    within, _ = _nested(joined)
    concatenated = [span for span in joined if holds[span] >= 1 or span in within]
    within, around = _nested([span for span in ordered if operation(span.join) != "cat" and holds[span] >= 1])
    return [*concatenated, *sorted(within | around, key=lambda span: span.end)]


def _nested(spans: Iterable[_Span]) -> tuple[set[_Span], set[_Span]]:
    """Those that lie within another one, and those that hold one."""
    within: set[_Span] = set()
    around: set[_Span] = set()
    nest: list[_Span] = []
    for span in sorted(spans, key=lambda item: (item.start, -item.end)):
        while nest and nest[-1].end < span.end:
            nest.pop()
        if nest and nest[-1].start < span.start:
            within.add(span)
            around.add(nest[-1])
        nest.append(span)
    return within, around
