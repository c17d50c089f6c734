"""Names for the axes of every value of a feed-forward layer, so that a large one can be proven at small sizes."""

from __future__ import annotations

from torch.fx import Node

from .axes import Atom, Layout, downward, leaves, resolved
from .describe import ordered, same, shape_of
from .halves import half_of, run_of
from .hidden import Candidate, Layer
from .linear import row_names
from .nodes import operation, tensor
from .sites import Convolution, Linear

FEATURES = frozenset({"K", "H", "F", "G", "J", "C", *(f"C{index}" for index in range(16))})
"""What is not a row: ``K`` features outside, ``H`` hidden, ``F`` all of a first layer that computes others beside,
``G`` two halves, ``C`` of what is joined, ``J`` of all that is joined together."""

_CUTS = frozenset({"slice", "narrow", "split", "split_with_sizes", "chunk", "unsafe_chunk", "tensor_split", ""})


def name_axes(
    candidate: Candidate, x: Node, interior: frozenset[Node]
) -> tuple[dict[Node, tuple[tuple[str, ...], ...]], dict[str, int]]:
    """The named axes of inputs and interior values, and the size of every name."""
    feature = 1 if isinstance(candidate.down, Convolution) else -1
    atoms = [Atom(size, rigid=True) for size in shape_of(x)]
    wide = atoms[feature]
    rows = [atom for atom in atoms if atom is not wide]
    for atom in rows:
        atom.rigid = False
    hidden, pair = Atom(shape_of(candidate.up.node)[feature], rigid=True), Atom(2)
    layouts: dict[Node, Layout] = {x: tuple((atom,) for atom in atoms)}
    joined = [part for part in candidate.hidden.joined if part is not None]
    beside = [Atom(shape_of(part)[feature], rigid=True) for part in joined]
    for part, atom in zip(joined, beside, strict=True):
        layouts[part] = _with(layouts[x], feature, (atom,)) if len(shape_of(part)) == len(atoms) else ()
    halves = {leaf.layer.id: leaf.half is not None for leaf in candidate.hidden.leaves}
    cut = candidate.up.run is not None
    whole = candidate.up.layer.output
    every = Atom(shape_of(whole)[feature], rigid=True)
    both = (hidden, pair) if any(leaf.interleaved for leaf in candidate.hidden.leaves) else (pair, hidden)
    read = Atom(shape_of(candidate.down.input)[feature], rigid=True) if beside else hidden
    made = {layer.id: (every,) if cut else both if halves[layer.id] else (hidden,) for layer in candidate.firsts}
    for layer in candidate.firsts:
        _weights(layer, made[layer.id], (wide,), layouts)
    _weights(candidate.down, (wide,), (read,), layouts)
    stored = {node for layer in (*candidate.firsts, candidate.down) for node in (layer.weight, layer.bias)}
    firsts = {node: made[layer.id] for layer in candidate.firsts for node in layer.interior}
    lasts = candidate.down.interior
    partial = candidate.hidden.channels is not None
    for node in ordered(interior):
        if partial and whole in layouts and node not in lasts:
            # Pieces of the channels have no name of their own, what has all of them is laid out like the layer.
            if tensor(node) is not None and len(shape_of(node)) == len(atoms) and _like(node, whole, feature):
                layouts[node] = layouts[whole]
            continue
        source = next((item for item in node.all_input_nodes if layouts.get(item) and item not in stored), None)
        if source is None:
            continue
        layout = layouts[source]
        if node in firsts:
            layouts[node] = _with(layout, feature, firsts[node])
        elif node in lasts:
            layouts[node] = _with(layout, feature, (wide,))
        elif cut and run_of(node, feature) is not None:
            width = shape_of(node)[feature]
            layouts[node] = _with(layout, feature, (hidden,) if width == hidden.hint else both)
        elif (half := half_of(node, feature)) is not None:
            layouts[node] = _with(layouts.get(half.whole, layout), feature, (hidden,))
        elif isinstance(node.meta.get("val"), list | tuple):
            layouts[node] = _with(layout, feature, (hidden,))
        elif operation(node) == "cat":
            layouts[node] = _with(layout, feature, (read,))
        else:
            moved = downward(node, layout) if node.args[0] is source else None
            if moved is not None or len(layout) == len(shape_of(node)):
                layouts[node] = moved or layout
    lead = leaves(rows)
    label = dict(zip(lead, row_names(len(lead)) if feature == -1 else ("N", "Y", "X", "Z"), strict=False))
    label |= {wide: "K", hidden: "H", pair: "G"}
    label |= {atom: f"C{index}" if len(beside) > 1 else "C" for index, atom in enumerate(beside)}
    if beside:
        label[read] = "J"
    if cut:
        label[every] = "F"
    named = {
        node: tuple(tuple(label[atom] for atom in part) for part in resolved(layout))
        for node, layout in layouts.items()
        if layout and all(atom in label for part in resolved(layout) for atom in part)
        # Cuts in features that keep their size are made where they are written.
        if not (cut and operation(node) in _CUTS and node in interior)
    }
    sizes = {name: atom.hint for atom, name in label.items()}
    if not any(halves.values()):
        del sizes["G"]
    return named, sizes


def _like(node: Node, other: Node, feature: int) -> bool:
    return same(shape_of(node)[feature], shape_of(other)[feature]) and same(shape_of(node)[0], shape_of(other)[0])


def _weights(layer: Layer, made: tuple[Atom, ...], read: tuple[Atom, ...], layouts: dict[Node, Layout]) -> None:
    pair: Layout = (made, read)
    if isinstance(layer, Linear):
        layouts[layer.weight] = pair[::-1] if layer.transposed else pair
    else:
        layouts[layer.weight] = (*pair, *(() for _ in shape_of(layer.weight)[2:]))
    if layer.bias is not None:
        layouts[layer.bias] = (made,)


def _with(layout: Layout, feature: int, atoms: tuple[Atom, ...]) -> Layout:
    """``layout`` with other features."""
    axes = list(layout)
    axes[feature] = atoms
    return tuple(axes)
