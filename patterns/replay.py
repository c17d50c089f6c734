"""Calls that are traced once: what they came to is copied where the same call is met again.

A model repeats itself: forty-eight norms, ninety-six projections, all on tensors of the same few shapes. Tracing a call
means a walk through every layer of torch's dispatcher and the tracer, several times the cost of running its operators
on fake tensors, and it depends on nothing but the function, the arguments that are no tensors, what kind of tensors
the others are, and a few global modes. So the operators a call came to are remembered under these, and the next call is
written down from memory; its operators are still run on its own fake tensors, so sizes, strides, aliases and gradients
are never remembered.

Private torch modules are touched here on purpose; docs/private_torch.md lists them with the versions checked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import (
    _ProxyTensor,
    disable_proxy_modes_tracing,
    get_proxy_mode,
    get_proxy_slot,
    set_proxy_slot,
    snapshot_fake,
)
from torch.fx.node import map_aggregate

from .batching import BatchingInterpreter

_PLAIN = (bool, int, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)

Traced = Callable[[], Any]


@dataclass(frozen=True)
class _Place:
    """Where a value of a call comes from: its ``index``-th tensor, or the result of its ``index``-th operator."""

    computed: bool
    index: int


@dataclass(frozen=True)
class _Step:
    """One operator of a call; tensors in ``args`` and ``kwargs`` are places."""

    target: Any
    args: Any
    kwargs: Any
    tensor_meta: Any


@dataclass(frozen=True)
class _Call:
    """What a call came to, and what it returned: tensors as places, the rest as it is."""

    steps: tuple[_Step, ...]
    result: Any


class ReplayingInterpreter(BatchingInterpreter):
    """Runs a Dynamo graph under ``make_fx``; a call that was traced before is copied."""

    def __init__(self, module: GraphModule, fake_mode: Any) -> None:
        super().__init__(module, fake_mode)
        self._known: dict[Any, _Call | None] = {}

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._called(target, args, kwargs, lambda: BatchingInterpreter.call_function(self, target, args, kwargs))

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._called(target, args, kwargs, lambda: BatchingInterpreter.call_method(self, target, args, kwargs))

    def _called(self, target: Any, args: Any, kwargs: Any, traced: Traced) -> Any:
        """The result of a call, known to the tracer as if ``traced()`` had computed it.

        ``target`` is a function or the name of a method. ``traced`` is asked where the call is new or cannot be copied.
        """
        mode: Any = get_proxy_mode()
        tensors: list[torch.Tensor] = []
        with torch._C.DisableTorchFunction():  # asking for a shape is a call to the tracer otherwise
            key = None if mode is None or torch._C._is_any_autocast_enabled() else _key((args, kwargs), tensors)
        if key is None or not tensors:
            return traced()
        tracer = mode.tracer
        nodes = [_node(tensor, tracer) for tensor in tensors]
        if None in nodes:
            return traced()
        key = (target, key, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        if key not in self._known:
            last = next(reversed(tracer.graph.nodes), None)
            result = traced()
            self._known[key] = _remembered(_after(last, tracer.graph), nodes, tensors, result, tracer)
            return result
        call = self._known[key]
        return traced() if call is None else _repeated(call, nodes, tensors, tracer)


def _key(value: Any, tensors: list[torch.Tensor]) -> Any:
    """What a call depends on, hashable; None where that is not all known. Collects the tensors in ``value``."""
    if isinstance(value, torch.Tensor):
        for index, tensor in enumerate(tensors):
            if tensor is value:
                return _Place(False, index)
        kind = _kind(value)
        if kind is not None:
            tensors.append(value)
        return kind
    if isinstance(value, _PLAIN) or value is Ellipsis:
        return type(value), value
    if isinstance(value, float):
        return value.hex()  # 0.0 and -0.0 are equal, but not the same
    if isinstance(value, slice):
        return _keys(slice, (value.start, value.stop, value.step), tensors)
    if isinstance(value, dict):
        return _keys(dict, (*value, *value.values()), tensors)
    if isinstance(value, (tuple, list)):
        return _keys(type(value), value, tensors)
    return None


def _keys(kind: type, items: Sequence[Any], tensors: list[torch.Tensor]) -> Any:
    keys = tuple(_key(item, tensors) for item in items)
    return None if None in keys else (kind, keys)


def _kind(tensor: torch.Tensor) -> Any:
    """What operators of a call may depend on; None where that is more than can be told."""
    if not isinstance(tensor, FakeTensor) or tensor._has_symbolic_sizes_strides or tensor.layout is not torch.strided:
        return None
    if not tensor.is_inference() and tensor._version:
        return None  # written to: the views it is made of may be made anew, for the gradient
    return (
        tensor.shape,
        tensor.stride(),
        tensor.storage_offset(),
        tensor.dtype,
        tensor.device,
        tensor.requires_grad,
        tensor.is_leaf,
        tensor.is_conj(),
        tensor.is_neg(),
        tensor.is_inference(),
    )


def _node(tensor: torch.Tensor, tracer: Any) -> Any:
    """The node that computes a tensor; None for one the tracer doesn't know, or knows the value of."""
    slot = get_proxy_slot(tensor, tracer, None)
    return slot.proxy.node if isinstance(slot, _ProxyTensor) and slot.constant is None else None


def _after(last: Node | None, graph: Graph) -> list[Node]:
    """What was added to the graph since ``last`` was its last node."""
    return list(itertools.takewhile(lambda node: node is not last, reversed(graph.nodes)))[::-1]


def _remembered(
    new: Sequence[Node], nodes: Sequence[Any], tensors: Sequence[torch.Tensor], result: Any, tracer: Any
) -> _Call | None:
    """The call that added nodes ``new`` to the graph; None where it is more than functions of its arguments."""
    places: dict[Any, _Place] = {node: _Place(False, index) for index, node in enumerate(nodes)}
    steps: list[_Step] = []

    def place(item: Any) -> Any:
        return places[item] if isinstance(item, Node) else item

    for node in new:
        if not (_copied(node) and _sized(node.meta.get("val")) and places.keys() >= set(node.all_input_nodes)):
            return None
        args, kwargs = map_aggregate((node.args, node.kwargs), place)
        places[node] = _Place(True, len(steps))
        steps.append(_Step(node.target, args, kwargs, node.meta.get("tensor_meta")))
    given = {id(tensor): _Place(False, index) for index, tensor in enumerate(tensors)}
    try:
        return _Call(tuple(steps), _placed(result, given, places, tracer))
    except KeyError:
        return None


def _copied(node: Node) -> bool:
    if node.op != "call_function":
        return False
    if node.target is getitem:
        return True
    return isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable


def _sized(value: Any) -> bool:
    """Whether every size is known: new symbols have to be made and bound by each call anew."""
    if isinstance(value, (tuple, list)):
        return all(map(_sized, value))
    return isinstance(value, torch.Tensor) and not value._has_symbolic_sizes_strides


def _placed(result: Any, given: dict[int, _Place], places: dict[Any, _Place], tracer: Any) -> Any:
    if isinstance(result, torch.Tensor):
        if id(result) in given:
            return given[id(result)]
        return places[_node(result, tracer)]
    if type(result) in (tuple, list):
        return type(result)(_placed(item, given, places, tracer) for item in result)
    if isinstance(result, (*_PLAIN, float)):
        return result
    raise KeyError(type(result))


def _repeated(call: _Call, nodes: Sequence[Node], tensors: Sequence[torch.Tensor], tracer: Any) -> Any:
    """Write a call's operators to the graph, run them, and let the tracer know what they computed."""
    values: list[Any] = []
    written: list[Node] = []

    def value(item: Any) -> Any:
        return (values if item.computed else tensors)[item.index] if isinstance(item, _Place) else item

    def node(item: Any) -> Any:
        return (written if item.computed else nodes)[item.index] if isinstance(item, _Place) else item

    with disable_proxy_modes_tracing(), torch._C.DisableTorchFunction():
        for step in call.steps:
            arguments = step.args, step.kwargs
            args, kwargs = map_aggregate(arguments, value)
            values.append(step.target(*args, **kwargs))
            args, kwargs = map_aggregate(arguments, node)
            name = None if step.target is getitem else tracer.graph._target_to_str(step.target.overloadpacket.__name__)
            written.append(tracer.create_node("call_function", step.target, args, kwargs, name))
            _track(values[-1], written[-1], step, tracer)
    return map_aggregate(call.result, value)


def _track(value: Any, node: Node, step: _Step, tracer: Any) -> None:
    if isinstance(value, torch.Tensor):
        set_proxy_slot(value, tracer, _ProxyTensor(tracer.proxy(node), None))
        node.meta["val"] = snapshot_fake(value)
        node.meta["tensor_meta"] = step.tensor_meta
    else:  # its items are taken out one by one
        node.meta["val"] = type(value)(
            snapshot_fake(item) if isinstance(item, torch.Tensor) else item for item in value
        )
