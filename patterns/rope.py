"""Rotary position embedding: pairs of features turned by an angle, ``x cos + turned(x) sin``, in any spelling."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable

import sympy
from torch.fx import Node

from .describe import description, element_bytes, named_dimensions, same, shape_of
from .effects import Effects, effects_of
from .evaluate import concretely
from .graph import NormalGraph
from .linear import row_names
from .nodes import CASTS, COPIES, MOVEMENTS, RESHAPES, operation, readers, scalar, tensor
from .proof import TOLERANCE, observed, sizes_to_try
from .provenance import between
from .reasons import Reason
from .reference import reference
from .reference_rope import TURNS
from .rope_tables import refused_table
from .sites import Rope, Site, Sites

_ANCHORS = frozenset({"add", "sub", "cat", "stack", "slice_scatter", "select_scatter", "view_as_real"})
_CUTS = frozenset(
    {"slice", "narrow", "select", "split", "split_with_sizes", "chunk", "unsafe_chunk", "unbind", "getitem"}
)
_JOINS = frozenset({"cat", "stack", "slice_scatter", "select_scatter", "copy", "empty_like", "zeros_like", "new_empty"})
_MOVED = MOVEMENTS | CASTS | COPIES | _CUTS | _JOINS | {"neg", "expand", "flip", "roll", "view_as_complex"}
_SUMMED = RESHAPES | CASTS | COPIES | _JOINS | {"add", "sub", "neg", "view_as_real"}

# A rotation written with slices, signs, four products and writes into a new tensor has about thirty operations.
_LONGEST = 40


def find_rope(graph: NormalGraph, sites: Sites) -> list[Site]:
    """Every rotation of features by position, in graph order (Su et al. 2021, "RoFormer").

    From each sum or join upwards to two products with two tables, four products with two tables, or one product of
    complex numbers; what these read in common is the value that is turned. Which features form a pair, and which table
    is the cosine, is found by running the region. A table that is computed, but neither by a cosine nor a sine, is
    refused. Linear time; no guard on a symbolic size.
    """
    effects = effects_of(graph)
    found: dict[Node, Rope] = {}
    for node in graph.module.graph.nodes:
        if _name(node) not in _ANCHORS:
            continue
        made = _site(node, effects)
        if isinstance(made, Reason):
            sites.refusals.append(made)
        elif made is not None:
            for inner in [item for item in found if item in made.interior]:
                del found[inner]  # the turned part of what is turned in part
            found[made.output] = made
    return [dataclasses.replace(site, id=f"rope.{number}") for number, site in enumerate(found.values())]


def _name(node: Node) -> str:
    return "getitem" if node.target is operator.getitem else operation(node)


def _scaled(node: Node) -> bool:
    """A product with a number."""
    return _name(node) == "mul" and any(scalar(item) is not None for item in node.args[:2])


def _products(anchor: Node) -> tuple[list[Node], list[Node]] | None:
    """The products that ``anchor`` adds up and joins, and the cuts it joins with them; None when it reads more."""
    products, cuts = [], []
    pending, seen = [anchor], {anchor}
    while pending:
        node = pending.pop()
        name = _name(node)
        if name == "mul" and not _scaled(node):
            products.append(node)
        elif name in _CUTS and node is not anchor:
            cuts.append(node)
        elif (name in ("empty_like", "zeros_like", "new_empty")) or scalar(node) is not None:
            continue
        elif name in _SUMMED or _scaled(node):
            pending += [read for read in node.all_input_nodes if read not in seen]
            seen.update(node.all_input_nodes)
        else:
            return None
        if len(products) > 4 or len(seen) > _LONGEST:
            return None
    return (products, cuts) if len(products) in (1, 2, 4) else None


def _sources(node: Node) -> set[Node]:
    """``node`` and what its elements are moved from, nearest first, no further than a rotation reaches."""
    found, pending = {node}, [node]
    while pending and len(found) < _LONGEST:
        node = pending.pop(0)
        if _name(node) in _MOVED or _scaled(node):
            pending += [read for read in node.all_input_nodes if read not in found]
            found.update(node.all_input_nodes)
    return found


def _site(anchor: Node, effects: Effects) -> Rope | Reason | None:
    parts = _products(anchor)
    if parts is None:
        return None
    products, cuts = parts
    operands = [[item for item in node.args[:2] if isinstance(item, Node)] for node in products]
    if any(len(pair) != 2 for pair in operands):
        return None
    moved = [[_sources(item) for item in pair] for pair in operands]
    common = set.intersection(*(one | other for one, other in moved), *map(_sources, cuts))
    for x in sorted(common, reverse=True):
        output = _shaped(anchor, x)
        if output is None or any(x in one and x in other for one, other in moved):
            continue
        tables = list(dict.fromkeys(pair[x in one] for pair, (one, _) in zip(operands, moved, strict=True)))
        made = _turning(x, tables, output, effects) if len(tables) == (1 if len(products) == 1 else 2) else None
        if made is not None:
            return made  # else perhaps what x is a view of
    return None


def _shaped(anchor: Node, x: Node) -> Node | None:
    """``anchor``, or what it is viewed as, in the shape of ``x``."""
    wanted = tensor(x)
    for _ in range(3):
        made = tensor(anchor)
        if wanted is None or made is None or made.is_complex() or not made.dim():
            return None
        if made.dim() == wanted.dim() and all(map(same, made.shape, wanted.shape)):
            return anchor
        users = readers(anchor)
        if len(users) != 1 or operation(users[0]) not in RESHAPES:
            return None
        anchor = users[0]
    return None


def _turning(x: Node, tables: list[Node], output: Node, effects: Effects) -> Rope | Reason | None:
    """The site that turns ``x`` by ``tables``, None when it is no rotation, or why it is not accepted."""
    *rows, wide = shape_of(x)
    complex_table = len(tables) == 1
    table = tensor(tables[0])
    if not isinstance(wide, int) or table is None or table.is_complex() != complex_table or not table.dim():
        return None
    inputs = (x, *tables)
    interior = between(x, inputs, output)
    axes = _axes(x, tables)
    if not interior or axes is None:
        return None
    symbols, dimensions = named_dimensions(**dict(zip(row_names(len(rows)), rows, strict=True)), D=wide)
    dimensions["H"] = wide // 2
    elements = sympy.prod([symbols[name] for name in (*row_names(len(rows)), "D")])
    site = Rope(
        id="rope",
        input=x,
        cos=tables[0],
        sin=None if complex_table else tables[1],
        turn="half",
        features=(0, wide),
        form="complex" if complex_table else "",
        flops=3 * elements,
        bytes=2 * element_bytes(output) * elements,
        dimensions=dimensions,
        axes=axes,
        **description(output, interior, inputs, (output,)),
    )
    fitting = _fitting(site)
    if fitting is None:
        return None
    reason = refused_table(fitting) or effects.mutation(inputs, interior) or effects.escape(interior, (output,))
    return reason or fitting


def _axes(x: Node, tables: Iterable[Node]) -> dict[Node, tuple[tuple[str, ...], ...]] | None:
    """The named axes of the inputs: rows, ``D`` features, ``H`` pairs of them; None where a table does not fit."""
    *rows, wide = shape_of(x)
    names = (*row_names(len(rows)), "D")
    found: dict[Node, tuple[tuple[str, ...], ...]] = {x: tuple((name,) for name in names)}
    for table in tables:
        sizes = shape_of(table)
        if len(sizes) > len(names) or not isinstance(sizes[-1], int):
            return None
        axes: list[tuple[str, ...]] = []
        for name, size, whole in zip(names[::-1], sizes[::-1], (*rows, wide)[::-1], strict=False):
            axes.append(() if same(size, 1) else (name,) if same(size, whole) else ("?",))
        if axes[0] == ("?",):
            # A table of fewer features: pairs, or those of a part that is turned.
            axes[0] = ("H",) if same(2 * sizes[-1], wide) else ("W",)
        if ("?",) in axes:
            return None
        found[table] = tuple(axes[::-1])
    return found


def _fitting(site: Rope) -> Rope | None:
    """The pairs, features and order of tables with which ``site`` computes what its region does; None if none do."""
    orders: list[tuple[Node, Node | None]] = [(site.cos, site.sin)]
    orders += [(site.sin, site.cos)] if site.sin is not None else []
    widths = {shape_of(table)[-1] for table in orders[0] if table is not None} - {1}
    width, wide = max(widths, default=1), site.dimensions["D"]
    if any(names[-1] == ("W",) for names in site.axes.values()):
        site = dataclasses.replace(site, dimensions={**site.dimensions, "W": width})
    kept = [(start, start + size) for size in sorted({width, 2 * width, wide}) for start in (0, wide - size)]
    chosen = [features for features in dict.fromkeys(kept) if 0 <= features[0] < features[1] <= wide]
    trials = [
        dataclasses.replace(site, turn=turn, features=features, cos=cos, sin=sin, form=site.form or turn)
        for features in chosen
        for size in [features[1] - features[0]]
        if size % 2 == 0 and len(widths) <= 1 and width in (1, size, size // 2)
        for turn in TURNS
        for cos, sin in orders
    ]
    with concretely():
        for sizes in sizes_to_try(site):
            try:
                ((values, (made,)),) = observed(site, sizes)
            except Exception:
                continue  # at these sizes it does not run: others are tried
            for trial in trials:
                (wanted,) = reference(trial, values)
                if made.shape == wanted.shape and bool((made - wanted).abs().max() <= TOLERANCE * wanted.abs().max()):
                    return trial
            return None
    return None
