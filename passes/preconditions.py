"""What several policies ask of a site: checks that return why it cannot be rewritten (or None), and its operands."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ..patterns.graph import NormalGraph
from ..patterns.provenance import differentiated as differentiated
from ..patterns.reasons import Reason
from ..patterns.sites import Attention, GatheredAttention, LinearAttention, MappedAttention, Operand, Site


def no_gradient(site: Site, graph: NormalGraph, what: str) -> Reason | None:
    """``requires-grad`` when a gradient flows through one of the site's inputs; ``what`` names the rewrite."""
    hit = [node.name for node in site.inputs if node in differentiated(graph)]
    if not hit:
        return None
    return Reason("requires-grad", f"{what} has no gradient, and {hit[0]} needs one", tuple(hit))


# Where an operation takes its data from; its other tensors are weights, which say nothing about tokens.
_DATA_ARGUMENT = {
    torch.ops.aten.linear.default: 0,
    torch.ops.aten.layer_norm.default: 0,
    torch.ops.aten.rms_norm.default: 0,
    torch.ops.aten.group_norm.default: 0,
    torch.ops.aten.conv1d.default: 0,
    torch.ops.aten.conv2d.default: 0,
    torch.ops.aten.conv3d.default: 0,
    torch.ops.aten.embedding.default: 1,
}
_origins: weakref.WeakKeyDictionary[NormalGraph, dict[Node, int]] = weakref.WeakKeyDictionary()


def origins(graph: NormalGraph) -> dict[Node, int]:
    """For each node, a bit for every graph input whose data reaches it. Parameters and other weights are not data.

    A weight is a parameter, a tensor of fewer than two axes (a gate, a timestep) or the matrix of a product. Kept per
    graph.
    """
    if graph not in _origins:
        bits: dict[Node, int] = {}
        for number, node in enumerate(graph.module.graph.nodes):
            if node.op == "placeholder":
                value = node.meta.get("val")
                data = isinstance(value, Tensor) and value.dim() > 1 and not graph.is_static(node)
                bits[node] = 1 << number if data else 0
                continue
            index = _DATA_ARGUMENT.get(node.target)
            read = node.all_input_nodes if index is None else [item for item in [node.args[index]] if item in bits]
            if index is None and len(read) > 1:
                read = [item for item in read if not _is_matrix(item)]
            bits[node] = 0
            for item in read:
                bits[node] |= bits[item]
        _origins[graph] = bits
    return _origins[graph]


def _is_matrix(node: Node) -> bool:
    return node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor) and node.meta["val"].dim() == 2


def one_set_of_tokens(site: Attention, graph: NormalGraph) -> Reason | None:
    """``cross-attention`` when queries and keys come from different graph inputs, so are different tokens.

    Operands that are graph inputs themselves (attention as a function) are taken at their word.
    """
    data = origins(graph)
    query, key = data[site.query.node], data[site.key.node]
    if query == key or all(operand.node.op == "placeholder" for operand in (site.query, site.key)):
        return None
    text = "queries and keys are computed from different inputs, so their tokens do not correspond"
    return Reason("cross-attention", text, (site.query.node.name, site.key.node.name))


def static_sizes(what: str, sizes: Iterable[object], node: Node) -> Reason | None:
    """``unsupported-shape`` when one of ``sizes`` is not a plain number known when compiling."""
    if all(isinstance(size, int) for size in sizes):
        return None
    return Reason("unsupported-shape", f"{what} needs a token count known when compiling", (node.name,))


def no_dropout(dropout: float, node: Node) -> Reason | None:
    """``dropout-active`` for a probability above zero."""
    if dropout == 0:
        return None
    return Reason("dropout-active", f"attention weights are dropped with probability {dropout:g}", (node.name,))


def has_softmax(site: Site) -> Reason | None:
    """``unsupported-softmax`` for attention whose keys cannot be left out or merged."""
    if isinstance(site, LinearAttention):
        text = "linear attention has no weights for single keys: it sums over them first"
    elif isinstance(site, GatheredAttention):
        text = "each query has keys of its own already"
    elif isinstance(site, MappedAttention):
        text = f"no softmax alone makes weights of the scores: {site.obstacle.text}"
    else:
        return None
    return Reason("unsupported-softmax", text, tuple(node.name for node in site.outputs))


def plain_softmax(site: Attention) -> Reason | None:
    """``unsupported-softmax`` unless weights are the softmax of scaled products and biases, and nothing else."""
    if site.soft_cap is not None:
        text = f"the scores are capped at {site.soft_cap:g}"
    elif site.sinks is not None:
        text = "a sink takes part of every softmax"
    elif site.factor is not None:
        text = "the scores are scaled by a tensor"
    elif site.added is not None:
        text = "the weights are mixed with others"
    else:
        return None
    return Reason("unsupported-softmax", text, tuple(node.name for node in site.outputs))


def same_batch(query: tuple[Any, ...], key: tuple[Any, ...], value: tuple[Any, ...], groups: int) -> bool:
    """Whether all batch axes agree, with ``groups`` query heads for each key head on the last of them."""
    if len(key) != len(query) or len(value) != len(query):
        return False
    pairs = [*zip(key[:-2], value[:-2], strict=True), *zip(query[:-3], key[:-3], strict=True)]
    if len(query) > 2:
        pairs.append((query[-3], key[-3] * groups))
    return all(statically_known_true(a == b) for a, b in pairs)


def operand_shape(operand: Operand) -> tuple[Any, ...]:
    """The operand's shape in canonical axis order; entries may be symbolic."""
    shape = tuple(operand.node.meta["val"].shape)
    order = operand.permutation
    return shape if order is None else tuple(1 if axis is None else shape[axis] for axis in order)
