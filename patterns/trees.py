"""Scan sites spelled as anything built of +, x and data movement: associative-scan trees, doubling, blocked forms.

Such a region is polynomial in the two tensors it cuts into pieces. Two polynomials that agree at a random point are
equal with overwhelming probability (Schwartz 1980, Zippel 1979), so a region is a scan if running it on random tensors
gives what the recurrence gives. No spelling is written down here.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from . import batched
from .chains import unwrap
from .describe import description, expression
from .evaluate import concretely
from .recurrence import operands, recurrence
from .sites import Scan
from .trial import CANNOT_BE_RUN, Region, agree, attribute, subgraph

aten = torch.ops.aten

_ARITHMETIC = {aten.mul.Tensor, aten.add.Tensor, aten.addcmul.default}
_CUTS = {
    aten.slice.Tensor,
    aten.select.int,
    aten.split.Tensor,
    aten.chunk.default,
    aten.unbind.int,
    aten.narrow.default,
}
_PADS = {aten.pad.default, aten.constant_pad_nd.default}
_CONSTANTS = {
    aten.zeros.default,
    aten.ones.default,
    aten.full.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
}
_MOVEMENT = (
    _CUTS
    | _CONSTANTS
    | {
        aten.movedim.int,
        aten.transpose.int,
        aten.permute.default,
        aten.stack.default,
        aten.cat.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.view.default,
        aten.reshape.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.expand.default,
        aten.pad.default,
        aten.constant_pad_nd.default,
        aten.flip.default,
        aten.roll.default,
        aten.clone.default,
        aten.contiguous.default,
        aten.alias.default,
        aten.to.dtype,
        aten.split_with_sizes.default,
    }
)


def tree_sites(graph: Graph, order: dict[Node, int], claimed: Collection[Node] = ()) -> Iterator[Scan]:
    """Proven sites of the graph, one for each pair of tensors that is scanned.

    A pair is scanned by an operator that combines two tensors, or by what both are cut into along one axis. Cuts in
    ``claimed`` belong to another site and are not looked at.
    """
    taken: set[Node] = set()
    for node in graph.nodes:
        site = _whole(node, order) if node.op == "call_function" else None
        if site is not None:
            yield site
    for first, second, dim in _pairs(graph, claimed):
        if first in taken or second in taken:
            continue
        region = _closure(first, second)
        if not _worth_running(region, first, second, dim):
            continue
        for decay, input in ((first, second), (second, first)):
            with concretely():
                site = _site(decay, input, dim, region, order)
            if site is not None:
                taken |= {first, second, *site.interior}
                yield site
                break


def _whole(node: Node, order: dict[Node, int]) -> Scan | None:
    """The site of an ``associative_scan`` operator over two tensors that combines by sums and products."""
    if getattr(node.target, "_name", "") != "associative_scan":
        return None
    operands: Any = node.args[1]
    body = attribute(node.args[0])
    if len(operands) != 2 or node.args[2] or not isinstance(body, GraphModule):
        return None
    if not all(part.target in _ARITHMETIC for part in body.graph.nodes if part.op == "call_function"):
        return None
    if not isinstance(operands[0].meta["val"].shape[0], int):
        return None
    region = {part: None for part in sorted(node.users) if part.target is operator.getitem}
    for decay, input in (operands, operands[::-1]):
        with concretely():
            site = _site(decay, input, 0, region, order)
        if site is not None:
            return dataclasses.replace(site, form="associative_scan operator")
    return None


def _pairs(graph: Graph, claimed: Collection[Node]) -> Iterator[tuple[Node, Node, int]]:
    """Tensors cut along one axis of one size, next to each other in the order of their cuts; each pair once."""
    latest: dict[tuple[int, int, int], Node] = {}
    seen: set[tuple[Node, Node, int]] = set()
    for node in graph.nodes:
        if node.target not in _CUTS | _PADS or not isinstance(node.args[0], Node) or node in claimed:
            continue
        source = node.args[0]
        value = source.meta.get("val")
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        dim = _axis(node, value.dim())
        if dim is None:
            continue
        size = expression(value.shape[dim])
        if not isinstance(size, int):
            continue
        key = (value.dim(), dim, size)
        before = latest.get(key)
        if before is not None and before is not source and (before, source, dim) not in seen:
            seen |= {(before, source, dim), (source, before, dim)}
            yield before, source, dim
        latest[key] = source


def _axis(node: Node, rank: int) -> int | None:
    """The axis along which ``node`` cuts or pads a tensor; None when there are several."""
    if node.target in _PADS:
        amounts: Any = node.args[1]
        padded = {place // 2 for place, amount in enumerate(amounts) if not (isinstance(amount, int) and amount == 0)}
        return rank - 1 - padded.pop() if len(padded) == 1 else None
    position = 2 if node.target in (aten.split.Tensor, aten.chunk.default) else 1
    dim: Any = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
    return int(dim % rank)


def _closure(first: Node, second: Node) -> dict[Node, None]:
    """Everything computed from the pair alone by arithmetic and data movement, in graph order."""
    inside: dict[Node, None] = {}
    waiting: dict[Node, int] = {}
    ready = [first, second]
    while ready:
        for user in ready.pop().users:
            if user in inside or user.op != "call_function":
                continue
            if user.target not in _ARITHMETIC and user.target not in _MOVEMENT and not _is_getitem(user):
                continue
            missing = waiting.get(user)
            if missing is None:
                missing = sum(1 for item in user.all_input_nodes if not _is_constant(item))
            missing -= 1
            waiting[user] = missing
            if missing == 0:
                inside[user] = None
                ready.append(user)
    return dict.fromkeys(sorted(inside))


def _is_getitem(node: Node) -> bool:
    source = node.args[0] if node.args else None
    return getattr(node.target, "__name__", "") == "getitem" and isinstance(source, Node) and source.target in _CUTS


def _is_constant(node: Node) -> bool:
    return node.target in _CONSTANTS and not node.all_input_nodes


def _worth_running(region: dict[Node, None], first: Node, second: Node, dim: int) -> bool:
    """Whether the region multiplies and adds its own values and gives something of the full shape back."""
    products = sum(1 for node in region if node.target in (aten.mul.Tensor, aten.addcmul.default))
    sums = any(node.target in (aten.add.Tensor, aten.addcmul.default) for node in region)
    length = first.meta["val"].shape[dim]
    if not products or not sums or length < 2:
        return False
    shapes = {_sizes(value) for value in (first, second)}
    return any(isinstance(node.meta.get("val"), Tensor) and _sizes(node) in shapes for node in region)


def _sizes(node: Node) -> tuple[Any, ...]:
    return tuple(map(expression, node.meta["val"].shape))


def _site(decay: Node, input: Node, dim: int, region: dict[Node, None], order: dict[Node, int]) -> Scan | None:
    shape = _sizes(input)
    if not _broadcasts(_sizes(decay), shape):
        return None
    candidates = [
        node
        for node in region
        if isinstance(node.meta.get("val"), Tensor)
        and _sizes(node) == shape
        and node.meta["val"].dtype == input.meta["val"].dtype
    ]
    output = _first_equal(decay, input, dim, candidates, order)
    if output is None:
        return None
    program = Graph()
    copies = {node: program.placeholder(node.name) for node in (decay, input)}
    length = int(shape[dim])
    # The operands are aligned with time in front, as the steps of a loop are.
    moved = [program.call_function(aten.movedim.int, (copies[node], dim, 0)) for node in (decay, input)]
    ready = program.call_function(
        operands, (*moved, None, (True, True), len(shape) - 1, length, output.meta["val"].dtype)
    )
    parts = [program.call_function(batched.part, (ready, position)) for position in range(3)]
    states = program.call_function(recurrence, (*parts, 0, False))
    program.output((program.call_function(aten.movedim.int, (states, 0, dim)),))
    interior = subgraph((output,), {decay, input}) | _dead_beside(region, output)
    module = GraphModule(torch.nn.Module(), program)
    module.meta["laconic.time"] = {decay: dim, input: dim}
    module.meta["laconic.state"] = output.meta["val"].select(dim, 0)
    return Scan(
        id="",
        form="tree",
        decay=decay,
        input=input,
        initial=None,
        dim=dim,
        length=length,
        program=module,
        **description(output, frozenset(interior), (decay, input), (output,)),
    )


def _broadcasts(decay: Any, shape: Any) -> bool:
    return len(decay) == len(shape) and all(a is b or a == b or a == 1 for a, b in zip(decay, shape, strict=True))


def _first_equal(decay: Node, input: Node, dim: int, candidates: list[Node], order: dict[Node, int]) -> Node | None:
    """The first candidate that equals the recurrence at two random points."""
    if not candidates:
        return None
    length = int(input.meta["val"].shape[dim])
    times = {size + offset for size in _halves(length) for offset in (-1, 0, 1)} | {2 * length, 2 * length + 2}
    run = Region(order, (decay, input), candidates, times, {decay: dim, input: dim})
    for shrunk in (True, False):
        generator = torch.Generator().manual_seed(length)
        try:
            for _ in range(2):
                values = run.samples(generator, shrunk=shrunk, unit=(decay,))
                env = run.run(values, shrunk=shrunk)
                first, second = torch.broadcast_tensors(values[decay], values[input])
                expected = recurrence(first, second, None, dim, False)
                candidates = [node for node in candidates if agree(env[node], expected)]
        except CANNOT_BE_RUN:
            continue
        return unwrap(candidates[0])[0] if candidates else None
    return None


def _halves(length: int) -> Iterator[int]:
    while length:
        yield length
        length >>= 1


def _dead_beside(region: dict[Node, None], output: Node) -> set[Node]:
    """What nobody reads once the output is replaced, such as the products of decays that a tree carries along."""
    dead: set[Node] = set()
    for node in reversed(region):
        if node is not output and all(user in dead or user is output for user in node.users):
            dead.add(node)
    return dead
