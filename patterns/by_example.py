"""Operations that read a tensor only for its type or its sizes say the type and the sizes instead.

``x.type_as(y)`` is a cast, but in the graph it hangs on ``y``, which then seems to reach into whatever reads the cast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from .nodes import operation, tensor

aten = torch.ops.aten

_BY_SHAPE = {"expand_as": aten.expand.default, "view_as": aten.view.default, "reshape_as": aten.reshape.default}


def without_examples(graph: Graph) -> int:
    """Replace them in ``graph``; returns how many. A shape with a symbolic size, or another device, stays as it is."""
    count = 0
    for node in graph.nodes:
        written = _spelled_out(node)
        if written is not None:
            node.target, node.args = written
            count += 1
    return count


def _spelled_out(node: Node) -> tuple[Any, tuple[Any, ...]] | None:
    name = operation(node)
    if name != "type_as" and name not in _BY_SHAPE:
        return None
    source, example = tensor(node.args[0]), tensor(node.args[1])
    if source is None or example is None:
        return None
    if name == "type_as":
        same = source.device == example.device
        return (aten.to.dtype, (node.args[0], example.dtype)) if same else None
    shape = list(example.shape)
    return (_BY_SHAPE[name], (node.args[0], shape)) if all(isinstance(size, int) for size in shape) else None
