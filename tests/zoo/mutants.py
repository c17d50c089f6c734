"""Mutants of normal forms: one operation, axis, constant or operand changed at a time, and what becomes of them.

A detector may say anything about a mutant except something untrue: every site that it finds there and that is proven
must reproduce the mutant's own values, and a mutant that means something else must not give the original's site.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from laconic.patterns import proof
from laconic.patterns.detect import detect
from laconic.patterns.evaluate import concretely, run, without_dropout
from laconic.patterns.graph import NormalGraph
from laconic.patterns.nodes import operation
from laconic.patterns.reference import MEANINGS, reference
from laconic.patterns.sites import Site, Sites

Find = Callable[[NormalGraph], Sites]

# Operations that are taken for one another: each becomes every one of its neighbours.
_FAMILIES = (
    ("add", "sub", "mul", "div"),
    ("softmax", "log_softmax"),
    ("sigmoid", "tanh", "silu", "relu", "gelu", "exp", "neg"),
    ("amax", "amin"),
    ("sum", "mean"),
    ("cumsum", "cumprod", "logcumsumexp"),
    ("tril", "triu"),
    ("eq", "ne"),
    ("lt", "le", "gt", "ge"),
    ("maximum", "minimum"),
    ("bitwise_and", "bitwise_or", "bitwise_xor"),
    ("logical_and", "logical_or"),
    ("logical_not", "isnan"),
    ("sqrt", "rsqrt", "square", "reciprocal", "abs"),
    ("sin", "cos"),
    ("zeros", "ones"),
    ("zeros_like", "ones_like"),
    ("repeat_interleave", "repeat"),
    ("layer_norm", "rms_norm"),
)
_AXES = frozenset({"dim", "dim0", "dim1", "start_dim", "end_dim", "axis"})
_AXIS_LISTS = frozenset({"dim", "dims", "source", "destination"})
# Two random inputs for every comparison.
_SEEDS = (1, 2)
# Where element types, layouts and devices are said: nothing a run in float64 can see.
_UNSEEN = frozenset({"dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking", "copy", "implicit"})


@dataclass(frozen=True, eq=False)
class Edit:
    """``node`` with another target or other arguments; ``text`` says what changed."""

    node: Node
    text: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Mutant:
    """A normal form with one edit; its nodes have the names they had."""

    edit: Edit
    graph: NormalGraph


def mutants(graph: NormalGraph, *, start: int = 0, step: int = 1) -> Iterator[Mutant]:
    """Every ``step``-th mutant of ``graph`` that still runs, in a fixed order."""
    for index, edit in enumerate(edits(graph.module.graph)):
        if index % step == start % step and (made := edited(graph, edit)) is not None:
            yield Mutant(edit, made)


def edits(graph: Graph) -> Iterator[Edit]:
    """All edits of all operations, in graph order."""
    earlier: list[Node] = []
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            yield from _other_operations(node)
            yield from _other_arguments(node)
            yield from _other_operands(node, earlier)
        if isinstance(node.meta.get("val"), Tensor):
            earlier.append(node)


def _other_operations(node: Node) -> Iterator[Edit]:
    target: Any = node.target
    name, overload = operation(node), target._overloadname
    for family in _FAMILIES:
        for other in family if name in family else ():
            packet = getattr(torch.ops.aten, other)
            if other == name or overload not in packet.overloads():
                continue
            yield Edit(node, f"{node.name} -> {other}", getattr(packet, overload), node.args, node.kwargs)


def _other_arguments(node: Node) -> Iterator[Edit]:
    target: Any = node.target
    value = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], Node) else None
    rank = value.dim() if isinstance(value, Tensor) else 0
    for index, parameter in enumerate(target._schema.arguments):
        given = node.args[index] if index < len(node.args) else node.kwargs.get(parameter.name, parameter.default_value)
        if parameter.name in _UNSEEN:
            continue
        for other in _others(given, parameter.name, rank):
            text = f"{node.name}: {parameter.name} {given} -> {other}"
            if index < len(node.args):
                args = (*node.args[:index], other, *node.args[index + 1 :])
                yield Edit(node, text, node.target, args, node.kwargs)
            else:
                yield Edit(node, text, node.target, node.args, {**node.kwargs, parameter.name: other})


def _others(value: Any, name: str, rank: int) -> Iterator[Any]:
    """Other values for one argument."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int) and name in _AXES:
        yield from (axis for axis in range(rank) if axis != value % max(rank, 1))
    elif isinstance(value, int):
        yield from (value + 1, value - 1)
    elif isinstance(value, float):
        yield from (0.0, 1.0) if value in (float("inf"), float("-inf")) else (value * 1.5, -value)
    elif isinstance(value, str):
        yield from _other_texts(value)
    elif isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
        if len(value) == 1 and name in _AXIS_LISTS:
            yield from ([axis] for axis in range(rank) if axis != value[0] % max(rank, 1))
        for first in range(len(value)):
            for second in range(first + 1, len(value)):
                if value[first] != value[second]:
                    swapped = list(value)
                    swapped[first], swapped[second] = value[second], value[first]
                    yield swapped


def _other_texts(value: str) -> Iterator[str]:
    """An einsum equation with two neighbouring letters of one term exchanged; an activation's other approximation."""
    if "," not in value:
        if value in ("none", "tanh"):
            yield "tanh" if value == "none" else "none"
        return
    for place, (left, right) in enumerate(zip(value, value[1:], strict=False)):
        if left.isalpha() and right.isalpha() and left != right:
            yield value[:place] + right + left + value[place + 2 :]


def _other_operands(node: Node, earlier: Sequence[Node]) -> Iterator[Edit]:
    """Two operands exchanged, one replaced by an earlier value of its type, the operation left out."""
    places = [index for index, item in enumerate(node.args) if isinstance(item, Node)]
    for first in places:
        for second in places:
            if first < second and node.args[first] is not node.args[second]:
                args = list(node.args)
                args[first], args[second] = args[second], args[first]
                text = f"{node.name}: operands {first} and {second} exchanged"
                yield Edit(node, text, node.target, tuple(args), node.kwargs)
    for place in places:
        item: Any = node.args[place]
        other = next((known for known in reversed(earlier) if known is not item and _alike(known, item)), None)
        if other is not None:
            args = list(node.args)
            args[place] = other
            text = f"{node.name}: {other} in place of {item}"
            yield Edit(node, text, node.target, tuple(args), node.kwargs)
    for place in places:
        item = node.args[place]
        if _alike(item, node) and operation(node) not in ("clone", "alias", "contiguous", "detach"):
            yield Edit(node, f"{node.name} left out, {item} kept", torch.ops.aten.alias.default, (item,), {})


def _alike(one: Node, other: Node) -> bool:
    mine, theirs = one.meta.get("val"), other.meta.get("val")
    if not isinstance(mine, Tensor) or not isinstance(theirs, Tensor):
        return False
    return mine.shape == theirs.shape and mine.dtype == theirs.dtype


def edited(graph: NormalGraph, edit: Edit) -> NormalGraph | None:
    """``graph`` with ``edit`` made and every value worked out anew; None when it does not run any more."""
    copy = Graph()
    known: dict[Node, Node] = {}
    for node in graph.module.graph.nodes:
        made = copy.node_copy(node, known.__getitem__)
        if node is edit.node:
            made.target = edit.target
            made.args = torch.fx.node.map_arg(edit.args, known.__getitem__)
            made.kwargs = torch.fx.node.map_arg(edit.kwargs, known.__getitem__)
        made.name = node.name
        known[node] = made
    module = GraphModule(graph.module, copy)
    made = dataclasses.replace(graph, module=module, source=module)
    inputs = [node.meta["val"] for node in graph.placeholders]
    try:
        executed(made, _SEEDS[0])  # real tensors say no much faster than fake ones
        with graph.fake_mode, torch.no_grad(), _quiet():
            _Propagate(module).run(*inputs)
    except Exception:
        return None
    module.graph.eliminate_dead_code()
    return made


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the logged traceback of every mutant that does not run."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


class _Propagate(Interpreter):
    """Runs a graph on fake values and keeps each one at its node."""

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function":
            n.meta["val"] = value
        return value


def samples(graph: NormalGraph, seed: int) -> dict[Node, Any]:
    """Random values of the inputs: float64 normal numbers, mostly true booleans, small integers, sizes as they are."""
    generator = torch.Generator().manual_seed(seed)
    values: dict[Node, Any] = {}
    for node in graph.placeholders:
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            values[node] = value if isinstance(value, int) else int(value.node.hint)
        elif value.dtype is torch.bool:
            values[node] = torch.rand(tuple(value.shape), generator=generator) < 0.7
        elif value.dtype.is_floating_point:
            values[node] = torch.randn(tuple(value.shape), generator=generator, dtype=torch.float64)
        elif value.dtype.is_complex:
            values[node] = torch.randn(tuple(value.shape), generator=generator, dtype=torch.complex128)
        else:
            values[node] = torch.randint(0, 2, tuple(value.shape), generator=generator).to(value.dtype)
    return values


def executed(graph: NormalGraph, seed: int) -> dict[Node, Any]:
    """The value of every node in float64, without dropout."""
    nodes = [node for node in graph.module.graph.nodes if node.op not in ("placeholder", "output")]
    default = torch.get_default_dtype()
    with concretely():
        torch.set_default_dtype(torch.float64)
        try:
            return run(nodes, samples(graph, seed), without_dropout, double=True)
        finally:
            torch.set_default_dtype(default)


def outputs(graph: NormalGraph, values: dict[Node, Any]) -> list[Any]:
    """The values the graph returns."""
    found: list[Any] = []
    torch.fx.node.map_arg(graph.output.args, lambda node: found.append(values[node]))
    return found


def replayed(site: Site, values: dict[Node, Any]) -> tuple[Any, ...]:
    """The outputs of ``site`` by its fields alone: its registered meaning, or its own program.

    Raises TypeError for a kind that has neither.
    """
    with concretely():
        if type(site) in MEANINGS:
            return reference(site, values)
        program: GraphModule | None = getattr(site, "program", None)
        if program is None:
            raise TypeError(f"{type(site).__name__} has no meaning to run")
        given = dict(zip(program.graph.find_nodes(op="placeholder"), (values[n] for n in site.inputs), strict=True))
        nodes = [node for node in program.graph.nodes if node.op not in ("placeholder", "output")]
        made = run(nodes, given, double=True)
        found: list[Any] = []
        (returned,) = program.graph.find_nodes(op="output")
        torch.fx.node.map_arg(returned.args, lambda node: found.append(made[node]))
        return tuple(found)


def agree(one: Any, other: Any) -> bool:
    """Equal up to float64 rounding; NaN and infinities at the same places."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return bool(one == other)
    if one.shape != other.shape:
        return False
    if one.dtype is torch.bool or other.dtype is torch.bool:
        return bool(torch.equal(one, other))
    largest = float(other.nan_to_num(0.0, 0.0, 0.0).abs().max()) if other.numel() else 0.0
    return bool(torch.allclose(one, other.to(one.dtype), rtol=1e-8, atol=1e-9 * max(1.0, largest), equal_nan=True))


@dataclass
class Tally:
    """What became of mutants. ``wrong`` must be empty; the rest says how much was looked at."""

    mutants: int = 0
    changed: int = 0
    """Mutants that mean something else than the original."""
    accepted: int = 0
    """Of those, the ones in which a site is found and proven at the original's place."""
    sites: int = 0
    wrong: list[str] = field(default_factory=list)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.mutants + other.mutants,
            self.changed + other.changed,
            self.accepted + other.accepted,
            self.sites + other.sites,
            self.wrong + other.wrong,
        )


def judge(graph: NormalGraph, find: Find = detect, *, start: int = 0, step: int = 1) -> Tally:
    """Find sites in every mutant of ``graph`` and compare each proven one with what the mutant really computes.

    ``find`` is the detector, or several (:func:`laconic.patterns.detect.detect` runs all). Two random inputs each.
    """
    originals = {site.outputs[0].name: site for site in find(graph) if _has_meaning(site)}
    said = {name: _said(site, graph) for name, site in originals.items()}
    plain = [outputs(graph, executed(graph, seed)) for seed in _SEEDS]
    tally = Tally()
    for mutant in mutants(graph, start=start, step=step):
        try:
            runs = [executed(mutant.graph, seed) for seed in _SEEDS]
        except Exception:
            continue  # float64 cannot run it: nothing to compare with
        tally.mutants += 1
        made = [outputs(mutant.graph, values) for values in runs]
        same = all(
            len(mine) == len(theirs) and all(map(agree, mine, theirs)) for mine, theirs in zip(made, plain, strict=True)
        )
        tally.changed += not same
        for site in find(mutant.graph):  # the graph is as detectors see it: nothing dead, all values known
            if not _has_meaning(site) or proof.prove(site, mutant.graph, verify="always") is not None:
                continue
            tally.sites += 1
            name = site.outputs[0].name
            tally.accepted += not same and name in originals
            for values in runs:
                if not all(_usable(values[node]) for node in site.inputs):
                    continue
                if not all(map(agree, replayed(site, values), (values[node] for node in site.outputs))):
                    tally.wrong.append(f"{mutant.edit.text}: {site.id} does not compute {name}")
                    break
            inside = name in originals and mutant.edit.node in originals[name].interior
            if inside and not same and _said(site, mutant.graph) == said[name]:
                tally.wrong.append(f"{mutant.edit.text}: {site.id} is said to be as before")
    return tally


def _usable(value: Any) -> bool:
    """Without NaN and infinity, of which operators make no promise; minus infinity is what masks hide with."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return True
    return not bool((value.isnan() | (value == float("inf"))).any())


def _has_meaning(site: Site) -> bool:
    return type(site) in MEANINGS or getattr(site, "program", None) is not None


def _said(site: Site, graph: NormalGraph) -> str:
    """The fields that define a site, with nodes by their names; sites within say theirs through what is read."""
    read = " ".join(node.name for node in site.inputs)
    return f"{read}: {proof._text(site, {node: node.name for node in graph.module.graph.nodes}, top=True)}"
