"""Linear layers: a contraction of activations with a weight over the last axis, bias or not, weight stored either way."""

from __future__ import annotations

from torch.fx import Node

from .describe import description, element_bytes, named_dimensions, shape_of
from .graph import NormalGraph
from .nodes import argument, operation, scalar, tensor
from .sites import Linear, Site, Sites


def find_linear(graph: NormalGraph, sites: Sites) -> list[Site]:
    """Every ``aten.linear``, and every ``addmm``, ``mm`` or ``matmul`` with a two-dimensional weight on the right.

    A weight is a parameter, a constant, or computed from those alone. Linear time; no guard on a symbolic size.
    """
    fixed = _fixed(graph)
    found: list[Site] = []
    for node in graph.module.graph.nodes:
        parts = _read(node, fixed)
        if parts is not None:
            found.append(_site(node, *parts, number=len(found)))
    return found


def _fixed(graph: NormalGraph) -> set[Node]:
    """Nodes whose value depends on parameters and constants only."""
    fixed: set[Node] = set()
    for node in graph.module.graph.nodes:
        operands = node.all_input_nodes
        computed = node.op == "call_function" and bool(operands) and all(operand in fixed for operand in operands)
        if computed or node.op == "get_attr" or graph.is_static(node):
            fixed.add(node)
    return fixed


def _read(node: Node, fixed: set[Node]) -> tuple[Node, Node, Node | None, bool] | None:
    """``(input, weight, bias, transposed)`` of a node that is a linear layer, else None."""
    name = operation(node)
    if name == "linear":
        return argument(node, "input"), argument(node, "weight"), argument(node, "bias"), False
    bias: Node | None = None
    if name == "addmm":
        bias, left, right = node.args[:3]  # type: ignore[assignment]
        if scalar(argument(node, "beta")) != 1 or scalar(argument(node, "alpha")) != 1 or _rank(bias) != 1:
            return None
    elif name in ("mm", "matmul"):
        left, right = node.args[:2]  # type: ignore[assignment]
    else:
        return None
    if right not in fixed or left in fixed or _rank(right) != 2 or _rank(left) < 2:
        return None
    # A transposed view of a parameter is the parameter stored the other way round.
    if operation(right) in ("t", "numpy_T") or (operation(right) in ("transpose", "permute") and _rank(right) == 2):
        return left, right.args[0], bias, False
    return left, right, bias, True


def _rank(node: Node | None) -> int:
    value = tensor(node)
    return -1 if value is None else value.dim()


def _site(node: Node, input: Node, weight: Node, bias: Node | None, transposed: bool, *, number: int) -> Linear:
    operands = [input, weight, *([bias] if bias is not None else [])]
    interior = {node}
    source = node.args[1] if operation(node) != "addmm" else node.args[2]
    if isinstance(source, Node) and source is not weight:
        interior.add(source)  # the view that transposes the parameter
    *batch, wide = shape_of(input)
    rows: object = 1
    for size in batch:
        rows = rows * size  # type: ignore[operator]
    symbols, dimensions = named_dimensions(M=rows, K=wide, N=shape_of(node)[-1])
    m, k, n = symbols["M"], symbols["K"], symbols["N"]
    return Linear(
        id=f"linear.{number}",
        input=input,
        weight=weight,
        bias=bias,
        transposed=transposed,
        form=operation(node),
        flops=2 * m * k * n,
        bytes=(m * k + k * n + m * n) * element_bytes(node),
        dimensions=dimensions,
        **description(node, frozenset(interior), operands, [node]),
    )
