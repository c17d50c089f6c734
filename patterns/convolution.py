"""Convolutions, whatever their rank, as sites with every setting in a field."""

from __future__ import annotations

import math
from typing import Any

from torch.fx import Node

from .describe import description, element_bytes, named_dimensions, shape_of
from .effects import effects_of
from .graph import NormalGraph
from .nodes import argument, operation, tensor
from .reasons import Reason
from .sites import Convolution, Site, Sites

_PLAIN = ("conv1d", "conv2d", "conv3d")
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_AXES = ("D", "H", "W")


def find_convolution(graph: NormalGraph, sites: Sites) -> list[Site]:
    """Every convolution and transposed convolution of the graph, in order.

    Linear time; no guard on a symbolic size.
    """
    effects = effects_of(graph)
    found: list[Site] = []
    for node in graph.module.graph.nodes:
        name = operation(node)
        if name not in _PLAIN and name not in _TRANSPOSED and name != "convolution":
            continue
        site = _site(node, len(found))
        reason = site if isinstance(site, Reason) else effects.mutation(site.inputs, site.interior)
        if isinstance(site, Convolution) and reason is None:
            found.append(site)
        elif isinstance(reason, Reason):
            sites.refusals.append(reason)
    return found


def _site(node: Node, number: int) -> Convolution | Reason:
    name = operation(node)
    input, weight, bias = (argument(node, key) for key in ("input", "weight", "bias"))
    rank = len(shape_of(weight)) - 2
    transposed = name in _TRANSPOSED or (name == "convolution" and argument(node, "transposed") is True)
    if len(shape_of(input)) != rank + 2:
        return Reason("unsupported-shape", "a convolution without a batch axis", (node.name,))
    padding = argument(node, "padding")
    settings = [_tuple(argument(node, key), rank) for key in ("stride", "dilation")]
    around = padding if isinstance(padding, str) else _tuple(padding, rank)
    extra = _tuple(argument(node, "output_padding"), rank) if transposed else (0,) * rank
    groups = argument(node, "groups")
    if any(not isinstance(item, int) for item in (*settings[0], *settings[1], *extra, groups)):
        return Reason("unsupported-shape", "a setting of the convolution is not a constant", (node.name,))
    operands = [input, weight, *([bias] if bias is not None else [])]
    places = _AXES[3 - rank :]
    shape, kernel = shape_of(node), shape_of(weight)
    symbols, dimensions = named_dimensions(
        N=shape[0],
        C=shape_of(input)[1],
        O=shape[1],
        **dict(zip(places, shape[2:], strict=True)),
        **{f"K{place}": size for place, size in zip(places, kernel[2:], strict=True)},
        **{f"I{place}": size for place, size in zip(places, shape_of(input)[2:], strict=True)},
    )
    pixels = symbols["N"] * math.prod(symbols[place] for place in places)
    window = math.prod(symbols[f"K{place}"] for place in places)
    source = symbols["N"] * math.prod(symbols[f"I{place}"] for place in places)
    steps = source if transposed else pixels
    elements = source * symbols["C"] + pixels * symbols["O"] + window * symbols["C"] * symbols["O"] / groups
    return Convolution(
        id=f"conv.{number}",
        input=input,
        weight=weight,
        bias=bias,
        stride=settings[0],
        padding=around,
        dilation=settings[1],
        groups=groups,
        transposed=transposed,
        output_padding=extra,
        form=name,
        flops=2 * steps * window * symbols["C"] * symbols["O"] / groups,
        bytes=elements * element_bytes(node),
        dimensions=dimensions,
        **description(node, frozenset({node}), operands, [node]),
    )


def _tuple(value: Any, rank: int) -> tuple[Any, ...]:
    """One setting for each axis; a single number holds for all."""
    items = tuple(value) if isinstance(value, list | tuple) else (value,)
    return items * rank if len(items) == 1 else items


def pointwise(site: Convolution) -> bool:
    """True for a convolution that is a linear layer over the channels of each place."""
    kernel = tensor(site.weight)
    if kernel is None or site.transposed or site.groups != 1 or not isinstance(site.padding, tuple):
        return False
    ones = (*kernel.shape[2:], *site.stride)
    return all(isinstance(size, int) and size == 1 for size in ones) and not any(site.padding)
