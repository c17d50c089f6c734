"""Normal forms of plain functions, without a compile: what the detector tests look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from laconic.patterns import proof
from laconic.patterns.attention import find_attention
from laconic.patterns.functional import without_writes
from laconic.patterns.graph import NormalGraph
from laconic.patterns.normalize import normalize
from laconic.patterns.sites import Attention, Sites


def normal(function: Callable[..., Any], *inputs: Tensor, writes: bool = True) -> NormalGraph:
    """The normal form of ``function`` on ``inputs``; every input becomes a placeholder.

    Without ``writes``, writes in place become new values as they do in a compile.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(value) for value in inputs]
    with mode, torch.no_grad():
        module = make_fx(function, pre_dispatch=True, tracing_mode="real")(*fakes)

    def run(target: Any, args: Any, kwargs: Any) -> Any:
        with mode, torch.no_grad():
            return target(*args, **kwargs)

    if not writes:
        without_writes(module.graph, run)
    module.graph.eliminate_dead_code()
    return NormalGraph(module, module, mode, grad_enabled=False)


def parametrised(
    function: Callable[..., Any], parameters: dict[str, torch.Tensor], *inputs: torch.Tensor
) -> NormalGraph:
    """The normal form of ``function(parameters, *inputs)``, the parameters marked as Dynamo marks them."""
    names = list(parameters)

    def flat(*values: torch.Tensor) -> Any:
        return function(dict(zip(names, values, strict=False)), *values[len(names) :])

    graph = normal(flat, *parameters.values(), *inputs)
    for name, node in zip(names, graph.placeholders, strict=False):
        node.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
        node.meta["laconic.name"] = name
    return graph


def attentions(graph: NormalGraph) -> Sites:
    """What the attention detector alone finds."""
    found, refusals = find_attention(graph, Sites())
    return Sites(found, refusals)


def compiled(module: Any, *inputs: Tensor, dynamic: bool | None = None) -> NormalGraph:
    """The normal form of what Dynamo hands to a backend, with sites' proofs run where they really run."""
    graphs: list[Any] = []

    def backend(gm: torch.fx.GraphModule, args: list[Any]) -> Any:
        graph = normalize(gm, args)
        assert isinstance(graph, NormalGraph), graph
        before = len(graph.fake_mode.shape_env.guards) if graph.fake_mode.shape_env else 0
        sites = attentions(graph)
        assert all(proof.prove(site, graph, verify="always") is None for site in sites.of(Attention))
        assert (len(graph.fake_mode.shape_env.guards) if graph.fake_mode.shape_env else 0) == before
        graphs.append(graph)
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(module, backend=backend, dynamic=dynamic, fullgraph=True)(*inputs)
    (graph,) = graphs
    return graph
