"""Floats that are no arguments are constants until one of them changes, also under ``dynamic=True``.

``torch.compile(model, dynamic=True)`` makes an unknown of every float that Dynamo meets: the epsilon of a norm, the
rate of a dropout, ``math.pi``. What was written with a number is then arithmetic on a graph input. For graphs of this
backend such a float is what it is without ``dynamic=True``: a constant with a guard, unknown from its first change on.
Arguments of the compiled function are unknown at once, as asked.

Private torch modules are touched here on purpose; docs/private_torch.md lists them with the versions checked.
"""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

from torch._dynamo import config
from torch._dynamo.variables.builder import VariableBuilder
from torch._guards import GuardSource

from .replaced import replace
from .tracing import traces_for_this_backend


def _settling(wrap: Any) -> Any:
    @functools.wraps(wrap)
    def wrap_symfloat(builder: Any, value: float) -> Any:
        if builder.source.guard_source is GuardSource.LOCAL or not traces_for_this_backend():
            return wrap(builder, value)
        with mock.patch.object(config, "assume_static_by_default", True):
            return wrap(builder, value)

    return wrap_symfloat


replace(VariableBuilder, "wrap_symfloat", _settling)
