"""Element-wise functions with numbers of their own: limits, slopes and offsets, read from where they are written."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from .nodes import operation, scalar, tensor

FAMILIES: dict[str, Callable[..., Tensor]] = {
    # Ramachandran et al. 2017, "Searching for activation functions", section 4.
    "swish": lambda x, slope: x * torch.sigmoid(slope * x),
    "leaky_relu": lambda x, slope: torch.where(x > 0, x, slope * x),
    "elu": lambda x, slope: torch.where(x > 0, x, slope * torch.expm1(x.clamp(max=0))),
    "softplus": lambda x, slope: functional.softplus(slope * x) / slope,
    "capped_relu": lambda x, limit: x.clamp(min=0).clamp(max=limit),
}
"""Functions of ``x`` and numbers written in the graph, by name."""

GATED: dict[str, Callable[..., Tensor]] = {
    # Both sides limited, the linear side moved (OpenAI, gpt-oss, 2025, section 2.3; with slope one and no offset in
    # DeepSeek-V4).
    "clamped_swiglu": lambda gate, up, limit, slope, offset: (
        gate.clamp(max=limit) * torch.sigmoid(slope * gate.clamp(max=limit)) * (up.clamp(-limit, limit) + offset)
    ),
    "capped_swiglu": lambda gate, up, limit: functional.silu(gate).clamp(max=limit) * up.clamp(-limit, limit),
}
"""Functions of gate and up together that are no product with an activation, and of numbers, by name."""

# What a number is that such an operation is given; all others are slopes.
_LIMITING = frozenset({"clamp", "clamp_min", "clamp_max", "hardtanh", "minimum", "maximum", "min", "max"})
_MOVING = frozenset({"add", "sub", "rsub"})
_COMPARING = frozenset({"gt", "ge", "lt", "le"})

# Numbers of one kind that are tried; no function has as many.
_MOST = 6
# Larger ones are infinity, spelled as the largest number of a type.
_LARGEST = 1e6

Numbers = Mapping[str, tuple[float, ...]]


def written(nodes: Iterable[Node]) -> Numbers:
    """The numbers that arithmetic on real values is given, without their signs: limits, slopes and offsets."""
    found: dict[str, set[float]] = {"limit": set(), "slope": {1.0}, "offset": {0.0}}
    for node in nodes:
        made, name = tensor(node), operation(node).removesuffix("_")
        if made is None or not (made.dtype.is_floating_point or name in _COMPARING):
            continue
        kind = "limit" if name in _LIMITING else "offset" if name in _MOVING else "slope"
        for item in (*node.args, *node.kwargs.values()):
            value = _number(item)
            if value is not None and 0 < abs(value) < _LARGEST:
                found[kind].add(abs(value))
    return {kind: tuple(sorted(values)[:_MOST]) for kind, values in found.items()}


def _number(item: Any) -> float | None:
    value = scalar(item) if isinstance(item, Node) else item
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def with_numbers(
    functions: Mapping[str, Callable[..., Tensor]], numbers: Numbers
) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Each function with every choice of the numbers it takes, which its arguments name."""
    for name, function in functions.items():
        kinds = [given for given in inspect.signature(function).parameters if given in numbers]
        for constants in itertools.product(*(numbers[kind] for kind in kinds)):
            yield name, constants


def around(numbers: Numbers) -> Tensor:
    """Points on both sides of every number and of its inverse, where a function that compares with it bends."""
    bends = {value for values in numbers.values() for value in values if value}
    bends |= {1 / value for value in bends if math.isfinite(1 / value) and 1 / value < _LARGEST}
    points = [sign * part * bend for bend in sorted(bends) for part in (0.5, 0.9, 1.1, 2.0) for sign in (1, -1)]
    return torch.tensor(points, dtype=torch.float64)
