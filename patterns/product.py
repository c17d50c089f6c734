"""The one product that scores come from, with an atom for each of its letters; and the refusal of anything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from .axes import Atom, Contraction, Layout, contraction
from .describe import same
from .reasons import Reason


class Refused(Exception):
    """A candidate that turned out not to be the pattern; carries the reason."""

    def __init__(self, code: str, text: str, *nodes: Node) -> None:
        super().__init__(text)
        self.reason = Reason(code, text, tuple(node.name for node in nodes))


@dataclass(eq=False)
class Product:
    """A contraction with atoms for its letters. ``rows`` and ``columns`` are the left and right operands' own axes."""

    node: Node
    spec: Contraction
    batch: tuple[Atom, ...]
    rows: Atom
    columns: Atom
    left: Layout
    right: Layout
    out: Layout


def product(node: Node) -> Product:
    """The product at ``node`` with fresh atoms; Refused when it is not batch x rows x columns over one letter."""
    spec = contraction(node)
    if spec is None:
        raise Refused("unsupported-op", f"{node.target} is not a product of two tensors", node)
    left, right, out = set(spec.left_letters), set(spec.right_letters), set(spec.out_letters)
    rows, columns, inner = left - right, right - left, (left & right) - out
    if len(inner) != 1 or not rows or not columns or not (rows | columns) <= out or min(len(rows), len(columns)) > 1:
        raise Refused("unsupported-shape", "scores need one query, one key and one summed axis", node)
    # Where one side has several axes of its own, the others share what is on the other side, as query heads do keys.
    rows, columns = ({max(axes, key=spec.out_letters.index)} for axes in (rows, columns))
    sizes: dict[str, object] = dict(zip(spec.out_letters, node.meta["val"].shape, strict=True))
    (summed,) = inner
    sizes[summed] = spec.left.meta["val"].shape[spec.left_letters.index(summed)]
    free = rows | columns | inner
    atoms = {letter: Atom(size, rigid=letter in free) for letter, size in sizes.items()}
    if any(atom.size == 0 for atom in atoms.values()):
        raise Refused("unsupported-shape", "an axis has no elements", node)
    return Product(
        node,
        spec,
        tuple(atoms[letter] for letter in spec.out_letters if letter not in free),
        atoms[rows.pop()],
        atoms[columns.pop()],
        _operand_layout(spec.left, spec.left_letters, atoms),
        _operand_layout(spec.right, spec.right_letters, atoms),
        tuple((atoms[letter],) for letter in spec.out_letters),
    )


def _operand_layout(node: Node, letters: Sequence[str], atoms: dict[str, Atom]) -> Layout:
    shape = node.meta["val"].shape
    return tuple(
        (atoms[letter],) if same(size, atoms[letter].size) else () for letter, size in zip(letters, shape, strict=True)
    )
