"""The one place that changes a graph: rewrites are traced, then spliced into a clone, which is checked or dropped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from ..patterns.graph import NormalGraph
from ..patterns.nodes import drop_unread_items
from ..patterns.reasons import Reason
from ..patterns.spec import check
from .plan import Prepared, Rewrite
from .sharing import share

# What a new node inherits from the node whose value it replaces: where the user wrote it, and its decorated regions.
_INHERITED = ("nn_module_stack", "stack_trace", "custom", "source_fn_stack")


@dataclass(eq=False)
class Applied:
    """The outcome of one transaction. ``graph`` is the input graph itself when nothing was applied."""

    graph: NormalGraph
    applied: list[Rewrite] = field(default_factory=list)
    refused: list[tuple[Rewrite, Reason]] = field(default_factory=list)


def apply(graph: NormalGraph, rewrites: Sequence[Rewrite]) -> Applied:
    """Apply ``rewrites`` in order as one transaction; one that cannot be traced or does not fit is refused alone.

    A rewrite overlapping an earlier one is refused (``overlap``), one whose replacement raises or returns other
    shapes, dtypes or devices too (``rolled-back``). If the rewritten graph fails its checks, all are rolled back.
    """
    outcome = Applied(graph)
    claimed: set[Node] = set()
    traced: list[tuple[Rewrite, GraphModule]] = []
    for rewrite in rewrites:
        # Inputs stay readable after a rewrite, so only interiors and replaced values can collide.
        touched = {*rewrite.site.interior, *rewrite.outputs}
        replacement = (
            Reason("overlap", "an earlier rewrite of this pass covers part of this site")
            if touched & claimed
            else _trace(graph, rewrite)
        )
        if isinstance(replacement, Reason):
            outcome.refused.append((rewrite, replacement))
            continue
        claimed |= touched
        traced.append((rewrite, replacement))
    if not traced:
        return outcome
    try:
        rewritten = _splice(graph, traced)
        wrong = check(rewritten)
        if wrong:
            raise ValueError(f"no longer a normal form: {wrong[0].text} ({', '.join(wrong[0].nodes)})")
        outcome.graph = rewritten
        outcome.applied = [rewrite for rewrite, _ in traced]
    except Exception as error:
        reason = Reason("rolled-back", f"{type(error).__name__}: {error}")
        outcome.refused.extend((rewrite, reason) for rewrite, _ in traced)
    return outcome


def _trace(graph: NormalGraph, rewrite: Rewrite) -> GraphModule | Reason:
    """The replacement as a graph over the fake inputs, its outputs laid out in memory as the originals are."""
    names = tuple(node.name for node in rewrite.outputs)
    wanted = [node.meta["val"] for node in rewrite.outputs]

    def laid_out(*args: Any) -> tuple[Tensor, ...]:
        result = rewrite.replacement(*args)
        values = (result,) if isinstance(result, Tensor) else tuple(result)
        if len(values) != len(wanted):
            raise ValueError(f"{len(values)} values in place of {len(wanted)}")
        return tuple(_like(value, want) for value, want in zip(values, wanted, strict=True))

    try:
        with graph.fake_mode, mock.patch.object(graph.fake_mode, "allow_non_fake_inputs", True):
            args = [node.meta["val"] for node in rewrite.inputs]
            for item in rewrite.prepared:
                args.extend(item.derive(item.source.meta["val"]))
            with torch.set_grad_enabled(graph.grad_enabled):
                replacement = make_fx(laid_out, pre_dispatch=True, tracing_mode="real")(*args)
    except Exception as error:
        return Reason("rolled-back", f"the replacement could not be traced: {type(error).__name__}: {error}", names)
    drop_unread_items(replacement.graph)
    return replacement


def _like(value: Tensor, want: Tensor) -> Tensor:
    """``value`` with the strides of ``want``; later views were written for those. Raises if it is another tensor."""
    if value.dtype != want.dtype or value.device != want.device or value.dim() != want.dim():
        raise ValueError(f"{value.dtype} rank {value.dim()} in place of {want.dtype} rank {want.dim()}")
    if not all(_known_equal(a, b) for a, b in zip(value.shape, want.shape, strict=True)):
        raise ValueError(f"shape {tuple(value.shape)} in place of {tuple(want.shape)}")
    if all(_known_equal(a, b) for a, b in zip(value.stride(), want.stride(), strict=True)):
        return value
    order = sorted(range(want.dim()), key=lambda axis: _size_hint(want.stride(axis)), reverse=True)
    inverse = sorted(range(want.dim()), key=order.__getitem__)
    return value.permute(order).contiguous().permute(inverse)


def _known_equal(a: Any, b: Any) -> bool:
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return a is b or statically_known_true(a == b)


def _size_hint(size: Any) -> int:
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return int(hint) if hint is not None else 0


def _splice(graph: NormalGraph, traced: Iterable[tuple[Rewrite, GraphModule]]) -> NormalGraph:
    module = graph.module
    clone = Graph()
    mapping: dict[Node, Node] = {}
    result = clone.graph_copy(module.graph, mapping)
    output = clone.output(result)
    output.meta = dict(graph.output.meta)
    root = GraphModule(module, clone)
    root.meta.update(module.meta)
    for name in ("_param_name_to_source", "_source_to_user_stacks"):
        if hasattr(module, name):
            setattr(root, name, getattr(module, name))
    for old, new in mapping.items():
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    # graph_copy shares each node's meta dictionary; the clone must not write through to the original.
    for node in clone.nodes:
        node.meta = dict(node.meta)

    prepared: dict[tuple[Node, str], list[Node]] = {
        (mapping[item.source], item.key): [mapping[node] for node in nodes]
        for item, nodes in graph.facts.get("prepared", ())
    }
    kept: list[tuple[Prepared, list[Node]]] = []
    for item, nodes in graph.facts.get("prepared", ()):
        moved = Prepared(mapping[item.source], item.key, item.derive)
        kept.append((moved, [mapping[node] for node in nodes]))
    for rewrite, replacement in traced:
        operands = [mapping[node] for node in rewrite.inputs]
        for item in rewrite.prepared:
            source = mapping[item.source]
            if (source, item.key) not in prepared:
                nodes = _add_placeholders(root, graph, item)
                prepared[source, item.key] = nodes
                kept.append((Prepared(source, item.key, item.derive), nodes))
            operands.extend(prepared[source, item.key])
        _inline(root, rewrite, replacement, operands, mapping)
    share([node for node in clone.nodes if "laconic.rewrite" in node.meta])
    _remove_dead(clone, {mapping[node] for rewrite, _ in traced for node in rewrite.site.interior})
    clone.lint()
    root.recompile()
    facts = {**graph.facts, "prepared": kept}
    return NormalGraph(root, graph.source, graph.fake_mode, graph.grad_enabled, facts)


def _add_placeholders(root: GraphModule, graph: NormalGraph, item: Prepared) -> list[Node]:
    last = root.graph.find_nodes(op="placeholder")[-1]
    with graph.fake_mode:
        values = item.derive(item.source.meta["val"])
    nodes = []
    for index, value in enumerate(values):
        with root.graph.inserting_after(last):
            last = root.graph.placeholder(f"{item.source.name}_{item.key}_{index}")
        last.meta["val"] = value
        last._dynamo_source = None
        nodes.append(last)
    return nodes


def _inline(
    root: GraphModule, rewrite: Rewrite, replacement: GraphModule, operands: list[Node], mapping: dict[Node, Node]
) -> None:
    clone = root.graph
    outputs = [mapping[node] for node in rewrite.outputs]
    position = {node: index for index, node in enumerate(clone.nodes)}
    latest = max(operands, key=position.__getitem__, default=None)
    anchor = outputs[0]
    if len(outputs) > 1 and latest is not None:
        # Several values: all must be computed before the first of their readers and after the last operand.
        anchor = min((user for node in outputs for user in node.users), key=position.__getitem__, default=outputs[0])
    if latest is not None and position[latest] > position[anchor]:
        raise ValueError(f"{latest.name} is computed after {anchor.name}, which would need it")
    inherited = {key: outputs[0].meta[key] for key in _INHERITED if key in outputs[0].meta}
    local: dict[Node, Any] = dict(zip(replacement.graph.find_nodes(op="placeholder"), operands, strict=True))
    results: Sequence[Any] = ()
    with clone.inserting_before(anchor):
        for node in replacement.graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                results = [local[value] for value in node.args[0]]
                continue
            if node.op == "get_attr":
                local[node] = _copy_attribute(root, replacement, node)
                continue
            copy = clone.node_copy(node, local.__getitem__)
            copy.meta = {**node.meta, **inherited, "laconic.rewrite": rewrite}
            local[node] = copy
    for old, new in zip(outputs, results, strict=True):
        old.replace_all_uses_with(new, propagate_meta=False)


def _copy_attribute(root: GraphModule, replacement: GraphModule, node: Node) -> Node:
    """A constant of the replacement becomes a buffer of the graph under a name of its own."""
    number = sum(1 for name, _ in root.named_buffers() if name.startswith("_laconic_constant"))
    name = f"_laconic_constant{number}"
    value = getattr(replacement, str(node.target))
    root.register_buffer(name, value)
    if hasattr(root, "_param_name_to_source"):
        from torch._dynamo.source import ConstantSource

        known: Any = root._param_name_to_source
        sources: Any = {**known, name: ConstantSource(name)}
        root._param_name_to_source = sources
    copy = root.graph.get_attr(name)
    copy.meta = dict(node.meta)
    return copy


def _remove_dead(clone: Graph, candidates: set[Node]) -> None:
    """Erase replaced interiors nobody reads. Other dead nodes are left: they were there before and may matter."""
    for node in reversed(list(clone.nodes)):
        # Attention counts as random whether or not it drops weights, so randomness does not keep a replaced node.
        if node in candidates and not node.users and not node.is_impure(impure_random=False):
            clone.erase_node(node)
