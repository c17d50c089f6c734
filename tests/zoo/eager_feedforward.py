"""How many feed-forward layers a model runs, counted while it runs eagerly and without looking at any graph.

Calls of linear layers are watched, and what happens to each result until another linear layer reads it. The count is
what detection is compared with, so nothing of :mod:`laconic.patterns` is used here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_ACTIVATIONS = frozenset(
    {"relu", "relu_", "gelu", "silu", "silu_", "sigmoid", "tanh", "mish", "softplus", "elu", "selu", "leaky_relu"}
    | {"hardswish", "hardsigmoid", "softsign", "erf", "relu6", "clamp", "clamp_min"}
)
_ELEMENTWISE = frozenset(
    {"mul", "__mul__", "__rmul__", "add", "__add__", "__radd__", "sub", "__sub__", "__rsub__", "pow", "__pow__"}
    | {"square", "div", "__truediv__", "neg", "exp", "where", "__neg__"}
)
_MOVED = frozenset(
    {"chunk", "split", "narrow", "__getitem__", "unbind", "view", "reshape", "flatten", "unsqueeze", "squeeze"}
    | {"cat", "concat", "contiguous", "clone", "to", "float", "type_as", "dropout", "permute", "transpose"}
)
_SUMS = frozenset({"add", "__add__", "__radd__", "sub", "__sub__", "__rsub__"})


@dataclass(frozen=True)
class _Came:
    """Where a value comes from, element by element: which layer calls, and whether a bent function was applied."""

    calls: frozenset[int]
    bent: bool = False


class FeedForwardCalls(TorchFunctionMode):
    """``count`` is the number of linear layers that read an activation of others and return the width those read.

    Only layers in a numbered part of the model (one of a list of layers) count, so embeddings of conditioning values
    do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.path: list[str] = []
        self.widths: list[int] = []
        self.paths: list[str] = []
        self.found: dict[int, frozenset[int]] = {}
        self._came: dict[int, _Came] = {}
        self._kept: list[Tensor] = []  # ids are only unique among tensors that are alive

    @property
    def count(self) -> int:
        firsts = frozenset[int]().union(*self.found.values())
        chained = {last for last, calls in self.found.items() if last in firsts or calls & self.found.keys()}
        return len(self.found.keys() - chained)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        layer = self._layer(name, args, kwargs)
        with torch._C.DisableTorchFunction():
            result = func(*args, **kwargs)
        if layer is not None:
            self._called(layer[0], layer[1], result)
            return result
        operands = _tensors((args, kwargs))
        known = [self._came[id(value)] for value in operands if id(value) in self._came]
        if not known or name not in _ACTIVATIONS | _ELEMENTWISE | _MOVED:
            return result
        calls = frozenset[int]().union(*(came.calls for came in known))
        if name in _SUMS and (any(came.calls != calls for came in known) or self._foreign(operands)):
            return result  # a residual sum: no longer a value of these layers alone
        came = _Came(calls, name in _ACTIVATIONS or any(came.bent for came in known))
        for value in _tensors(result):
            self._mark(value, came)
        return result

    def _foreign(self, operands: list[Tensor]) -> bool:
        return any(id(value) not in self._came and value.numel() > 1 for value in operands)

    @staticmethod
    def _layer(name: str, args: Any, kwargs: Any) -> tuple[Tensor, int] | None:
        """The input of a linear layer, and the axis of its features."""
        if name == "linear":
            return (args[0] if args else kwargs["input"]), -1
        if name == "addmm":
            return args[1], -1
        if name in ("conv1d", "conv2d", "conv3d") and all(size == 1 for size in args[1].shape[2:]):
            return args[0], 1
        return None

    def _called(self, x: Tensor, axis: int, result: Tensor) -> None:
        number = len(self.widths)
        self.widths.append(x.shape[axis])
        self.paths.append(self.path[-1] if self.path else "")
        came = self._came.get(id(x))
        if came is not None and came.bent and {self.widths[call] for call in came.calls} == {result.shape[axis]}:
            shared = [self.paths[call].split(".") for call in (*came.calls, number)]
            common = [parts[0] for parts in zip(*shared, strict=False) if len(set(parts)) == 1]
            if any(part.isdigit() for part in common):
                self.found[number] = came.calls
        self._mark(result, _Came(frozenset({number})))

    def _mark(self, value: Tensor, came: _Came) -> None:
        self._kept.append(value)
        self._came[id(value)] = came


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [found for item in value for found in _tensors(item)] if isinstance(value, list | tuple) else []


@contextlib.contextmanager
def counting(module: nn.Module) -> Iterator[FeedForwardCalls]:
    """Watch ``module`` run: ``with counting(module) as calls: module(x)``."""
    calls = FeedForwardCalls()
    handles = []
    for path, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(lambda *_, path=path: calls.path.append(path)))
        handles.append(part.register_forward_hook(lambda *_: calls.path.pop() and None))
    try:
        with torch.no_grad(), calls:
            yield calls
    finally:
        for handle in handles:
            handle.remove()
