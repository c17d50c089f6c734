"""Associative scans stay one operator when Dynamo traces for this backend.

On the CPU, ``associative_scan(combine_mode="generic")`` is Python that Dynamo follows through every level of a tree:
most of the time it takes to compile a state-space model passes there, before any backend is asked. The operator that
``combine_mode="pointwise"`` traces to says the same in one node. Dynamo is given that spelling, for graphs of this
backend only; what no pass has taken by the time the graph is compiled is spelled out again (:func:`spelled_out`).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import operator
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from .tracing import traces_for_this_backend

# The package exports a function of the same name as this module.
_home: Any = importlib.import_module("torch._higher_order_ops.associative_scan")
_operator: Any = _home.associative_scan_op
_original: FunctionType = _home.associative_scan
# The original under another identity: what is substituted cannot be reached by its own name while tracing.
_step_by_step = FunctionType(
    _original.__code__, _original.__globals__, _original.__name__, _original.__defaults__, _original.__closure__
)


@torch._dynamo.assume_constant_result
def _for_this_backend() -> bool:
    return traces_for_this_backend()


@torch._dynamo.assume_constant_result
def _traced_so_far() -> int:
    return len(InstructionTranslator.current_tx().output.graph.nodes)


@torch._dynamo.assume_constant_result
def _sums_and_products_since(count: int, copies: int) -> bool:
    """Whether all that Dynamo traced after its first ``count`` nodes adds or multiplies what the nodes before gave.

    Those before are ``copies`` elements, a selection and a copy each. Nothing else may be read, and no size may vary:
    the operator has no gradient for what its body closes over.
    """
    nodes = list(InstructionTranslator.current_tx().output.graph.nodes)
    known = set(nodes[count - 2 * copies :])
    body = nodes[count:]
    return bool(body) and all(
        node.target in _SUMS_AND_PRODUCTS
        and known.issuperset(node.all_input_nodes)
        and all(isinstance(size, int) for size in node.meta["example_value"].shape)
        for node in body
    )


_METHODS = ("add", "mul", "multiply", "addcmul")
_SUMS_AND_PRODUCTS: set[Any] = {operator.add, operator.mul, *_METHODS, *(getattr(torch, name) for name in _METHODS)}


def _traced(
    combine_fn: Callable[..., Any], xs: Any, dim: int, reverse: bool = False, combine_mode: str = "pointwise"
) -> Any:
    """What Dynamo reads in place of ``associative_scan``: the operator for chains of affine maps, else the original."""
    if combine_mode == "generic" and _for_this_backend() and _may_be_affine(combine_fn, xs, dim):
        return _whole(combine_fn, xs, dim, reverse)
    return _step_by_step(combine_fn, xs, dim, reverse, combine_mode)


def _may_be_affine(combine_fn: Callable[..., Any], xs: Any, dim: int) -> bool:
    """Whether two elements combine, by sums and products, to one of the same structure, shapes and types.

    The operator demands the latter. Also false where the original would complain: it does so better.
    """
    leaves, structure = pytree.tree_flatten(xs)
    if len(leaves) < 2 or not isinstance(dim, int) or not callable(combine_fn):
        return False
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or leaf.device.type != "cpu" or not -leaf.dim() <= dim < leaf.dim():
            return False
        if leaf.shape != leaves[0].shape or leaf.shape[dim] == 0:
            return False
    elements = [leaf.select(dim, 0).clone() for leaf in leaves]
    one, other = pytree.tree_unflatten(elements, structure), pytree.tree_unflatten(elements, structure)
    count = _traced_so_far()
    results, combined = pytree.tree_flatten(combine_fn(one, other))
    if combined != structure or not _sums_and_products_since(count, len(elements)):
        return False
    for result, element in zip(results, elements):  # noqa: B905 - Dynamo reads this; the structures are equal
        if not isinstance(result, Tensor) or result.shape != element.shape or result.dtype != element.dtype:
            return False
    return True


def _whole(combine_fn: Callable[..., Any], xs: Any, dim: int, reverse: bool) -> Any:
    leaves, structure = pytree.tree_flatten(xs)
    leaves = [torch.movedim(leaf, dim, 0) for leaf in leaves]
    if reverse:
        leaves = [torch.flip(leaf, [0]) for leaf in leaves]
    flat = functools.partial(_home.wrap_combine_fn_flat, combine_fn=combine_fn, spec=structure, num_leaves=len(leaves))
    states = pytree.tree_leaves(_operator(flat, leaves, additional_inputs=()))
    if reverse:
        states = [torch.flip(state, [0]) for state in states]
    return pytree.tree_unflatten([torch.movedim(state, 0, dim) for state in states], structure)


def spelled_out(module: GraphModule) -> GraphModule:
    """``module`` with every associative scan on the CPU, which Inductor has no code for, as the tree it stands for."""
    if not any(is_left(node) for node in module.graph.nodes):
        return module
    result = GraphModule(module, copy.deepcopy(module.graph))
    result.meta.update(module.meta)
    for node in list(result.graph.nodes):
        if is_left(node):
            _spell_out(result, node)
    result.graph.lint()
    result.recompile()
    return result


def is_left(node: Node) -> bool:
    """An associative scan that Inductor cannot compile."""
    if node.op != "call_function" or node.target is not _operator:
        return False
    elements: Any = node.args[1]
    return bool(_value(elements[0]).device.type == "cpu")


def _value(node: Any) -> Any:
    """What is known of a node's value: Dynamo's graphs and ours keep it under different names."""
    return node.meta["val"] if "val" in node.meta else node.meta["example_value"]


def _spell_out(module: GraphModule, node: Node) -> None:
    arguments: Any = node.args
    body, elements, additional = arguments
    combine = module.get_submodule(str(body.target))
    number = len(elements)

    def tree(*values: Tensor) -> list[Tensor]:
        # One pair of elements at a time is what combining is written for; vmap runs all pairs of a level at once.
        axes = (*[0] * (2 * number), *[None] * (len(values) - number))
        pairs = torch.vmap(lambda *pair: tuple(combine(*pair)), in_dims=axes)
        return _home.generic_associative_scan(pairs, list(values[:number]), additional_inputs=values[number:])

    operands = [*elements, *additional]
    values = [_value(operand) for operand in operands]
    mode = values[0].fake_mode
    with mode, torch.no_grad():
        traced = make_fx(tree, tracing_mode="real")(*values)
    places = dict(zip(traced.graph.find_nodes(op="placeholder"), operands, strict=True))
    with module.graph.inserting_before(node):
        results: Any = module.graph.graph_copy(traced.graph, places)
    for user in list(node.users):
        position: Any = user.args[1]
        user.replace_all_uses_with(results[position])
        module.graph.erase_node(user)
    module.graph.erase_node(node)


# A second import of the package, or a tool that did the same, has registered something already: leave it.
with contextlib.suppress(ValueError):
    torch.compiler.substitute_in_graph(_original)(_traced)
