"""Calls copied from memory: the graph is the one that tracing every call gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from laconic.patterns import normalize as normalizing
from laconic.patterns.batching import BatchingInterpreter
from laconic.patterns.graph import NormalGraph
from laconic.patterns.replay import ReplayingInterpreter

from ..models import builders


def both(model: Callable[..., Any], *inputs: Any, **named: Any) -> tuple[NormalGraph, NormalGraph]:
    """The normal form of a model's graph with every call traced, and with calls copied."""
    found: list[NormalGraph] = []

    def backend(module: torch.fx.GraphModule, values: list[Any]) -> Any:
        for interpreter in (BatchingInterpreter, ReplayingInterpreter):
            with mock.patch.object(normalizing, "ReplayingInterpreter", interpreter):
                graph = normalizing.normalize(module, values)
            assert isinstance(graph, NormalGraph), graph
            found.append(graph)
        return module.forward

    torch._dynamo.reset()
    torch.compile(model, backend=backend, fullgraph=True)(*inputs, **named)
    traced, copied = found
    return traced, copied


def description(graph: NormalGraph) -> list[tuple[Any, ...]]:
    """Every node with what the passes read from it."""
    storages: dict[Any, int] = {}

    def value(item: Any) -> Any:
        if isinstance(item, (tuple, list)):
            return [value(one) for one in item]
        if not isinstance(item, Tensor):
            return item
        storage = storages.setdefault(item.untyped_storage()._cdata, len(storages))
        return tuple(item.shape), item.stride(), item.storage_offset(), item.dtype, item.device, storage

    def row(node: torch.fx.Node) -> tuple[Any, ...]:
        module = [(path, kind) for path, kind in node.meta.get("nn_module_stack", {}).values()]
        meta = node.meta.get("stack_trace"), module, node.meta.get("custom"), node.meta.get("tensor_meta")
        return node.name, node.op, str(node.target), str(node.args), str(node.kwargs), value(node.meta.get("val")), meta

    return [row(node) for node in graph.module.graph.nodes]


class Layers(nn.Module):
    """Equal layers one after the other."""

    def __init__(self, layer: Callable[[Tensor], Tensor], count: int = 3) -> None:
        super().__init__()
        self.layer, self.count = layer, count

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.count):
            x = self.layer(x)
        return x


def split(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([second * first.sigmoid(), first], -1)


def written(x: Tensor) -> Tensor:
    view = x.clone().view(2, -1)
    view.mul_(2.0)
    view[0] = 1.0
    return view.view_as(x).contiguous()


def indexed(x: Tensor) -> Tensor:
    return x + x[0:1:2] + x[(0, 1, 2)] + x[[0, 1]].sum()


def signed(x: Tensor) -> Tensor:
    return x.clamp(min=0.0) + x.clamp(min=-0.0) + x * 1 + x * 1.0 + x * True


def no_result(x: Tensor) -> Tensor:
    return x.to(x.dtype).float()


SPELLINGS = {"split": split, "written": written, "indexed": indexed, "signed": signed, "no_result": no_result}


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("gradient", [False, True])
def test_the_graph_is_the_same(name: str, gradient: bool) -> None:
    x = torch.randn(2, 4, 6, requires_grad=gradient)
    traced, copied = both(Layers(SPELLINGS[name]), x)
    assert description(copied) == description(traced)


def test_modes_are_part_of_a_call() -> None:
    def layer(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = torch.sin(x)
        with torch.autocast("cpu", torch.bfloat16):
            z = x @ x.mT
        return torch.sin(x) + y + (z.float() @ x) + x @ x.mT @ x

    traced, copied = both(Layers(layer), torch.randn(2, 4, 6, requires_grad=True))
    assert description(copied) == description(traced)


def test_symbolic_sizes_are_traced_each_time() -> None:
    torch._dynamo.reset()
    x = torch.randn(2, 5, 6)
    torch._dynamo.mark_dynamic(x, 1)
    traced, copied = both(Layers(lambda x: F.gelu(x.reshape(-1, 6)).view_as(x)), x)
    assert description(copied) == description(traced)


@pytest.mark.parametrize("name", ["vit", "llama", "dit"])
@pytest.mark.parametrize("gradient", [False, True])
def test_real_models(name: str, gradient: bool) -> None:
    model, args, kwargs = getattr(builders, name)(3)
    with torch.set_grad_enabled(gradient):
        traced, copied = both(model, *args, **kwargs)
    assert description(copied) == description(traced)


def test_only_the_first_layer_is_traced() -> None:
    def traced_calls(count: int) -> int:
        layer = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        method = BatchingInterpreter.call_function
        with mock.patch.object(BatchingInterpreter, "call_function", autospec=True, side_effect=method) as calls:
            with torch.no_grad():
                both(Layers(layer, count), torch.randn(2, 4, 6))
        return int(calls.call_count) - count * 4  # without those of the graph where every call is traced

    assert traced_calls(2) == traced_calls(8) == 4
