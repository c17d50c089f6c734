"""Normalisation layers: ATen's own operators, and root-mean-square and layer norms written out in arithmetic."""

from __future__ import annotations

import math
from typing import Any

import sympy
from torch.fx import Node

from .describe import description, element_bytes, named_dimensions, same, shape_of, size_hint
from .effects import Effects, effects_of
from .graph import NormalGraph
from .linear import row_names
from .nodes import argument, operation, tensor
from .norms_spelled import Spelled, spelled
from .provenance import between
from .reasons import Reason
from .reference import default_epsilon
from .sites import Norm, Site, Sites

_OPERATORS = ("layer_norm", "rms_norm", "group_norm", "batch_norm")

# Operations on each element: sums, subtraction, square, product and the affine part.
_FLOPS = {"layer": 7, "rms": 4, "group": 7, "batch": 4}


def find_norms(graph: NormalGraph, sites: Sites) -> list[Site]:
    """Layer, rms, group and batch norms in graph order, each with its scale and shift where they follow directly.

    A norm whose statistics are read elsewhere is refused (``weights-escape``), and a batch norm that updates running
    statistics (``mutation``). Linear time; no guard on a symbolic size.
    """
    effects = effects_of(graph)
    found: list[Site] = []
    for node in graph.module.graph.nodes:
        parts: Spelled | Reason | None
        parts = _operator(node) if operation(node) in _OPERATORS else spelled(node)
        if parts is None:
            continue
        site = parts if isinstance(parts, Reason) else _site(parts, effects, len(found))
        if isinstance(site, Reason):
            sites.refusals.append(site)
        else:
            found.append(site)
    return found


def _operator(node: Node) -> Spelled | Reason:
    """A norm that is one operator."""
    name = operation(node)
    x, weight = argument(node, "input"), argument(node, "weight")
    if name == "rms_norm":
        epsilon = argument(node, "eps")
        if epsilon is None:
            epsilon = default_epsilon(x.meta["val"].dtype)
        return Spelled(node, node, x, "rms", epsilon, _trailing(argument(node, "normalized_shape")), weight)
    bias = argument(node, "bias")
    if name == "layer_norm":
        dims = _trailing(argument(node, "normalized_shape"))
        return Spelled(node, node, x, "layer", argument(node, "eps"), dims, weight, bias)
    if name == "group_norm":
        groups = argument(node, "num_groups")
        return Spelled(node, node, x, "group", argument(node, "eps"), (), weight, bias, groups=groups)
    mean, variance = argument(node, "running_mean"), argument(node, "running_var")
    if argument(node, "training"):
        if mean is not None or variance is not None:
            return Reason("mutation", "a batch norm in training updates its running statistics", (node.name,))
    return Spelled(node, node, x, "batch", argument(node, "eps"), (), weight, bias, mean=mean, variance=variance)


def _trailing(shape: Any) -> tuple[int, ...]:
    return tuple(range(-len(shape), 0))


def _site(parts: Spelled, effects: Effects, number: int) -> Norm | Reason:
    x, output = parts.input, parts.output
    operands = [n for n in (parts.weight, parts.bias, parts.mean, parts.variance) if n is not None]
    inputs = tuple(dict.fromkeys((x, *operands)))
    interior = between(x, inputs, output)
    reason = effects.mutation(inputs, interior) or effects.escape(interior, (output,))
    if reason is not None:
        return reason
    axes, symbols, dimensions = _axes(parts, inputs, interior)
    elements: sympy.Expr = math.prod((symbols[name] for axis in axes[x] for name in axis), start=sympy.Integer(1))
    stored = sum(sympy.Integer(_count(node)) for node in operands)
    return Norm(
        id=f"norm.{number}",
        input=x,
        norm=parts.norm,
        weight=parts.weight,
        bias=parts.bias,
        epsilon=parts.epsilon,
        dims=parts.dims,
        groups=parts.groups,
        mean=parts.mean,
        variance=parts.variance,
        form=operation(parts.anchor),
        flops=_FLOPS[parts.norm] * elements,
        bytes=(2 * elements + stored) * element_bytes(output),
        dimensions=dimensions,
        axes=axes,
        **description(parts.anchor, interior, inputs, (output,)),
    )


def _count(node: Node) -> int:
    return math.prod(map(size_hint, shape_of(node)))


def _axes(
    parts: Spelled, inputs: tuple[Node, ...], interior: frozenset[Node]
) -> tuple[dict[Node, tuple[tuple[str, ...], ...]], dict[str, sympy.Symbol], dict[str, int]]:
    """Names for the axes of every value: rows, ``D`` for what is normalised over, ``C`` channels of group and batch."""
    shape = shape_of(parts.input)
    rank = len(shape)
    if parts.norm in ("group", "batch"):
        names = ["N", "C", *(f"P{index}" for index in range(rank - 2))][:rank]
    else:
        over = [dim % rank for dim in parts.dims]
        rows = iter(row_names(rank - len(over)))
        features = iter(["D"] if len(over) == 1 else [f"D{index}" for index in range(len(over))])
        names = [next(features) if axis in over else next(rows) for axis in range(rank)]
    symbols, dimensions = named_dimensions(**dict(zip(names, shape, strict=True)))
    axes: dict[Node, tuple[tuple[str, ...], ...]] = {}
    for node in (*inputs, *interior):
        made = tensor(node)
        if made is None or made.dim() > rank:
            continue
        if node is not parts.input and node not in interior and parts.norm in ("group", "batch"):
            axes[node] = (("C",),)
            continue
        start = rank - made.dim()
        axes[node] = tuple(
            (names[start + index],) if same(size, shape[start + index]) and not same(size, 1) else ()
            for index, size in enumerate(made.shape)
        )
    axes[parts.input] = tuple((name,) for name in names)
    return axes, symbols, dimensions
