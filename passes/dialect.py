"""The op dialect: ``laconic::`` operators, each with one definition. The Python body is the meaning.

Providers (hand-written kernels, library calls, faster plain-torch forms) are registered by the backend and checked
against the body; Inductor compiles the body itself when no provider claims a call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._library.infer_schema import infer_schema

NAMESPACE = "laconic"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator of the dialect: schema, meaning (``body``), shape function, gradient rule and version."""

    name: str
    body: Callable[..., Any]
    overload: torch._ops.OpOverload
    version: int
    differentiable: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.overload(*args, **kwargs)

    @property
    def qualified_name(self) -> str:
        """``laconic::name``."""
        return f"{NAMESPACE}::{self.name}"


OPERATORS: dict[str, Operator] = {}


def operator(
    *,
    version: int = 1,
    fake: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Operator]:
    """Define ``laconic::<function name>`` from a plain-torch function.

    The function's annotations give the schema, its body the meaning on every device and dtype, and (unless ``fake`` is
    given) its shapes. ``backward(ctx, *grads)`` with ``setup_context(ctx, inputs, output)`` is the gradient as for
    ``torch.library.register_autograd``; without one, differentiating raises. Raise ``version`` when the meaning
    changes: it is part of the compile cache key.
    """

    def define(body: Callable[..., Any]) -> Operator:
        name = body.__name__
        LIBRARY.define(name + infer_schema(body, mutates_args=()))
        LIBRARY.impl(name, body, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake or body, lib=LIBRARY)
        overload = getattr(getattr(torch.ops, NAMESPACE), name).default
        if backward is not None:
            torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=LIBRARY)
        op = Operator(name, body, overload, version, backward is not None)
        op_doc = body.__doc__
        object.__setattr__(op, "__doc__", op_doc)
        OPERATORS[name] = op
        return op

    return define
