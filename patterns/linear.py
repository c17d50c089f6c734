"""Linear layers: activations times a weight over the last axis, bias or not, weight stored either way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from .axes import contraction
from .describe import description, element_bytes, named_dimensions, same, shape_of
from .effects import effects_of
from .graph import NormalGraph
from .nodes import argument, mutates, operation, readers, scalar, tensor
from .sites import Linear, Site, Sites

_TRANSPOSES = ("t", "numpy_T", "transpose", "permute", "mT", "swapaxes", "swapdims")


def find_linear(graph: NormalGraph, sites: Sites) -> list[Site]:
    """Every ``aten.linear``, and every ``addmm``, ``mm``, ``matmul`` or ``einsum`` of activations with a matrix.

    The matrix of the latter is a parameter, a constant, or computed from those alone; a bias added right after belongs
    to the layer. Refused: a layer whose operands are written while it runs. Linear time; no guard on a symbolic size.
    """
    fixed = fixed_nodes(graph)
    effects = effects_of(graph)
    found: list[Site] = []
    for node in graph.module.graph.nodes:
        parts = _read(node, fixed)
        if parts is None:
            continue
        site = _site(parts, number=len(found))
        reason = effects.mutation(site.inputs, site.interior)
        if reason is None:
            found.append(site)
        else:
            sites.refusals.append(reason)
    return found


def fixed_nodes(graph: NormalGraph) -> set[Node]:
    """Nodes whose value depends on parameters, buffers and constants only."""
    fixed: set[Node] = set()
    for node in graph.module.graph.nodes:
        operands = node.all_input_nodes
        computed = node.op == "call_function" and bool(operands) and all(operand in fixed for operand in operands)
        if (computed and not mutates(node)) or node.op == "get_attr" or graph.is_static(node):
            fixed.add(node)
    return fixed


@dataclass(eq=False)
class _Parts:
    product: Node
    output: Node
    input: Node
    weight: Node
    bias: Node | None = None
    transposed: bool = False


def _read(node: Node, fixed: set[Node]) -> _Parts | None:
    """``node`` as a linear layer, else None."""
    if operation(node) == "linear":
        input, weight, bias = (argument(node, name) for name in ("input", "weight", "bias"))
        if _rank(weight) != 2 or _rank(input) < 1:
            return None
        return _with_bias(_Parts(node, node, input, weight, bias), fixed)
    product = contraction(node)
    if product is None or product.right not in fixed or product.left in fixed or len(product.right_letters) != 2:
        return None
    # The left operand's axes stay in place and only its last one is summed.
    *rows, inner = product.left_letters
    column = next((letter for letter in product.right_letters if letter != inner), inner)
    if inner not in product.right_letters or column == inner or column in rows:
        return None
    if product.out_letters != (*rows, column):
        return None
    # A bias has one axis; anything wider is added to the product, not part of the layer.
    if product.addend is not None and _rank(product.addend) != 1:
        return None
    if scalar(product.alpha) != 1 or (product.addend is not None and scalar(product.beta) != 1):
        return None
    transposed = product.right_letters == (inner, column)
    parts = _Parts(node, node, product.left, product.right, product.addend, transposed)
    if product.addend is not None and not same(shape_of(product.addend)[0], shape_of(node)[-1]):
        return None
    # A transposed view of a parameter is the parameter stored the other way round.
    if operation(parts.weight) in _TRANSPOSES and _exchanges(parts.weight):
        parts.weight, parts.transposed = parts.weight.args[0], not transposed  # type: ignore[assignment]
    return _with_bias(parts, fixed)


def _exchanges(node: Node) -> bool:
    """True when a permuting node exchanges the two axes of a matrix."""
    source = tensor(node.args[0])
    if source is None or source.dim() != 2:
        return False
    if operation(node) == "permute":
        return tuple(axis % 2 for axis in argument(node, "dims")) == (1, 0)
    exchanged: Any = node.args[1:]
    return len(exchanged) < 2 or bool((exchanged[0] - exchanged[1]) % 2 == 1)


def _with_bias(parts: _Parts, fixed: set[Node]) -> _Parts:
    """Take in a bias that is added to the product right after it."""
    users = readers(parts.product)
    if parts.bias is not None or len(users) != 1 or len(parts.product.users) != 1:
        return parts
    (user,) = users
    if operation(user) != "add" or mutates(user) or len(user.args) != 2 or user.kwargs.get("alpha", 1) != 1:
        return parts
    left, right = user.args
    bias = right if left is parts.product else left
    made, product = tensor(bias), tensor(parts.product)
    if made is None or product is None or bias not in fixed or made.dim() != 1 or made.dtype != product.dtype:
        return parts
    if same(made.shape[0], product.shape[-1]):
        parts.bias, parts.output = bias, user  # type: ignore[assignment]
    return parts


def _rank(node: Node | None) -> int:
    value = tensor(node)
    return -1 if value is None else value.dim()


def row_names(count: int) -> tuple[str, ...]:
    """Names for the leading axes of a value with ``count`` axes before its features."""
    known = {0: (), 1: ("M",), 2: ("B", "S")}
    return known.get(count) or tuple(f"M{index}" for index in range(count))


def _site(parts: _Parts, *, number: int) -> Linear:
    operands = [parts.input, parts.weight, *([parts.bias] if parts.bias is not None else [])]
    interior = {parts.product, parts.output}
    # The view that transposes the parameter belongs to the layer, unless others read it too.
    views = [read for read in parts.product.all_input_nodes if read not in operands and parts.weight in read.args]
    interior.update(view for view in views if len(view.users) == 1)
    *rows, wide = shape_of(parts.input)
    names = row_names(len(rows))
    columns = shape_of(parts.output)[-1]
    symbols, dimensions = named_dimensions(**dict(zip(names, rows, strict=True)), K=wide, N=columns)
    leading, k, n = math.prod(symbols[name] for name in names), symbols["K"], symbols["N"]
    lead = tuple((name,) for name in names)
    stored = (("K",), ("N",)) if parts.transposed else (("N",), ("K",))
    axes = {parts.input: (*lead, ("K",)), parts.weight: stored}
    axes |= {node: (*lead, ("N",)) for node in (parts.product, parts.output)}
    axes |= {view: stored[::-1] for view in views}
    if parts.bias is not None:
        axes[parts.bias] = (("N",),)
    return Linear(
        id=f"linear.{number}",
        input=parts.input,
        weight=parts.weight,
        bias=parts.bias,
        transposed=parts.transposed,
        form=operation(parts.product),
        flops=2 * leading * k * n + (leading * n if parts.bias is not None else 0),
        bytes=(leading * k + k * n + leading * n + (n if parts.bias is not None else 0)) * element_bytes(parts.output),
        dimensions=dimensions,
        axes=axes,
        **description(parts.product, frozenset(interior), operands, [parts.output]),
    )
