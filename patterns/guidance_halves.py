"""The two halves of a doubled batch, followed through a network: which axis they lie along, and that they never meet.

No rule about operators is needed. Every operation is run in float64 on random values, once on both halves and once on
each: where the results of the halves put together are the result of both, the halves lie along that axis.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from .describe import element_count, ordered, same, size_hint
from .evaluate import run
from .graph import NormalGraph
from .guidance_exit import Exit, doubled_value, half
from .nodes import RESHAPES, mutates, operation, tensor
from .reasons import Reason
from .segments import frozen, type_of
from .sites import Guidance

LARGEST = 1 << 25
"""Elements that one operation may read and write in its trial; above it the halves are not proven."""

_FULL = frozenset({"view", "reshape", "_unsafe_view", "expand", "broadcast_to"})
_MADE = frozenset({"new_zeros", "new_ones", "new_full", "new_empty"})


class Mixed(Exception):
    """The halves meet, or it cannot be shown that they do not; ``reason`` says where."""

    def __init__(self, code: str, text: str, *nodes: Node) -> None:
        super().__init__(text)
        self.reason = Reason(code, text, tuple(node.name for node in nodes))


class Halves:
    """What becomes of the two halves of ``starts`` (batches along axis 0) on the way to the result of ``end``.

    ``axes`` holds every value that has the two halves, with their axis; ``parts`` operations with several results,
    ``scalars`` sizes read from such values (whole and half); ``cut`` the values from outside of which each half reads
    its own half, with the axis. Call :meth:`walk` inside ``evaluate.concretely``.
    """

    def __init__(self, graph: NormalGraph, starts: Sequence[Node], end: Exit, above: set[Node]) -> None:
        self.graph = graph
        self.above = above
        self.end = end
        self.starts = set(starts)
        self.axes: dict[Node, int] = {}
        self.parts: dict[Node, tuple[int | None, ...]] = {}
        self.scalars: dict[Node, tuple[int, int]] = {}
        self.cut: dict[Node, int] = {}

    def walk(self) -> None:
        """Raises Mixed.

        Inputs of the graph that are as long as the batch, and whatever else is doubled, are taken to hold both halves;
        when that fails, values are cut no earlier than where they meet the batch.
        """
        seeds = self._seeds()
        try:
            self._walk(seeds)
        except Mixed:
            if not seeds:
                raise
            for table in (self.axes, self.parts, self.scalars, self.cut):
                table.clear()
            self._walk([])

    def _seeds(self) -> list[Node]:
        batch = next(iter(self.starts)).meta["val"].shape[0]
        inputs = [node for node in self.graph.placeholders if not self.graph.is_static(node)]
        # What else is doubled (the time, a condition) holds both halves as well.
        inputs += [node for node in self.graph.module.graph.nodes if doubled_value(node) is not None]
        return [
            node
            for node in inputs
            if node in self.above - self.starts
            and (made := tensor(node)) is not None
            and made.dim()
            and same(made.shape[0], batch)
        ]

    def _walk(self, seeds: Sequence[Node]) -> None:
        self.axes.update(dict.fromkeys(seeds, 0))
        for node in self.graph.module.graph.nodes:
            if node in self.starts:
                self.axes[node] = 0
            elif node.op == "call_function" and node in self.above and self._reads_halves(node):
                self._step(node)
        for node in seeds:
            self.cut[node] = self.axes.pop(node)
        whole = self.end.result
        axis = self.axes.get(whole)
        halves = [half(node) for node in self.end.halves]
        if axis is None or any(found is None or found[:2] != (whole, axis) for found in halves):
            raise Mixed("wrong-axis", "the result is not halved along the axis the batch was doubled on", whole)

    def _reads_halves(self, node: Node) -> bool:
        return any(read in self.axes or read in self.scalars or read in self.parts for read in node.all_input_nodes)

    def _step(self, node: Node) -> None:
        if node.target is operator.getitem and node.args[0] in self.parts:
            axis = self.parts[node.args[0]][node.args[1]]  # type: ignore[index]
            if axis is not None:
                self.axes[node] = axis
            return
        if mutates(node):
            raise Mixed("mutation", f"{node.target} writes in place between the halves", node)
        made, cut = self._trial(node)
        for read, axis in cut.items():
            if self.cut.setdefault(read, axis) != axis:
                raise Mixed("wrong-axis", f"{read.name} is halved along two axes", read)
        if isinstance(made, tuple):
            self.parts[node] = made
        elif isinstance(made, int):
            self.axes[node] = made
        elif isinstance(made, _Scalar):
            self.scalars[node] = (made.whole, made.half)

    def _trial(self, node: Node) -> tuple[Any, dict[Node, int]]:
        reads = list(dict.fromkeys(node.all_input_nodes))
        number = {read: index for index, read in enumerate(reads)}
        states = tuple(
            (type_of(read), self.axes.get(read), self.scalars.get(read), self.cut.get(read), self.graph.is_static(read))
            for read in reads
        )
        key = (node.target, frozen(node.args, number), frozen(tuple(sorted(node.kwargs.items())), number), states)
        known = _KNOWN.get(key)
        seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if known is None:
            # Operations that may be random run as well (attention without dropout is none), on numbers of their own.
            with torch.random.fork_rng(devices=[], enabled=seeded):
                known = _KNOWN[key] = self._run(node, reads)
        made, cut = known
        if isinstance(made, str):
            raise Mixed("dropout-active" if seeded else "not-proven", f"{node.target}: {made}", node)
        return made, {reads[index]: axis for index, axis in cut}

    def _run(self, node: Node, reads: Sequence[Node]) -> tuple[Any, tuple[tuple[int, int], ...]]:
        """The axis of the result (a tuple for several, None for no halves) and of the operands cut; or why not."""
        elements = sum(element_count(value) for value in map(tensor, (*reads, node)) if value is not None)
        if elements > LARGEST:
            return "too large to be run", ()
        generator = torch.Generator().manual_seed(0)
        whole = {read: self._sample(read, generator) for read in reads}
        made: Any = None
        try:
            made = run([node], whole, double=True)[node]
        except Exception as error:
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", ()
        told = "the two halves of the batch meet in it"
        for cut in self._choices(reads):
            for axis in _possible(node, self.axes):
                halves = []
                for index in (0, 1):
                    values = {read: self._part(read, whole[read], index, cut) for read in reads}
                    try:
                        halves.append(run([node], values, partial(_halved, axis), double=True)[node])
                    except Exception:
                        break
                if len(halves) == 2:
                    found = _joined(made, *halves)
                    if found is not _NEITHER:
                        return found, tuple((reads.index(read), place) for read, place in cut.items())
        return told, ()

    def _choices(self, reads: Sequence[Node]) -> Iterator[dict[Node, int]]:
        """Ways to take operands without halves: whole, or each half its own half of an axis as long as the batch."""
        sizes = {size_hint(read.meta["val"].shape[self.axes[read]]) for read in reads if read in self.axes}
        options: list[list[tuple[Node, int] | None]] = []
        for read in reads:
            value = tensor(read)
            if read in self.axes or value is None:
                continue
            if read in self.cut:
                options.append([(read, self.cut[read])])
                continue
            places = [(read, axis) for axis, size in enumerate(value.shape) if size_hint(size) in sizes][:2]
            static = self.graph.is_static(read)
            options.append([None, *places] if static else [*places, None])
        for chosen in itertools.islice(itertools.product(*options), 16):
            yield dict(item for item in chosen if item is not None)

    def _sample(self, node: Node, generator: torch.Generator) -> Any:
        value: Any = node.meta.get("val")
        if node in self.scalars:
            return self.scalars[node][0]
        if isinstance(value, list | tuple):
            return [_random(item, generator) for item in value]
        if isinstance(value, Tensor):
            return _random(value, generator)
        return (
            size_hint(value)
            if isinstance(value, torch.SymInt)
            else getattr(getattr(value, "node", value), "hint", value)
        )

    def _part(self, node: Node, value: Any, index: int, cut: Mapping[Node, int]) -> Any:
        if node in self.scalars:
            return self.scalars[node][1]
        if node in self.parts:
            return [
                item if axis is None else item.chunk(2, axis)[index]
                for item, axis in zip(value, self.parts[node], strict=True)
            ]
        axis = self.axes.get(node, cut.get(node))
        return value if axis is None else value.chunk(2, axis)[index]


class _Scalar:
    """A size that is another one in a half."""

    def __init__(self, whole: int, half: int) -> None:
        self.whole = whole
        self.half = half


_NEITHER = object()
_KNOWN: dict[Any, tuple[Any, tuple[tuple[int, int], ...]]] = {}


def _joined(whole: Any, first: Any, second: Any) -> Any:
    """The axis along which the halves make up the whole; None when there is nothing to halve, else ``_NEITHER``."""
    if isinstance(whole, list | tuple):
        found = tuple(_joined(*items) for items in zip(whole, first, second, strict=True))
        return _NEITHER if _NEITHER in found else found
    if not isinstance(whole, Tensor):
        if whole == first == second:
            return None
        return _Scalar(whole, first) if first == second and isinstance(whole, int) else _NEITHER
    if whole.dim() != first.dim() or first.shape != second.shape:
        return _NEITHER
    if whole.shape == first.shape:
        return None if _equal(whole, first) and _equal(whole, second) else _NEITHER
    longer = [axis for axis in range(whole.dim()) if whole.shape[axis] != first.shape[axis]]
    if len(longer) != 1 or whole.shape[longer[0]] != 2 * first.shape[longer[0]]:
        return _NEITHER
    return longer[0] if _equal(whole, torch.cat([first, second], longer[0])) else _NEITHER


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype:
        return False
    if not one.is_floating_point() and not one.is_complex():
        return bool(torch.equal(one, other))
    scale = max(1.0, float(one.abs().nan_to_num(0.0).max())) if one.numel() else 1.0
    return bool(torch.allclose(one, other, rtol=1e-9, atol=1e-9 * scale, equal_nan=True))


def _possible(node: Node, axes: Mapping[Node, int]) -> list[int | None]:
    """Axes of the result that sizes written in the operation may have to be halved on; None: none are written."""
    name = operation(node)
    source: Any = node.args[0] if node.args else None
    value = tensor(node)
    if value is None or source not in axes:
        return [None]
    axis, old, new = axes[source], list(map(size_hint, source.meta["val"].shape)), list(map(size_hint, value.shape))
    if name in ("expand", "broadcast_to"):
        return [axis + len(new) - len(old)]
    if "output_size" in node.kwargs:
        return [axis]
    if name in _MADE:
        return [index for index, size in enumerate(new) if size == old[axis]] or [None]
    if name not in RESHAPES or name in ("flatten", "squeeze", "unsqueeze", "view_as"):
        return [None]
    before = _product(old[:axis])
    return [index for index, size in enumerate(new) if size % 2 == 0 and _product(new[:index]) == before] or [None]


def half_arguments(
    node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], axis: int | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of ``node`` with the size of its result's ``axis`` halved where it is written as a number.

    A size that is read from a halved value arrives halved already.
    """
    name = operation(node)
    if axis is None:
        return args, kwargs
    if isinstance(node.kwargs.get("output_size"), int):
        return args, {**kwargs, "output_size": kwargs["output_size"] // 2}
    if name not in _FULL and name not in _MADE and name != "unflatten":
        return args, kwargs
    place = 2 if name == "unflatten" else 1
    sizes, written = list(args[place]), node.args[place]
    if name == "unflatten":
        axis -= int(args[1]) % node.args[0].meta["val"].dim()  # type: ignore[union-attr]
    if 0 <= axis < len(sizes) and isinstance(written[axis], int) and written[axis] > 0:  # type: ignore[index, operator]
        sizes[axis] = sizes[axis] // 2
    return (*args[:place], sizes, *args[place + 1 :]), kwargs


def _halved(
    axis: int | None, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return half_arguments(node, args, kwargs, axis)


def half_program(site: Guidance) -> GraphModule:
    """The network of a guidance site on one half of its batch.

    Its inputs are ``(latent, *doubled_inputs cut to one half, *the site's other inputs)`` in the order of
    ``site.inputs``, without those only the exit reads (a scale); its output is one half of ``result``. Operations,
    weights and order are those of the site; only sizes that count the doubled batch are halved.
    """
    result = site.result
    program = Graph()
    needed = _needed(site)
    read = {item for node in needed for item in node.all_input_nodes}
    image: dict[Node, Node] = {}
    for node in site.inputs:
        if node is site.latent or node in read:
            image[node] = program.placeholder(node.name)
            image[node].meta = dict(node.meta)
    for node in needed:
        if doubled_value(node) is site.latent:
            image[node] = image[site.latent]
            continue
        image[node] = program.node_copy(node, image.__getitem__)
        made = image[node]
        made.args, made.kwargs = half_arguments(node, made.args, made.kwargs, site.batch_axes.get(node))
    program.output(image[result])
    return GraphModule(torch.nn.Module(), program)


def _needed(site: Guidance) -> list[Node]:
    """The interior the result is computed from, in order, down to the doubled values."""
    found: set[Node] = set()
    pending = [site.result]
    while pending:
        node = pending.pop()
        if node not in found and node in site.interior:
            found.add(node)
            if doubled_value(node) is not site.latent:
                pending.extend(node.all_input_nodes)
    return ordered(found)


def _random(value: Tensor, generator: torch.Generator) -> Tensor:
    shape = tuple(map(size_hint, value.shape))
    if value.dtype is torch.bool:
        return torch.rand(shape, generator=generator) < 0.7
    if value.dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    if value.dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.complex128)
    return torch.randint(0, 2, shape, generator=generator).to(value.dtype)


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
