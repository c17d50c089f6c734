"""When two parts of a graph may share one compiled piece: the key is everything the compiler looks at but the values.

Operations, constants, shapes, strides, dtypes, devices; which inputs need a gradient, are parameters, are the same
tensor or lie at an odd address. Values may differ: weights are inputs like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..patterns.describe import constant_tensor, expression
from ..patterns.graph import NormalGraph
from ..patterns.nodes import mutates
from ..patterns.segments import frozen
from .cutting import Part

ALIGNMENT = 16
"""Bytes; Inductor asks whether an input begins at a multiple of it."""

_SMALL = 64


def key_of(graph: NormalGraph, part: Part, examples: Sequence[Any]) -> tuple[Any, ...]:
    """A hashable key, equal for parts that compile to the same code. ``examples`` are the values of its inputs."""
    number = {node: -1 - index for index, node in enumerate(part.inputs)}
    first: dict[int, int] = {}
    # What a part writes to may show in other inputs: in the same ones in every part that shares its piece.
    memory: dict[int, int] | None = {} if any(map(mutates, part.nodes)) else None
    lines: list[Any] = []
    for index, (node, example) in enumerate(zip(part.inputs, examples, strict=True)):
        same = first.setdefault(id(example), index)
        gradient = isinstance(example, Tensor) and example.requires_grad
        # The graph knows symbolic sizes where the example, a real tensor, has numbers.
        lines.append((_type(node.meta.get("val", example)), gradient, graph.is_static(node), same))
        if memory is not None and isinstance(example, Tensor) and example.layout is torch.strided:
            lines.append(memory.setdefault(example.untyped_storage()._cdata, index))
    for index, node in enumerate(part.nodes):
        for operand in node.all_input_nodes:
            if operand.op == "get_attr" and operand not in number:
                number[operand] = index + (1 << 32)
                lines.append(("constant", _constant(operand)))
        number[node] = index
        arguments = (frozen(node.args, number), frozen(tuple(sorted(node.kwargs.items())), number))
        lines.append((node.target, arguments, _type(node.meta.get("val"))))
    return (*lines, tuple(number[node] for node in part.outputs))


def _type(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Tensor):
        strided = value.layout is torch.strided
        return (
            value.dtype,
            value.device,
            tuple(expression(size) for size in value.shape),
            tuple(expression(stride) for stride in value.stride()) if strided else str(value.layout),
            _aligned(value),
            value.is_conj(),
            value.is_neg(),
        )
    if isinstance(value, list | tuple):
        return tuple(_type(item) for item in value)
    return (type(value).__name__, str(value))


def _aligned(value: Tensor) -> bool | str:
    if value.layout is not torch.strided:
        return False
    offset = value.storage_offset()
    return (offset * value.element_size()) % ALIGNMENT == 0 if isinstance(offset, int) else str(offset)


def _constant(node: Node) -> Any:
    """A constant's content when it is small, else which tensor (or subgraph) it is."""
    value = constant_tensor(node)
    if value is not None and type(value) is Tensor and not value.is_meta and value.numel() <= _SMALL:
        return (value.dtype, value.device, tuple(value.shape), value.stride(), str(value.tolist()))
    return str(node.target)
