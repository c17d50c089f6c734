"""The algebra of pure data movement: which letter each axis of a value carries, through views, permutes and expansions.

A layout gives each axis of a tensor a tuple of atoms, major first. A reshape regroups the same sequence of atoms; if
it cuts through an atom, that atom is split, and every layout that mentions it sees the parts. Nothing here guards on
a symbolic size: two sizes are equal only if their expressions are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx import Node

from .describe import expression, same, size_hint
from .nodes import PERMUTES, RESHAPES, argument, cast_of, dimension, operation, tensor, unchanged


class Atom:
    """An indivisible piece of an axis. ``rigid`` atoms (query, key and channel axes) are never split.

    ``size`` is an int or a sympy expression, ``hint`` an example value of it.
    """

    __slots__ = ("hint", "parts", "rigid", "size")

    def __init__(self, size: Any, *, hint: int | None = None, rigid: bool = False) -> None:
        self.size = expression(size)
        self.hint = size_hint(size) if hint is None else hint
        self.rigid = rigid
        self.parts: tuple[Atom, ...] = ()

    def split(self, outer: Any, inner: Any, outer_hint: int) -> Atom:
        """Split off the major part and return it."""
        self.parts = (Atom(outer, hint=outer_hint), Atom(inner, hint=self.hint // max(1, outer_hint)))
        return self.parts[0]


Layout = tuple[tuple[Atom, ...], ...]


def leaves(atoms: Iterable[Atom]) -> tuple[Atom, ...]:
    """``atoms`` with every split atom replaced by its parts."""
    pending = list(atoms)[::-1]
    found = []
    while pending:
        atom = pending.pop()
        if atom.parts:
            pending.extend(reversed(atom.parts))
        else:
            found.append(atom)
    return tuple(found)


def resolved(layout: Layout) -> Layout:
    """``layout`` in terms of unsplit atoms."""
    return tuple(leaves(axis) for axis in layout)


def quotient(size: Any, divisor: Any) -> Any | None:
    """``size / divisor`` when that is whole for every input, else None."""
    if isinstance(size, int) and isinstance(divisor, int):
        whole, rest = divmod(size, divisor) if divisor else (0, 1)
        return None if rest else whole
    ratio = sympy.sympify(size) / sympy.sympify(divisor)
    if sympy.fraction(ratio)[1] != 1:
        return None
    return expression(ratio)


def regroup(atoms: Iterable[Atom], sizes: Sequence[Any]) -> Layout | None:
    """The layout of a row-major sequence of ``atoms`` viewed with ``sizes``; None where it would cut a rigid atom."""
    queue = list(leaves(atoms))[::-1]
    layout: list[tuple[Atom, ...]] = []
    for size in sizes:
        axis: list[Atom] = []
        needed, hint = expression(size), size_hint(size)
        if needed == 1 and queue:
            if queue[-1].size == 1:
                axis.append(queue.pop())
            elif not queue[-1].rigid:
                atom = queue.pop()
                axis.append(atom.split(1, atom.size, 1))
                queue.append(atom.parts[1])
        while needed != 1:
            if not queue:
                return None
            atom = queue.pop()
            rest = quotient(needed, atom.size)
            if rest is None:
                outer = quotient(atom.size, needed)
                if outer is None or atom.rigid:
                    return None
                atom.split(needed, outer, hint)
                queue.append(atom.parts[1])
                atom, rest = atom.parts[0], 1
            axis.append(atom)
            needed, hint = rest, hint // max(1, atom.hint)
        layout.append(tuple(axis))
    if any(atom.size != 1 for atom in queue):
        return None
    if queue and layout:
        layout[-1] += tuple(reversed(queue))
    return tuple(layout)


def order_of(node: Node) -> list[int] | None:
    """For a permuting node, the source axis of each of its axes."""
    source = tensor(node.args[0]) if node.args else None
    if source is None:
        return None
    rank, name = source.dim(), operation(node)
    order = list(range(rank))
    if name == "permute":
        return [dimension(index, rank) for index in argument(node, "dims")]
    if name in ("t", "numpy_T", "mT"):
        if name == "numpy_T":
            return order[::-1]
        return order[:-2] + order[-2:][::-1]
    if name in ("movedim", "moveaxis"):
        origin, target = argument(node, "source"), argument(node, "destination")
        origin = [origin] if isinstance(origin, int) else origin
        target = [target] if isinstance(target, int) else target
        fixed = dict(zip((dimension(i, rank) for i in target), (dimension(i, rank) for i in origin), strict=True))
        rest = iter([axis for axis in order if axis not in fixed.values()])
        return [fixed[axis] if axis in fixed else next(rest) for axis in order]
    if name in ("transpose", "swapaxes", "swapdims") and len(node.args) == 3:
        first, second = (dimension(index, rank) for index in node.args[1:])  # type: ignore[arg-type]
        order[first], order[second] = order[second], order[first]
        return order
    return None


def downward(node: Node, layout: Layout) -> Layout | None:
    """The layout of ``node`` given that of its first argument; None when it is not a pure movement or a cast."""
    name = operation(node)
    if unchanged(node) or cast_of(node) is not None:
        return layout
    if name in RESHAPES:
        made = tensor(node)
        return None if made is None else regroup((atom for axis in layout for atom in axis), made.shape)
    if name in PERMUTES:
        order = order_of(node)
        return None if order is None else tuple(layout[axis] for axis in order)
    return None


def upward(node: Node, layout: Layout) -> Layout | None:
    """The layout of the first argument of ``node`` given that of ``node``. Expansions leave axes without atoms."""
    name = operation(node)
    if unchanged(node) or cast_of(node) is not None:
        return layout
    source = tensor(node.args[0]) if node.args else None
    made = tensor(node)
    if source is None or made is None:
        return None
    if name in RESHAPES:
        return regroup((atom for axis in layout for atom in axis), source.shape)
    if name in PERMUTES:
        order = order_of(node)
        if order is None:
            return None
        back = {axis: position for position, axis in enumerate(order)}
        return tuple(layout[back[axis]] for axis in range(len(order)))
    if name in ("expand", "expand_as", "broadcast_to") or (name == "repeat" and _repeats_units(node, source)):
        kept = layout[len(layout) - source.dim() :]
        sizes = made.shape[len(layout) - source.dim() :]
        return tuple(
            axis if same(size, wide) else () for axis, size, wide in zip(kept, source.shape, sizes, strict=True)
        )
    if name == "repeat_interleave":
        return _before_repeat(node, layout, source)
    return None


def _repeats_units(node: Node, source: torch.Tensor) -> bool:
    repeats = argument(node, "repeats")
    sizes = [1] * (len(repeats) - source.dim()) + list(source.shape)
    return all(same(count, 1) or same(size, 1) for count, size in zip(repeats, sizes, strict=True))


def _before_repeat(node: Node, layout: Layout, source: torch.Tensor) -> Layout | None:
    repeats, axis = (argument(node, name) for name in ("repeats", "dim")) if len(node.args) > 1 else (None, None)
    if not isinstance(repeats, int) or not isinstance(axis, int):
        return None
    axis = dimension(axis, source.dim())
    parts = regroup(layout[axis], (source.shape[axis], repeats))
    return None if parts is None else (*layout[:axis], parts[0], *layout[axis + 1 :])


@dataclass(frozen=True, eq=False)
class Contraction:
    """A product of two tensors summed over shared letters: ``left, right -> out`` with one letter per axis.

    ``addend`` (with factor ``beta``) is added to ``alpha`` times the product.
    """

    left: Node
    right: Node
    left_letters: tuple[str, ...]
    right_letters: tuple[str, ...]
    out_letters: tuple[str, ...]
    addend: Node | None = None
    beta: Any = 1
    alpha: Any = 1


def contraction(node: Node) -> Contraction | None:
    """``node`` read as a contraction; None for other operations and for products over vectors."""
    name = operation(node)
    if name == "einsum":
        return _einsum(node)
    if name in ("baddbmm", "addmm"):
        addend, left, right = node.args[:3]
        extra = {"addend": addend, "beta": argument(node, "beta"), "alpha": argument(node, "alpha")}
    elif name in ("matmul", "bmm", "mm"):
        (left, right), extra = node.args[:2], {}
    else:
        return None
    first, second = tensor(left), tensor(right)
    if first is None or second is None or min(first.dim(), second.dim()) < 2:
        return None
    batch = tuple(f"batch{index}" for index in range(max(first.dim(), second.dim()) - 2))
    return Contraction(
        left,  # type: ignore[arg-type]
        right,  # type: ignore[arg-type]
        (*batch[len(batch) - first.dim() + 2 :], "row", "inner"),
        (*batch[len(batch) - second.dim() + 2 :], "inner", "column"),
        (*batch, "row", "column"),
        **extra,
    )


def _einsum(node: Node) -> Contraction | None:
    return einsum_of(str(argument(node, "equation")).replace(" ", ""), argument(node, "tensors"))


def einsum_of(equation: str, operands: Sequence[Any]) -> Contraction | None:
    """The contraction that ``equation`` (without spaces) says of two operands."""
    if len(operands) != 2 or any(tensor(item) is None for item in operands):
        return None
    terms, arrow, out = equation.partition("->")
    sides = terms.split(",")
    if len(sides) != 2:
        return None
    ranks = [item.meta["val"].dim() for item in operands]
    wide = max((rank - len(side.replace("...", "")) for side, rank in zip(sides, ranks, strict=True)), default=0)
    letters = [_spread(side, rank - len(side.replace("...", ""))) for side, rank in zip(sides, ranks, strict=True)]
    if arrow:
        result = _spread(out, wide)
    else:
        plain = "".join(sides).replace("...", "")
        result = (*_spread("...", wide), *sorted(letter for letter in set(plain) if plain.count(letter) == 1))
    if any(len(set(side)) != len(side) for side in letters):
        return None
    return Contraction(operands[0], operands[1], letters[0], letters[1], result)


def _spread(term: str, hidden: int) -> tuple[str, ...]:
    """The letters of one einsum term; ``...`` stands for ``hidden`` axes, named from the last one backwards."""
    before, dots, after = term.partition("...")
    middle = [f"...{index}" for index in reversed(range(hidden))] if dots else []
    return (*before, *middle, *after)
