"""Which axes hold queries and keys between the scores of an attention and its weights, whatever is done to them there.

Only names are followed: that an operation keeps queries apart is not known from them, and must be proven.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from .axes import Atom, Contraction, Layout, contraction, downward, resolved
from .describe import same
from .nodes import argument, dimension, operation, tensor
from .product import Product

_REDUCED = frozenset({"sum", "mean", "amax", "amin"})
# The axis whose elements a layer mixes, counted from the front or from the end.
_MIXED = {"linear": -1, "conv1d": 1, "conv2d": 1}


class MappedAxes:
    """Layouts of ``nodes``, in graph order, that are computed from the product ``start`` of queries and keys.

    What is left of an axis of keys, or is joined to it, is an axis of keys; the same holds for queries.
    """

    def __init__(self, start: Product, rows: Atom, columns: Atom, nodes: Sequence[Node]) -> None:
        self._roles = {rows: "rows", columns: "keys"}
        self.known: dict[Node, Layout] = {start.node: start.out}
        for node in nodes:
            layout = self._layout(node)
            if layout is not None:
                self.known[node] = layout

    def role(self, axis: tuple[Atom, ...]) -> str:
        """``"rows"`` or ``"keys"`` for an axis of nothing else, ``""`` for others."""
        return self._roles.get(axis[0], "") if len(axis) == 1 else ""

    def _layout(self, node: Node) -> Layout | None:
        read = [item for item in node.all_input_nodes if item in self.known]
        if not read:
            return None
        source, made, name = self.known[read[0]], tensor(node), operation(node)
        if made is None:
            return source  # several results: each is cut or chosen from it
        if node.args[0] is read[0] and (moved := downward(node, source)) is not None:
            return moved
        spec = contraction(node)
        if spec is not None:
            return self._of_product(spec, node)
        if name in _REDUCED and argument(node, "keepdim") is not True:
            axes = argument(node, "dim")
            gone = {dimension(axis, len(source)) for axis in ([axes] if isinstance(axes, int) else axes or ())}
            return tuple(axis for index, axis in enumerate(source) if index not in gone)
        layouts = [resolved(self.known[item]) for item in read if len(self.known[item]) == made.dim()]
        mixed = _MIXED[name] % made.dim() if name in _MIXED else None
        return tuple(
            (Atom(size),) if index == mixed else self._axis(size, [layout[index] for layout in layouts])
            for index, size in enumerate(made.shape)
        )

    def _axis(self, size: object, axes: Sequence[tuple[Atom, ...]]) -> tuple[Atom, ...]:
        """An axis of this size, made of values that have ``axes`` there."""
        for axis in axes:
            if axis and same(_size(axis), size):
                return axis
        role = next(filter(None, map(self.role, axes)), "")
        if same(size, 1) and not role:
            return ()
        atom = Atom(size, rigid=True)
        if role:
            self._roles[atom] = role
        return (atom,)

    def _of_product(self, spec: Contraction, node: Node) -> Layout | None:
        """A product with something computed elsewhere, which may mix heads."""
        sides = [(spec.left, spec.left_letters), (spec.right, spec.right_letters)]
        inside = [(side, letters) for side, letters in sides if side in self.known]
        if len(inside) != 1 or node.meta["val"].dim() != len(spec.out_letters):
            return None
        ((side, letters),) = inside
        bound = dict(zip(letters, resolved(self.known[side]), strict=True))
        shape = node.meta["val"].shape
        return tuple(bound.get(letter) or (Atom(size),) for letter, size in zip(spec.out_letters, shape, strict=True))


def _size(axis: tuple[Atom, ...]) -> object:
    size = 1
    for atom in axis:
        size = size * atom.size
    return size
