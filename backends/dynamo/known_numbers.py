"""Numbers that are known while Dynamo traces do not end the graph.

The element of ``torch.tensor(3)`` is known to Dynamo's fake tensors, and that of what is computed from such tensors;
a write makes them forget it. Asked for the number itself (``.item()``, a tensor as the bound of a slice) Dynamo ends
the graph all the same. For graphs of this backend it answers with the number.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor
from torch._dynamo.variables import ConstantVariable
from torch._dynamo.variables.tensor import TensorVariable

from .replaced import replace
from .tracing import traces_for_this_backend


def _known(variable: Any) -> bool | int | float | None:
    """The number in a tensor of one element, if it is known."""
    value = variable.proxy.node.meta.get("example_value")
    held = getattr(value, "constant", None)
    if not isinstance(held, Tensor) or held.numel() != 1 or held.is_complex() or held.is_meta:
        return None
    number: bool | int | float = held.item()
    return number


def _answering(ask: Any) -> Any:
    @functools.wraps(ask)
    def method_item(variable: Any, *args: Any, **kwargs: Any) -> Any:
        number = _known(variable) if traces_for_this_backend() else None
        return ask(variable, *args, **kwargs) if number is None else ConstantVariable.create(number)

    return method_item


replace(TensorVariable, "method_item", _answering)
