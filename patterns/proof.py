"""Proof by execution: a site is believed when its fields, run as a reference, reproduce the subgraph they came from."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from .describe import element_count, size_hint
from .evaluate import before, concretely, example_value, run, without_dropout
from .graph import NormalGraph
from .nodes import argument, mutates, operation, tensor
from .reasons import Reason
from .reference import MEANINGS, default_epsilon, reference
from .sites import Site

# Elements that inputs and interior together may have at the site's own sizes; above it smaller sizes are tried first.
CHEAP = 1 << 18
# And above this a proof at the site's own sizes is not tried at all.
AFFORDABLE = 1 << 24

# Relative to the largest element; float64 rounding over long sums stays far below.
TOLERANCE = 1e-9

_PROVEN: dict[str, Reason | None] = {}


def prove(site: Site, graph: NormalGraph, verify: str = "first") -> Reason | None:
    """None when ``site`` holds, else a ``not-proven`` reason.

    The subgraph from the site's inputs to its outputs and the reference that reads only its fields are run on the
    same random tensors, in float64, on the CPU, outside every tracing mode. Structures proven before in this process
    are not run again unless ``verify`` is ``"always"``. Kinds without a meaning of their own (blocks) hold by
    construction; scans are proven by their detector.
    """
    if type(site) not in MEANINGS:
        return None
    key = structure(site)
    if verify == "always" or key not in _PROVEN:
        _PROVEN[key] = _attempt(site)
    reason = _PROVEN[key]
    return None if reason is None else dataclasses.replace(reason, nodes=tuple(node.name for node in site.outputs))


def structure(site: Site) -> str:
    """The site's fingerprint and fields as text, with nodes numbered: equal for layers that differ in weights only."""
    numbers: dict[Node, str] = {node: f"in{index}" for index, node in enumerate(site.inputs)}
    return f"{type(site).__name__} {site.fingerprint} {_text(site, numbers, top=True)}"


_SAID_ELSEWHERE = frozenset(
    {"id", "module", "source", "form", "flops", "bytes", "interior", "inputs", "outputs", "fingerprint", "obstacle"}
)


def _text(value: Any, numbers: dict[Node, str], *, top: bool = False) -> str:
    if isinstance(value, Node):
        # Nodes inside are numbered by first mention, which the fields' fixed order makes the same for equal sites.
        return numbers.setdefault(value, f"n{len(numbers)}")
    if isinstance(value, Site) and not top:
        return f"{type(value).__name__}({value.fingerprint})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        skipped = _SAID_ELSEWHERE | {"axes", "dimensions"} if isinstance(value, Site) else set()
        parts = [
            f"{item.name}={_text(getattr(value, item.name), numbers)}"
            for item in dataclasses.fields(value)
            if item.name not in skipped
        ]
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {hashlib.sha256(repr(value.tolist()).encode()).hexdigest()}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_text(item, numbers) for item in value) + ")"
    return repr(value)


def _attempt(site: Site) -> Reason | None:
    text = "too large to be run"
    with concretely():
        for sizes in sizes_to_try(site):
            try:
                return _compare(site, sizes)
            except Exception as error:
                text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return Reason("not-proven", f"the site could not be run beside its subgraph: {text}")


def sizes_to_try(site: Site) -> list[dict[str, int]]:
    """The sizes to try in turn; an empty choice is the site's own."""
    small = MEANINGS[type(site)].small(site)
    shrinks = any(site.dimensions.get(name, size) > size for name, size in small.items())
    values = [made for made in map(tensor, {*site.inputs, *site.interior}) if made is not None]
    cost = sum(element_count(made) for made in values)
    tried: list[dict[str, int]] = []
    if cost <= CHEAP or (not shrinks and cost <= AFFORDABLE):
        tried.append({})
    if shrinks:
        tried.append(small)
    if CHEAP < cost <= AFFORDABLE and shrinks:
        tried.append({})
    return tried


def _compare(site: Site, sizes: Mapping[str, int]) -> Reason | None:
    for values, computed in observed(site, sizes):
        for got, want, node in zip(computed, reference(site, values), site.outputs, strict=True):
            if got.shape != want.shape:
                text = f"{node.name} has shape {tuple(got.shape)}, its reference {tuple(want.shape)}"
                return Reason("not-proven", text)
            error = _distance(got, want)
            if not error <= TOLERANCE:
                text = f"{node.name} differs from its reference by {error:.1e} of its largest element"
                return Reason("not-proven", text)
    return None


def observed(site: Site, sizes: Mapping[str, int]) -> Iterator[tuple[dict[Node, Any], list[Tensor]]]:
    """Random values of the inputs, and what the subgraph makes of them; at the site's own sizes if ``sizes`` is empty.

    Raises whatever an operation raises, and ValueError when the subgraph reads more than the inputs.
    """
    # A generator of its own: a proof must not move the user's random numbers.
    generator = torch.Generator().manual_seed(0)
    values: dict[Node, Any] = {node: _sample(node, _shape(node, site, sizes), generator) for node in site.inputs}
    nodes = before(_ends(site), site.inputs)
    meaning = MEANINGS[type(site)]
    resize = meaning.resize(site, sizes) if meaning.resize is not None and sizes else None
    known: dict[Node, Any] = {}
    dependent = set(values)
    for node in nodes:
        if any(read in dependent for read in node.all_input_nodes):
            dependent.add(node)
        if node.op == "call_function" and isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat):
            if meaning.resize is None:
                known[node] = size_hint(node.meta["val"])
        elif node.op == "placeholder":
            if isinstance(node.meta.get("val"), Tensor):
                raise ValueError(f"the subgraph also reads {node.name}")
            known[node] = size_hint(node.meta["val"])
            known[node] = known[node] if resize is None else resize(known[node])
        elif node in site.axes and node not in dependent:
            constant = example_value(node)
            if constant is None:
                raise ValueError(f"the constant {node.name} is not known")
            constant = constant.double() if constant.is_floating_point() else constant
            known[node] = _cut(constant, _shape(node, site, sizes))

    def resized(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if resize is not None:
            args, kwargs = _written_sizes((args, kwargs), resize)
        elif sizes and node in site.axes:
            args = _with_shape(node, args, _shape(node, site, sizes))
        return _in_double(node, *without_dropout(node, args, kwargs))

    for given in meaning.variants(site, values):
        environment = {**known, **given}
        # What is written in place must not be what the reference reads.
        fresh = {node: value.clone() if isinstance(value, Tensor) else value for node, value in environment.items()}
        made = run(_needed(nodes, fresh, site), fresh, resized, double=True)
        yield given, [made[node] for node in site.outputs]


def _written_sizes(value: Any, resize: Callable[[int], int]) -> Any:
    """``value`` with every size in it replaced."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return resize(value)
    if isinstance(value, list | tuple):
        return type(value)(_written_sizes(item, resize) for item in value)
    return {name: _written_sizes(item, resize) for name, item in value.items()} if isinstance(value, dict) else value


def _ends(site: Site) -> list[Node]:
    """The outputs, and writes inside, whose result may go unread although the memory they write is read."""
    return [*site.outputs, *(node for node in site.interior if mutates(node))]


def _needed(nodes: list[Node], known: Mapping[Node, Any], site: Site) -> list[Node]:
    """``nodes`` without what only known values are computed from."""
    needed = set(before(_ends(site), known))
    return [node for node in nodes if node in needed]


def _shape(node: Node, site: Site, sizes: Mapping[str, int]) -> tuple[int, ...]:
    if not sizes:
        return tuple(size_hint(size) for size in node.meta["val"].shape)
    if node not in site.axes:
        raise ValueError(f"the axes of {node.name} have no names")
    shape = []
    for names in site.axes[node]:
        size = 1
        for name in names:
            size *= sizes[name]
        shape.append(size)
    return tuple(shape)


def _cut(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    return value[tuple(slice(0, size) for size in shape)]


def _with_shape(node: Node, args: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The arguments of ``node`` with the sizes in them replaced, so that it computes a value of ``shape``."""
    name = operation(node)
    if name in ("view", "reshape", "_unsafe_view", "expand", "broadcast_to"):
        return (args[0], shape, *args[2:])
    if name == "unflatten":
        start = args[1] + len(shape) - len(args[2]) + 1 if args[1] < 0 else args[1]
        return (args[0], args[1], shape[start : start + len(args[2])], *args[3:])
    if name in ("slice", "narrow", "split", "split_with_sizes") and len(args) > 1:
        return _with_part(name, args, shape)
    return args


def _with_part(name: str, args: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Arguments that cut even parts of ``shape``; sites name the axes of no other parts."""
    size = shape[args[1] if name in ("slice", "narrow") else args[2] if len(args) > 2 else 0]
    if name == "slice" and ((len(args) > 4 and args[4] != 1) or -1 in args[2:4]):
        return args  # every other element, or the last one, whatever the size
    if name == "narrow":
        return (args[0], args[1], size if args[2] else 0, size)
    if name == "slice":
        part = 1 if len(args) > 2 and args[2] else 0
        return (args[0], args[1], part * size, (part + 1) * size)
    return (args[0], size if name == "split" else [size] * len(args[1]), *args[2:])


def _in_double(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A norm whose epsilon is that of its element type keeps it when it runs in another one."""
    if operation(node) == "rms_norm" and argument(node, "eps") is None:
        return args[:3], {**kwargs, "eps": default_epsilon(node.meta["val"].dtype)}
    return args, kwargs


def _sample(node: Node, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    dtype = node.meta["val"].dtype
    if dtype is torch.bool:
        # Mostly visible, and one row where everything is hidden, if there are rows.
        value = torch.rand(shape, generator=generator) < 0.7
        if len(shape) >= 2 and shape[-2] > 1:
            value[..., 0, :] = True
            value[..., -1, :] = False
        return value
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    if dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.complex128)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def _distance(got: Tensor, want: Tensor) -> float:
    got, want = got.to(torch.float64), want.to(torch.float64)
    if not torch.equal(got.isfinite(), want.isfinite()) or not torch.equal(got.isnan(), want.isnan()):
        return float("inf")
    finite = want.isfinite()
    got, want = got[finite], want[finite]
    if want.numel() == 0:
        return 0.0
    largest = float(want.abs().max())
    error = float((got - want).abs().max())
    return error / largest if largest > 0 else error
