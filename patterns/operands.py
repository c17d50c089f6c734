"""From a value in some layout back to the tensor it was moved from, and the one axis order all operands agree on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from .axes import Atom, Layout, downward, leaves, resolved, upward
from .describe import same
from .nodes import EXPANSIONS, MOVEMENTS, cast_of, mutates, operation, readers, scalar, tensor, unchanged
from .sites import Order


@dataclass(frozen=True, eq=False)
class Candidate:
    """A node that could stand for an operand: its layout, the factor between it and the operand, casts crossed."""

    node: Node
    layout: Layout
    factor: float = 1.0
    cast: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return self.node.meta["val"].dtype


def factor_of(node: Node) -> tuple[Node, float] | None:
    """``(x, c)`` when ``node`` is ``x * c`` with a constant ``c``: a product, a quotient or a negation."""
    name = operation(node)
    if name == "neg":
        return node.args[0], -1.0  # type: ignore[return-value]
    if name not in ("mul", "div", "true_divide", "multiply") or len(node.args) < 2:
        return None
    if name == "div" and node.kwargs.get("rounding_mode") is not None:
        return None
    left, right = node.args[:2]
    made = tensor(node)
    for value, number in ((left, scalar(right)), (right, scalar(left))):
        source = tensor(value)
        if number is None or source is None or made is None or source.dim() != made.dim():
            continue
        if name in ("mul", "multiply"):
            return value, number  # type: ignore[return-value]
        if value is left and number != 0.0:
            return value, 1.0 / number  # type: ignore[return-value]
    return None


def climb(node: Node, layout: Layout, *, scaled: bool = True) -> list[Candidate]:
    """``node`` and the values it was moved, widened or (``scaled``) multiplied by constants from, nearest first.

    A value somebody else reads too is where the climb ends: it exists anyway.
    """
    found = [Candidate(node, layout)]
    while len(readers(node)) == 1 and node.op == "call_function" and not mutates(node):
        last = found[-1]
        name, cast = operation(node), cast_of(node)
        product = factor_of(node) if scaled else None
        factor, crossed = last.factor, last.cast
        above: Layout | None
        if product is not None:
            source, times = product
            if tensor(source).dtype != last.dtype:  # type: ignore[union-attr]
                break
            above, factor = last.layout, factor * times
        elif cast is not None:
            # Widening loses nothing; narrowing would change the numbers.
            if not (cast[0].is_floating_point and cast[1].is_floating_point and cast[0].itemsize <= cast[1].itemsize):
                break
            source, above = node.args[0], last.layout  # type: ignore[assignment]
            crossed = crossed or cast[0] != cast[1]
        elif name in MOVEMENTS or name in EXPANSIONS or unchanged(node):
            source = node.args[0]  # type: ignore[assignment]
            above = upward(node, last.layout)
        else:
            break
        if above is None or tensor(source) is None:
            break
        node = source
        found.append(Candidate(node, above, factor, crossed))
    return found


def descend(node: Node, layout: Layout) -> list[Candidate]:
    """``node`` and the values it is only moved or cast to on the way to its reader, nearest first."""
    found = [Candidate(node, layout)]
    while len(found) < 8:
        users = readers(node)
        if len(users) != 1 or users[0].op != "call_function" or not users[0].args or users[0].args[0] is not node:
            break
        below = downward(users[0], found[-1].layout)
        if below is None:
            break
        crossed = cast_of(users[0])
        node = users[0]
        found.append(Candidate(node, below, 1.0, found[-1].cast or (crossed is not None and crossed[0] != crossed[1])))
    return found


def matching(layout: Layout, wanted: Sequence[tuple[Atom, ...]]) -> Order | None:
    """The order that brings axes of ``layout`` into the order ``wanted``; None when they are other axes.

    A wanted axis of size one that is missing is None in the order.
    """
    axes = resolved(layout)
    free = list(range(len(axes)))
    order: list[int | None] = []
    for letter in wanted:
        axis = next((index for index in free if axes[index] == letter), None)
        if axis is not None:
            free.remove(axis)
        elif letter:
            return None
        order.append(axis)
    return None if free else tuple(order)


def permuted(x: torch.Tensor, order: Order | None) -> torch.Tensor:
    """``x`` with its axes in the given order, and new ones of size one; None leaves it."""
    if order is None:
        return x
    x = x.permute([axis for axis in order if axis is not None])
    for place, axis in enumerate(order):
        x = x.unsqueeze(place) if axis is None else x
    return x


def broadcasts(value: Node, layout: Layout, wanted: Sequence[tuple[Atom, ...]]) -> bool:
    """True when ``value``, added to something of ``layout``, would mean the same added to something of ``wanted``."""
    axes, shape = resolved(layout), value.meta["val"].shape
    for back in range(1, len(shape) + 1):
        if same(shape[-back], 1):
            continue
        if back > len(axes) or back > len(wanted) or axes[-back] != wanted[-back]:
            return False
    return len(shape) <= len(wanted)


@dataclass(frozen=True, eq=False)
class Letters:
    """One way to cut the batch atoms of a site into axes; ``repeated`` atoms (a suffix) are absent from the key."""

    batch: tuple[tuple[Atom, ...], ...]
    repeated: tuple[Atom, ...] = ()

    @property
    def key_batch(self) -> tuple[tuple[Atom, ...], ...]:
        if not self.repeated:
            return self.batch
        return (*self.batch[:-1], self.batch[-1][: -len(self.repeated)])

    @property
    def groups(self) -> int:
        count = 1
        for atom in self.repeated:
            count *= atom.size
        return count


def letterings(batch: Sequence[Atom], keys: Sequence[Candidate]) -> Iterator[Letters]:
    """Ways to cut the batch axes, the most canonical first: every atom an axis, key repetition on the last one."""
    fine = leaves(batch)
    options: list[tuple[Atom, ...]] = []
    for candidate in reversed(keys):
        present = {atom for axis in resolved(candidate.layout) for atom in axis}
        missing = tuple(atom for atom in fine if atom not in present)
        if missing not in options and fine[len(fine) - len(missing) :] == missing:
            options.append(missing)
    if () not in options:
        options.append(())
    for missing in options:
        if any(not isinstance(atom.size, int) for atom in missing):
            continue
        single = tuple((atom,) for atom in fine)
        if missing:
            split = len(fine) - len(missing)
            merged = (*single[: split - 1], fine[split - 1 :]) if split else None
            apart = (*single[:split], missing)
            ways = [merged, apart] if split >= 2 else [apart, merged]
            yield from (Letters(way, missing) for way in ways if way is not None)
        else:
            yield Letters(single)
        coarse = tuple(leaves([atom]) for atom in batch)
        if coarse != single and coarse and coarse[-1][len(coarse[-1]) - len(missing) :] == missing:
            yield Letters(coarse, missing)


def deepest(
    candidates: Sequence[Candidate], wanted: Sequence[tuple[Atom, ...]], dtype: torch.dtype | None
) -> tuple[Candidate, Order] | None:
    """The farthest candidate with the wanted axes and dtype (None: any, as long as no cast was crossed).

    One that lacks an axis of size one is taken where all do.
    """
    lacking: tuple[Candidate, Order] | None = None
    for candidate in reversed(candidates):
        if candidate.cast if dtype is None else candidate.dtype != dtype:
            continue
        order = matching(candidate.layout, wanted)
        if order is not None and None not in order:
            return candidate, order
        if order is not None and lacking is None:
            lacking = candidate, order
    return lacking
