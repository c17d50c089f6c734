"""The one adaptor to Inductor. No global configuration is written; everything goes in as patches of one call."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from ..passes.base import UserError
from ..patterns.reasons import Reason
from . import providers
from .fingerprint import Fingerprint
from .options import Options

_SLOT = "post_grad_custom_pre_pass"


def compile_graph(module: GraphModule, inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """Compile one graph with Inductor (through AOTAutograd, so it can be differentiated) to a flat callable.

    ``laconic::`` operators in it, forward or backward, are lowered to their chosen providers. Raises what Inductor
    raises; UserError when the CPU has no C++ compiler.
    """
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.decomposition import select_decomp_table

    _require_compiler(inputs)
    patches: dict[str, Any] = dict(options.inductor)
    installed = patches.get(_SLOT, getattr(config, _SLOT))
    chosen = providers.chosen(module)
    patches[_SLOT] = Fingerprint(installed, [f"{node.target}={row.name}" for node, row in chosen.items()])
    table: dict[Any, Callable[..., Any]] | None = None
    if chosen:
        table = providers.decompositions(select_decomp_table())
    compiled = compile_fx(module, list(inputs), config_patches=patches, decompositions=table)
    if not callable(compiled):
        raise UserError("Inductor was told to build an ahead-of-time package; use torch.export for that")
    return compiled


def tied_to_weights(options: Options, device: str) -> Reason | None:
    """Why code compiled for one block must not be called with the weights of another: they are fixed in it."""
    from torch._inductor import config

    given = dict(options.inductor)
    if given.get("freezing", config.freezing):
        return Reason("tied-to-weights", "freezing turns weights into constants of the compiled code")
    if "cuda" in device and given.get("triton.cudagraphs", config.triton.cudagraphs):
        return Reason("tied-to-weights", "a CUDA graph is recorded for the addresses of one block's weights")
    return None


def _require_compiler(inputs: Sequence[Any]) -> None:
    """One clear line instead of Inductor's traceback when there is no C++ compiler to lower CPU code with."""
    on_cpu = all(value.device.type == "cpu" for value in inputs if isinstance(value, torch.Tensor))
    if not on_cpu:
        return
    from torch._inductor import config

    names = config.cpp.cxx if isinstance(config.cpp.cxx, list | tuple) else [config.cpp.cxx]
    if not any(name and shutil.which(name) for name in names):
        raise UserError("laconic needs a C++ compiler on CPU: install g++ or clang++, or set CXX to one")
