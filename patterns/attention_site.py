"""From the parts of an attention to its site: one axis order for all operands, simplified biases, costs and checks."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import sympy
from torch.fx import Node

from .axes import Atom, Layout, leaves, resolved
from .describe import description, element_bytes, named_dimensions, same
from .effects import Effects
from .evaluate import before
from .masks import simplify
from .mixtures import Mixture
from .nodes import tensor
from .operands import Candidate, Letters, broadcasts, climb, deepest, letterings, matching
from .product import Refused
from .sites import Attention, Bias, Operand, Order

Axes = TypeVar("Axes", bound=Order)


@dataclass(eq=False)
class Parts:
    """An attention as the walker read it: candidates for every operand, in atoms, not yet in one axis order."""

    anchor: Node
    form: str
    batch: tuple[Atom, ...]
    rows: Atom
    columns: Atom
    inner: Atom
    channels: Atom
    query: list[Candidate]
    key: list[Candidate]
    value: list[Candidate]
    output: list[Candidate]
    scale: float
    biases: list[tuple[Bias, Layout]]
    layouts: dict[Node, Layout]
    dropout: float
    hidden_rows: str
    factor: tuple[Node, Layout] | None = None
    soft_cap: float | None = None
    sinks: tuple[Node, Layout] | None = None
    finer: dict[Atom, tuple[Atom, ...]] = field(default_factory=dict)
    names: dict[Atom, str] = field(default_factory=dict)
    mixture: tuple[Mixture, Layout] | None = None
    above: frozenset[Node] = frozenset()
    """From the product with the keys to the argument of the softmax: what another attention may read too."""

    @property
    def broadcast(self) -> list[tuple[Node, Layout]]:
        """What else the scores or weights meet besides biases."""
        mixed = []
        if self.mixture is not None:
            found, layout = self.mixture
            mixed = [(node, layout) for node in (found.share, found.added) if node is not None]
        return [*(item for item in (self.factor, self.sinks) if item is not None), *mixed]


@dataclass(frozen=True, eq=False)
class Arrangement:
    letters: Letters
    operands: tuple[tuple[Candidate, Order], ...]
    output: Candidate
    output_order: tuple[int, ...]
    biases: tuple[Bias, ...]
    prepared: dict[Node, Layout]


def build(name: str, parts: Parts, effects: Effects) -> Attention:
    """The site, or Refused."""
    arrangement = arrange(parts, effects)
    query, key, value = arrangement.operands
    output = arrangement.output.node
    operands = tuple(candidate.node for candidate, _ in arrangement.operands)
    masks = tuple(bias.value for bias in arrangement.biases if bias.value is not None)
    masks += tuple(node for node, _ in parts.broadcast)
    inputs, interior = bounds(operands, masks, output, effects, shared=parts.above)
    outside = [node for node in (*masks, *before([output], inputs)) if node not in interior]
    axes, names, sizes = name_axes(parts, arrangement, interior, outside)
    dimensions, examples = named_dimensions(**sizes)
    flops, moved = _costs(dimensions, names, arrangement, output)
    return Attention(
        id=name,
        form=parts.form,
        query=operand(*query),
        key=operand(*key),
        value=operand(*value),
        scale=parts.scale * query[0].factor * key[0].factor,
        biases=arrangement.biases,
        groups=arrangement.letters.groups,
        dropout=parts.dropout,
        hidden_rows=parts.hidden_rows,
        factor=parts.factor[0] if parts.factor else None,
        soft_cap=parts.soft_cap,
        sinks=parts.sinks[0] if parts.sinks else None,
        share=parts.mixture[0].share if parts.mixture else None,
        added=parts.mixture[0].added if parts.mixture else None,
        output_permutation=or_none(inverse(arrangement.output_order)),
        flops=flops,
        bytes=moved,
        dimensions=examples,
        axes=axes,
        **description(parts.anchor, interior, inputs, (output,)),
    )


def bounds(
    operands: Sequence[Node], masks: Sequence[Node], output: Node, effects: Effects, *, shared: Collection[Node] = ()
) -> tuple[tuple[Node, ...], frozenset[Node]]:
    """What a site reads, once each, and its interior. Refused when the two overlap or something else sees inside.

    Who reads ``shared`` values of the interior is not looked at.
    """
    inputs = tuple(dict.fromkeys((*operands, *masks)))
    if output in inputs:
        raise Refused("unsupported-shape", "the output is an operand", output)
    interior = between_operands(operands, inputs, output)
    wrong = effects.mutation(inputs, interior) or effects.escape(interior, (output, *shared))
    if wrong is not None:
        refused = Refused(wrong.code, wrong.text)
        refused.reason = wrong
        raise refused
    return inputs, interior


def operand(candidate: Candidate, order: Order) -> Operand:
    return Operand(candidate.node, or_none(order))


def or_none(order: Axes) -> Axes | None:
    return None if order == tuple(range(len(order))) else order


def inverse(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def arrange(parts: Parts, effects: Effects) -> Arrangement:
    """The first lettering under which every operand is a permutation and every bias broadcasts. Raises Refused."""
    simplified = [(bias, layout) for raw, layout in parts.biases for bias in simplify(raw, effects)]
    blocked: Node | None = None
    for letters in letterings(parts.batch, parts.key):
        chosen = _operands(parts, letters)
        if chosen is None:
            continue
        scores = (*letters.batch, (parts.rows,), (parts.columns,))
        biases: list[Bias] = []
        prepared: dict[Node, Layout] = {}
        for bias, layout in simplified:
            value = bias.value
            if value is not None and not broadcasts(value, layout, scores):
                moved, cut = _before_moves(value, layout, scores), _cut(layout, scores, parts.finer)
                if moved:
                    bias = replace(bias, value=moved[-1].node)
                    prepared |= {candidate.node: candidate.layout for candidate in moved}
                elif cut is not None:
                    prepared[value] = _own_axes(value, layout)
                    bias = replace(bias, cut=cut)
                else:
                    blocked = value
                    break
            if bias.window is not None and resolved(layout)[-2:] != tuple(scores[-2:]):
                bias = replace(bias, window=None, structure="unknown")
            if bias.kind == "causal" and resolved(layout)[-2:] != (leaves([parts.rows]), leaves([parts.columns])):
                blocked = parts.anchor
                break
            biases.append(bias)
        else:
            apart = next((node for node, layout in parts.broadcast if not broadcasts(node, layout, scores)), None)
            if apart is not None:
                blocked = apart
                continue
            operands, output, order = chosen
            return Arrangement(letters, operands, output, order, tuple(biases), prepared)
    if blocked is not None:
        raise Refused("unsupported-mask", "a bias does not broadcast against [batch, query, key]", blocked)
    raise Refused("unsupported-shape", "the operands have no common axis order", parts.anchor)


def _before_moves(value: Node, layout: Layout, wanted: Sequence[tuple[Atom, ...]]) -> list[Candidate]:
    """The way from ``value`` back to the farthest tensor it was moved from that broadcasts against axes ``wanted``."""
    shape = value.meta["val"].shape
    sizes = [math.prod(atom.size for atom in axis) for axis in resolved(layout)]
    if len(shape) != len(layout) or not all(map(same, shape, sizes)):
        return []
    moved = climb(value, layout, scaled=False)
    while moved and (moved[-1].cast or not broadcasts(moved[-1].node, moved[-1].layout, wanted)):
        moved.pop()
    return moved


def _cut(
    layout: Layout, wanted: Sequence[tuple[Atom, ...]], finer: Mapping[Atom, tuple[Atom, ...]]
) -> tuple[int, ...] | None:
    """How many axes of ``layout`` each axis of ``wanted`` is made of; None when it is not made of whole ones.

    ``finer`` are the parts that the query and key axes are cut into.
    """
    axes = resolved(layout)
    present = set(leaves(atom for axis in axes for atom in axis))
    counts, place = [], 0
    for axis in wanted:
        cut = not set(axis) & present
        parts = leaves(part for atom in axis for part in (finer.get(atom, (atom,)) if cut else (atom,)))
        start, found = place, tuple[Atom, ...]()
        while found != parts:
            if place == len(axes) or len(found) > len(parts):
                return None
            found, place = (*found, *axes[place]), place + 1
        counts.append(place - start)
    return tuple(counts) if place == len(axes) and 0 not in counts else None


def _own_axes(value: Node, layout: Layout) -> Layout:
    """The layout of a value that broadcasts against ``layout``."""
    shape = value.meta["val"].shape
    return tuple(() if same(s, 1) else axis for s, axis in zip(shape, layout[len(layout) - len(shape) :], strict=True))


def _operands(
    parts: Parts, letters: Letters
) -> tuple[tuple[tuple[Candidate, Order], ...], Candidate, tuple[int, ...]] | None:
    rows, columns, inner, channels = ((atom,) for atom in (parts.rows, parts.columns, parts.inner, parts.channels))
    wanted = (
        (parts.query, (*letters.batch, rows, inner)),
        (parts.key, (*letters.key_batch, columns, inner)),
        (parts.value, (*letters.key_batch, columns, channels)),
    )
    outputs = []
    for candidate in parts.output:
        order = matching(candidate.layout, (*letters.batch, rows, channels))
        if order is not None:
            outputs.append((candidate, tuple(axis for axis in order if axis is not None)))
    # The narrowest element type that operands and output agree on: widening inside is rounding, not meaning.
    outputs.sort(key=lambda item: item[0].dtype.itemsize)
    for candidate, order in outputs:
        found = [deepest(items, axes, candidate.dtype) for items, axes in wanted]
        if all(item is not None for item in found):
            return tuple(found), candidate, order  # type: ignore[arg-type]
    for candidate, order in outputs:
        if candidate.cast:
            continue
        found = [deepest(items, axes, None) for items, axes in wanted]
        if all(item is not None for item in found):
            return tuple(found), candidate, order  # type: ignore[arg-type]
    return None


def between_operands(operands: Sequence[Node], inputs: Sequence[Node], output: Node) -> frozenset[Node]:
    """What is computed from the operands on the way to ``output``; preparing a mask is not part of the site."""
    dependent = set(operands)
    interior = []
    for node in before([output], inputs):
        if any(read in dependent for read in node.all_input_nodes):
            dependent.add(node)
            interior.append(node)
    return frozenset(interior)


def name_axes(
    parts: Parts, arrangement: Arrangement, interior: frozenset[Node], masks: Sequence[Node]
) -> tuple[dict[Node, tuple[tuple[str, ...], ...]], list[str], dict[str, int]]:
    """Axis names of inputs and interior values, the names of the batch axes, and the size of every name."""
    letters = arrangement.letters
    count = len(letters.batch)
    names = ["B"] if count == 1 else ["B", *(f"N{index}" for index in range(1, count - 1)), "H"][:count]
    label: dict[Atom, str] = {parts.rows: "S", parts.columns: "T", parts.inner: "D", parts.channels: "E"}
    sizes: dict[str, int] = {name: 1 for name in names}
    for name, axis in zip(names, letters.batch, strict=True):
        for index, atom in enumerate(axis):
            label[atom] = name if len(axis) == 1 else f"{name}{index}"
            sizes[name] *= atom.hint
            sizes[label[atom]] = atom.hint if len(axis) > 1 else sizes[name]
    sizes |= {label[atom]: atom.hint for atom in (parts.rows, parts.columns, parts.inner, parts.channels)}
    label |= parts.names
    sizes |= {name: atom.hint for atom, name in parts.names.items()}
    for atom, pieces in parts.finer.items():
        label |= {piece: f"{label[atom]}{index}" for index, piece in enumerate(leaves(pieces))}
        sizes |= {label[piece]: piece.hint for piece in leaves(pieces)}
    layouts = parts.layouts | arrangement.prepared
    for candidate in (*parts.query, *parts.key, *parts.value, *parts.output):
        layouts[candidate.node] = candidate.layout
    operands = {candidate.node for candidate, _ in arrangement.operands} | arrangement.prepared.keys()
    axes = {
        node: tuple(tuple(label[atom] for atom in axis) for axis in resolved(layout))
        for node, layout in layouts.items()
        if (node in interior or node in operands or not node.all_input_nodes)
        and node.meta["val"].dim() == len(layout)
        and all(atom in label for axis in resolved(layout) for atom in axis)
    }
    scores = [*(tuple(label[atom] for atom in axis) for axis in letters.batch), ("S",), ("T",)]
    for node in masks:
        made = tensor(node)
        if made is not None and node not in axes and made.dim() <= len(scores):
            aligned = scores[len(scores) - made.dim() :]
            axes[node] = tuple(() if same(size, 1) else axis for size, axis in zip(made.shape, aligned, strict=True))
    return axes, names, sizes


def _costs(
    dimensions: dict[str, sympy.Symbol], names: Sequence[str], arrangement: Arrangement, output: Node
) -> tuple[sympy.Expr, sympy.Expr]:
    """Floating-point operations of the two products, and bytes of the operands and the output."""
    batch = sympy.Mul(*(dimensions[name] for name in names))
    rows, columns, inner, channels = (dimensions[name] for name in "STDE")
    size = element_bytes(output)
    shared = batch / arrangement.letters.groups
    flops = 2 * batch * rows * columns * (inner + channels)
    moved = size * (batch * rows * (inner + channels) + shared * columns * (inner + channels))
    return flops, moved
