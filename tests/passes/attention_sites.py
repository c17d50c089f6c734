"""Hand-made attention sites: a function traced to the normal form, and one site for each attention call in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from laconic.passes.apply import apply
from laconic.passes.base import Pass, PlanContext
from laconic.passes.plan import Plan, Rewrite
from laconic.patterns.graph import NormalGraph
from laconic.patterns.sites import Attention, Bias, Operand, Sites

SDPA = torch.ops.aten.scaled_dot_product_attention.default


def traced(function: Callable[..., Any], *args: Tensor, grad: bool = False) -> NormalGraph:
    """The normal form of ``function``, with placeholders that need a gradient where ``args`` do."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(value) for value in args]
    with mode, torch.set_grad_enabled(grad):
        module = make_fx(function, pre_dispatch=True, tracing_mode="real")(*fakes)
    for node, value in zip(module.graph.find_nodes(op="placeholder"), args, strict=True):
        node.meta["val"].requires_grad_(value.requires_grad)
    return NormalGraph(module, module, mode, grad_enabled=grad)


def attention_sites(graph: NormalGraph, **fields: Any) -> list[Attention]:
    """A site for each call of scaled_dot_product_attention; ``fields`` override what the call says."""
    return [
        _site(f"attention.{number}", node, fields)
        for number, node in enumerate(graph.module.graph.find_nodes(op="call_function", target=SDPA))
    ]


def _site(name: str, node: Node, fields: dict[str, Any]) -> Attention:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    query, key, value = given["query"], given["key"], given["value"]
    heads = query.meta["val"].shape[1] if query.meta["val"].dim() == 4 else 1
    biases = (Bias("causal", None, "causal"),) if given.get("is_causal") else ()
    mask = given.get("attn_mask")
    if mask is not None:
        kind = "boolean" if mask.meta["val"].dtype is torch.bool else "additive"
        biases = (*biases, Bias(kind, mask))
    settings = {
        "query": Operand(query),
        "key": Operand(key),
        "value": Operand(value),
        "scale": given.get("scale") or query.meta["val"].shape[-1] ** -0.5,
        "biases": biases,
        "dropout": given.get("dropout_p", 0.0),
        "groups": heads // key.meta["val"].shape[1] if given.get("enable_gqa") else 1,
        **fields,
    }
    inputs = tuple(dict.fromkeys(item for item in (query, key, value, mask) if item is not None))
    return Attention(id=name, inputs=inputs, outputs=(node,), interior=frozenset({node}), **settings)


def planned(item: Pass, graph: NormalGraph, **fields: Any) -> Plan:
    """What the pass plans for the graph's attention sites."""
    sites = attention_sites(graph, **fields)
    return item.policy.plan(PlanContext(graph, Sites(list(sites)), sites))


def rewritten(item: Pass, graph: NormalGraph, **fields: Any) -> tuple[NormalGraph, list[Rewrite]]:
    """The graph with every planned rewrite applied; none may be refused."""
    plan = planned(item, graph, **fields)
    assert not plan.refusals, plan.refusals
    outcome = apply(graph, plan.rewrites)
    assert not outcome.refused, outcome.refused
    return outcome.graph, outcome.applied


def refusal(item: Pass, graph: NormalGraph, **fields: Any) -> tuple[str, str]:
    """Code and text of the one refusal; nothing may be planned."""
    plan = planned(item, graph, **fields)
    assert not plan.rewrites
    ((_, reason),) = plan.refusals
    return reason.code, reason.text
