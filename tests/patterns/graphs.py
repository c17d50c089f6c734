"""Normal forms of plain functions, without a compile: what the detector tests look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from laconic.patterns.attention import find_attention
from laconic.patterns.graph import NormalGraph
from laconic.patterns.sites import Sites


def normal(function: Callable[..., Any], *inputs: torch.Tensor) -> NormalGraph:
    """The normal form of ``function`` on ``inputs``; every input becomes a placeholder."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(value) for value in inputs]
    with mode, torch.no_grad():
        module = make_fx(function, pre_dispatch=True, tracing_mode="real")(*fakes)
    module.graph.eliminate_dead_code()
    return NormalGraph(module, module, mode, grad_enabled=False)


def attentions(graph: NormalGraph) -> Sites:
    """What the attention detector alone finds."""
    found, refusals = find_attention(graph, Sites())
    return Sites(found, refusals)
