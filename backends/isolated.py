"""Trace a model that does not fit in one graph without a trace: on a copy, Dynamo's entries removed afterwards."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import CodeType
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo import pgo
from torch._dynamo.guards import DeletedGuardManagerWrapper
from torch.fx import GraphModule

from . import registry


def no_memory_of_sizes() -> Any:
    """A context in which Dynamo neither uses nor changes what it remembers about sizes that varied between calls."""
    return mock.patch.object(pgo, "_CODE_STATE", defaultdict(pgo.CodeState))


Visit = Callable[[GraphModule, Sequence[Any]], None]


def visit_graphs(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], visit: Visit) -> None:
    """Call ``visit(graph, inputs)`` for every graph Dynamo makes of one call of ``model``.

    A graph after a break needs the values before it, so the call really runs: on deep copies, with the random state
    forked. Raises whatever copying or running raises.
    """
    twin, args, kwargs = copy.deepcopy((model, tuple(args), dict(kwargs)))
    codes: list[CodeType] = []

    def capture(module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        code = registry.current_origin().code
        if code is not None:
            codes.append(code)
        visit(module, inputs)
        return module.forward

    cuda = sorted({p.device.index for p in twin.parameters() if p.is_cuda})
    compiled = torch.compile(twin, backend=capture)
    try:
        with torch.random.fork_rng(devices=cuda):
            compiled(*args, **kwargs)
    finally:
        wrapper = registry.wrapper_of(compiled)
        for code in codes:
            _forget(code, wrapper, capture)


def _forget(code: CodeType, wrapper: Any, capture: Any) -> None:
    """Remove our cache entries of one code object; the user's own stay."""
    for entry in list(_debug_get_cache_entry_list(code)):
        if entry.backend in (wrapper, capture):
            state = entry.guard_manager.extra_state
            if state is not None:
                state.invalidate(entry, DeletedGuardManagerWrapper("laconic.explain is done"))
