"""Run a part of a graph on small random float64 tensors: the ground on which scan sites are proven."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate, map_arg

CANNOT_BE_RUN = (RuntimeError, ValueError, IndexError, TypeError, MemoryError)
"""What operators raise on sizes or values they do not take: the region is not proven, and so no site."""

LARGEST_PROOF = 1 << 27
"""Elements that all values of a proof may have together; above it a region is refused rather than run."""

_PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)
_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


class Region:
    """The nodes from ``inputs`` to ``outputs``, to be run on other sizes and in float64.

    ``inputs`` become all that the region reads: those given, then placeholders and constants met on the way.
    ``time`` is the axis of an input that must keep its size; every other axis longer than 8 gets a small prime for
    its size, equal ones the same. Sizes written in the region follow, except those in ``keep``, which may be lengths of
    time. A region whose views do not survive that runs at its own sizes.
    """

    def __init__(
        self,
        order: Mapping[Node, int],
        inputs: Sequence[Node],
        outputs: Sequence[Node],
        keep: Collection[int],
        time: Mapping[Node, int],
    ) -> None:
        self.time = time
        self.keep = keep
        self.outputs = tuple(outputs)
        inside = sorted(subgraph(outputs, set(inputs)), key=order.__getitem__)
        self.nodes = [node for node in inside if node.op == "call_function"]
        self.inputs = (*dict.fromkeys(inputs), *(node for node in inside if node.op != "call_function"))
        self.sizes = _shrunk(self.inputs, keep, time)

    def samples(self, generator: torch.Generator, *, shrunk: bool, unit: Collection[Node] = ()) -> dict[Node, Any]:
        """Random values of the inputs (and of placeholders read in between); those in ``unit`` are near 1 in size."""
        sizes = self.sizes if shrunk else {}
        values: dict[Node, Any] = {}
        for node in self.inputs:
            value = node.meta["val"] if "val" in node.meta else attribute(node)
            if isinstance(value, Tensor):
                lengths = [_hint(size) for size in value.shape]
                shape = [
                    length if axis == self.time.get(node) else sizes.get(length, length)
                    for axis, length in enumerate(lengths)
                ]
                values[node] = _drawn(value.dtype, shape, generator, unit=node in unit)
            elif isinstance(value, GraphModule):
                values[node] = value  # the body of an operator
            else:
                values[node] = sizes.get(_hint(value), _hint(value))
        return values

    def run(self, values: Mapping[Node, Any], *, shrunk: bool) -> dict[Node, Any]:
        """Every value of the region. Raises whatever the operators raise on these shapes."""
        env: dict[Node, Any] = dict(values)
        sizes = {size: small for size, small in self.sizes.items() if size not in self.keep} if shrunk else {}
        total = 0
        for node in self.nodes:
            args, kwargs = doubled(node.args), doubled(node.kwargs)
            if not node.all_input_nodes or str(node.target) in _SIZED:
                args, kwargs = _resized(args, sizes), _resized(kwargs, sizes)
            args, kwargs = map_arg((args, kwargs), env.__getitem__)
            target: Any = node.target
            value = widened(target(*args, **kwargs))
            env[node] = value
            if isinstance(value, Tensor) and value._base is None:
                total += value.numel()
                if total > LARGEST_PROOF:
                    raise MemoryError("the region is too large to be proven by running it")
        return env


_SIZED = {
    f"aten.{name}"
    for name in ("view.default", "reshape.default", "expand.default", "new_zeros.default", "new_full.default")
}


def attribute(node: Any) -> Any:
    """What a ``get_attr`` node reads; None for any other value."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        value = getattr(value, part, None)
    return value


def subgraph(outputs: Iterable[Node], inputs: Collection[Node]) -> set[Node]:
    """Every node that ``outputs`` are computed from, down to ``inputs`` (not included)."""
    found: set[Node] = set()
    todo = list(outputs)
    while todo:
        node = todo.pop()
        if node not in found and node not in inputs:
            found.add(node)
            todo.extend(node.all_input_nodes)
    return found


def sample(shape: Sequence[int], generator: torch.Generator, *, unit: bool = False) -> Tensor:
    """Random float64; with ``unit`` of magnitude near 1 and either sign, so that long products neither die nor grow."""
    value = torch.rand(tuple(shape), generator=generator, dtype=torch.float64) * 2 - 1
    return value.sign() * (1 + 0.03 * value) if unit else value


def _drawn(dtype: torch.dtype, shape: Sequence[int], generator: torch.Generator, *, unit: bool) -> Tensor:
    """Truth values at random, zeros (a valid index everywhere) for integers, else :func:`sample`."""
    if dtype == torch.bool:
        return torch.rand(tuple(shape), generator=generator) < 0.5
    if not dtype.is_floating_point and not dtype.is_complex:
        return torch.zeros(tuple(shape), dtype=dtype)
    drawn = sample(shape, generator, unit=unit)
    if dtype.is_complex:  # turned by any angle
        return torch.polar(drawn.abs(), 4 * sample(shape, generator))
    return drawn


def agree(a: Any, b: Any) -> bool:
    """Equal up to float64 rounding over long sums and products."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
        return False
    scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
    return bool(((a - b).abs() <= 1e-9 * scale).all())


def _shrunk(nodes: Iterable[Node], keep: Collection[int], time: Mapping[Node, int]) -> dict[int, int]:
    found: set[int] = set()
    for node in nodes:
        value = node.meta.get("val")
        for axis, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if _hint(size) > 8 and axis != time.get(node) and (node in time or _hint(size) not in keep):
                found.add(_hint(size))
    primes = [prime for prime in _PRIMES if prime not in keep]
    return {size: min(size, prime) for size, prime in zip(sorted(found), primes, strict=False)}


def _hint(size: Any) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


def _resized(args: Any, sizes: Mapping[int, int]) -> Any:
    return map_aggregate(
        args,
        lambda item: (
            sizes.get(_hint(item), _hint(item))
            if isinstance(item, int | torch.SymInt) and not isinstance(item, bool)
            else item
        ),
    )


def widened(value: Any) -> Any:
    """A result in float64 (complex128), whatever default its operator has."""
    return value.to(_WIDE[value.dtype]) if isinstance(value, Tensor) and value.dtype in _WIDE else value


def doubled(args: Any) -> Any:
    """Arguments with every real element type replaced by float64, complex ones alike, and every device by the CPU."""
    return map_aggregate(args, _on_trial)


def _on_trial(item: Any) -> Any:
    if isinstance(item, torch.device):
        return torch.device("cpu")
    return _WIDE.get(item, item) if isinstance(item, torch.dtype) else item
