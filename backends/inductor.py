"""The one adaptor to Inductor. No global configuration is written; everything goes in as patches of one call."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from ..passes.base import UserError
from ..patterns.reasons import Reason
from . import providers
from .dynamo.whole_scans import spelled_out
from .fingerprint import Fingerprint
from .options import Options

_SLOT = "post_grad_custom_pre_pass"


class ProcessorProbe:
    """Inductor's question which vector instructions this CPU has, asked while we read the graph.

    It compiles and runs small programs for that, which takes seconds in a new cache folder and no time afterwards.
    """

    def __init__(self, inputs: Sequence[Any]) -> None:
        self._thread = threading.Thread(target=self._ask, name="laconic-processor-probe", daemon=True)
        if _on_cpu(inputs) and _compiler() is not None:
            self._thread.start()

    @staticmethod
    def _ask() -> None:
        from torch._inductor import cpu_vec_isa

        # What goes wrong here goes wrong again in Inductor, which then says so.
        with contextlib.suppress(Exception):
            cpu_vec_isa.valid_vec_isa_list()

    def wait(self) -> None:
        """Return when the answer is known; Inductor finds it in its memory."""
        if self._thread.is_alive():
            self._thread.join()


def compile_graph(module: GraphModule, inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """Compile one graph with Inductor (through AOTAutograd, so it can be differentiated) to a flat callable.

    ``laconic::`` operators in it, forward or backward, are lowered to their chosen providers. Raises what Inductor
    raises; UserError when the CPU has no C++ compiler.
    """
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.decomposition import select_decomp_table

    _require_compiler(inputs)
    module = spelled_out(module)
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
    if _on_cpu(inputs) and _compiler() is None:
        raise UserError("laconic needs a C++ compiler on CPU: install g++ or clang++, or set CXX to one")


def _on_cpu(inputs: Sequence[Any]) -> bool:
    return all(value.device.type == "cpu" for value in inputs if isinstance(value, torch.Tensor))


def _compiler() -> str | None:
    """The C++ compiler Inductor would call."""
    from torch._inductor import config

    names = config.cpp.cxx if isinstance(config.cpp.cxx, list | tuple) else [config.cpp.cxx]
    return next((found for name in names if name and (found := shutil.which(name))), None)
