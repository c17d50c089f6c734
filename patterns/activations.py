"""Element-wise functions by what they compute: a region of arithmetic is recognised by running it on sample points.

Testing values instead of matching spellings finds a function however it is written (``x * sigmoid(x)``, ``silu``,
``x / (1 + exp(-x))``); the points are dense enough to tell the known functions apart by far more than rounding.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from .evaluate import concretely
from .families import FAMILIES, GATED, Numbers, around, with_numbers, written
from .nodes import CASTS, COPIES, RESHAPES, argument, mutates, operation, scalar

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": functional.relu,
    "relu_squared": lambda x: functional.relu(x).square(),
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "mish": functional.mish,
    "softplus": functional.softplus,
    "elu": functional.elu,
    "selu": functional.selu,
    "leaky_relu": functional.leaky_relu,
    "relu6": functional.relu6,
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "softsign": functional.softsign,
}
"""The element-wise functions a feed-forward layer may have, by name."""

PARAMETRIC: dict[str, Callable[..., Tensor]] = {
    # Yu et al. 2022, "MetaFormer baselines for vision", equation 8.
    "star_relu": lambda x, scale, offset: scale * functional.relu(x).square() + offset,
    # Huang and Schlag 2024, "Deriving activation functions using integration", equation 8.
    "xielu": lambda x, above, below, slope, most: torch.where(
        x > 0,
        functional.softplus(above) * x * x + slope * x,
        (torch.expm1(torch.minimum(x, most)) - x) * (slope + functional.softplus(below)) + slope * x,
    ),
    "prelu": lambda x, slope: torch.where(x > 0, x, slope * x),
}
"""Functions with stored numbers of their own, given after ``x``, by name."""


def activate(name: str, x: Tensor, parameters: Sequence[Tensor] = (), constants: Sequence[float] = ()) -> Tensor:
    """``x`` through the function called ``name``; ``parameters`` are its own stored numbers, each of one element.

    With ``constants`` it is a function of :data:`FAMILIES`, which takes those numbers.
    """
    if constants:
        return FAMILIES[name](x, *constants)
    return PARAMETRIC[name](x, *parameters) if name in PARAMETRIC else ACTIVATIONS[name](x)


def gate_with(
    name: str, gate: Tensor, up: Tensor, parameters: Sequence[Tensor] = (), constants: Sequence[float] = ()
) -> Tensor:
    """The hidden value of a gated layer: the function of ``gate``, times ``up``; or one of :data:`GATED`."""
    if name in GATED:
        return GATED[name](gate, up, *constants)
    return activate(name, gate, parameters, constants) * up


ARITHMETIC = frozenset(
    {
        "add",
        "addcmul",
        "addcdiv",
        "sub",
        "rsub",
        "mul",
        "div",
        "true_divide",
        "neg",
        "pow",
        "square",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "abs",
    }
    | {"exp", "expm1", "log", "log1p", "erf", "erfc", "tanh", "sigmoid", "log_sigmoid", "clamp", "clamp_min"}
    | {"clamp_max", "maximum", "minimum", "relu", "relu6", "gelu", "silu", "mish", "softplus", "elu", "selu", "celu"}
    | {"prelu", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid", "softsign", "threshold"}
    | {"where", "masked_fill", "gt", "ge", "lt", "le", "sign", "heaviside"}
)
"""Operations that act on each element alone (given that their tensor operands do)."""

_PASSED = CASTS | COPIES | RESHAPES | {"dropout"}

# Hand-written constants (sqrt(2 / pi) to eight digits) are off by 1e-8; the nearest two functions here by 5e-4.
_TOLERANCE = 1e-6


def _samples(numbers: Numbers) -> tuple[Tensor, Tensor]:
    """Two independent sample vectors covering every bend and both tails, and both sides of ``numbers``."""
    generator = torch.Generator().manual_seed(0)
    tails = torch.tensor([-30.0, 30.0]).double()
    first = torch.cat([torch.linspace(-9.0, 9.0, 61, dtype=torch.float64), tails, around(numbers)])
    second = torch.randn(first.shape, generator=generator, dtype=torch.float64) * 3
    second[-len(around(numbers)) :] = around(numbers)
    return first, second[torch.randperm(len(second), generator=generator)]


# The activation, the value it is applied to, the order of its stored numbers, and those written in the graph.
Found = tuple[str, int, tuple[int, ...], tuple[float, ...]]

_NAMED: dict[str, Found | None] = {}


def elementwise(node: Node) -> bool:
    """True for an operation that acts on each element alone, in place or not."""
    name = operation(node)
    if name in ("min", "max"):
        return len(node.args) == 2 and isinstance(node.args[1], Node)
    return name in ARITHMETIC or (mutates(node) and name.removesuffix("_") in ARITHMETIC)


def sample_points(region: Sequence[Node]) -> Tensor:
    """Points on which two functions of :data:`ACTIVATIONS` differ by far more than rounding, and ``region`` bends."""
    return _samples(written(region))[0]


def nearest(result: Tensor, points: Tensor) -> str | None:
    """The activation that gives ``result`` on ``points``, if any."""
    return next((name for name, function in ACTIVATIONS.items() if _equal(result, function(points))), None)


def recognise(region: Sequence[Node], leaves: Mapping[Node, int], own: Sequence[Node] = ()) -> Found | None:
    """What a region of arithmetic computes from one or two values: the activation, and the value it is applied to.

    ``region`` is in graph order and its last node is the result; ``leaves`` says which value (0 or 1) each node it
    reads is. With two values the result is the activation of one times the other; with one it is the activation
    itself. ``own`` are stored numbers it reads besides; the order in which the activation takes them is the third
    part of the result, numbers written in the region that it takes are the fourth. None: no known function.
    """
    key = _text(region, {node: f"x{index}" for node, index in leaves.items()} | {n: f"p{i}" for i, n in enumerate(own)})
    if key not in _NAMED:
        with concretely():
            _NAMED[key] = _compare(region, leaves, own)
    return _NAMED[key]


def _compare(region: Sequence[Node], leaves: Mapping[Node, int], own: Sequence[Node]) -> Found | None:
    numbers = written(region)
    samples = _samples(numbers)
    fresh = [sample.clone() for sample in samples]  # the region may write to what it reads
    stored = [torch.tensor([value], dtype=torch.float64) for value in (0.7, -0.4, 1.3, -1.9)[: len(own)]]
    try:
        result = _run(
            region, {node: fresh[index] for node, index in leaves.items()} | dict(zip(own, stored, strict=True))
        )
    except Exception:
        return None  # whatever cannot be run on numbers is not one of the known functions
    gated = len(set(leaves.values())) == 2
    for name, order, constants in _candidates(stored, numbers, gated):
        given = [stored[index] for index in order]
        for active in (0, 1) if gated else (0,):
            one, other = samples[active], samples[1 - active]
            made = gate_with(name, one, other, given, constants) if gated else activate(name, one, given, constants)
            if _equal(result, made):
                return name, active, order, constants
    return None


def _candidates(
    stored: Sequence[Tensor], numbers: Numbers, gated: bool
) -> Iterator[tuple[str, tuple[int, ...], tuple[float, ...]]]:
    """Functions that take as many stored numbers, with every order of them, or numbers that are written."""
    if not stored:
        yield from ((name, (), ()) for name in ACTIVATIONS)
        for name, constants in with_numbers(FAMILIES | (GATED if gated else {}), numbers):
            yield name, (), constants
        return
    for name, function in PARAMETRIC.items():
        if len(inspect.signature(function).parameters) == len(stored) + 1:
            yield from ((name, order, ()) for order in itertools.permutations(range(len(stored))))


def _equal(left: Any, right: Tensor) -> bool:
    if not isinstance(left, Tensor) or left.shape != right.shape or not bool(left.isfinite().all()):
        return False
    return bool(((left - right).abs() <= _TOLERANCE * (1 + right.abs())).all())


def _run(region: Sequence[Node], values: Mapping[Node, Tensor]) -> Any:
    environment = dict(values)
    for node in region:
        if operation(node) in _PASSED:
            environment[node] = environment[node.args[0]]  # type: ignore[index]
            continue
        args = [_value(item, environment) for item in node.args]
        kwargs = {name: _value(item, environment) for name, item in node.kwargs.items()}
        environment[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return environment[region[-1]]


def _value(item: Any, environment: Mapping[Node, Tensor]) -> Any:
    if not isinstance(item, Node):
        return item
    if item in environment:
        return environment[item]
    number = scalar(item)
    if number is None:
        raise ValueError(f"{item.name} is not a number")
    return torch.tensor(number, dtype=torch.float64)


def _text(region: Sequence[Node], read: Mapping[Node, str]) -> str:
    """The region as text, equal for equal functions whatever the nodes are called; ``read`` names what it reads."""
    number = dict(read)

    def of(item: Any) -> str:
        return number.get(item) or repr(scalar(item)) if isinstance(item, Node) else repr(item)

    lines = []
    for index, node in enumerate(region):
        if operation(node) in _PASSED:
            number[node] = of(node.args[0])
            continue
        lines.append(f"{node.target}({', '.join(map(of, node.args))}, {[*map(of, node.kwargs.values())]})")
        number[node] = f"%{index}"
    return "\n".join(lines)


def dropout_probability(node: Node) -> float | None:
    """The probability of an active dropout, 0.0 for one that does nothing; None when it is not a constant."""
    probability, training = scalar(argument(node, "p")), argument(node, "train")
    if training is False or probability == 0.0:
        return 0.0
    return probability if training is True else None
