"""Compile with everything but Inductor: AOTAutograd traces, decomposes, differentiates and partitions, eager runs it.

For claims to which Inductor's code generation adds nothing but minutes of C++ compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch.fx import GraphModule


def use_aot_autograd_only(monkeypatch: pytest.MonkeyPatch) -> list[GraphModule]:
    """From now on Inductor's entry runs graphs eagerly after AOTAutograd; the list fills with what it was given.

    Operators are lowered to their chosen providers as under Inductor: the table of decompositions is the same.
    """
    from functorch.compile import min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd
    from torch._dynamo.backends.debugging import boxed_nop
    from torch._inductor.decomposition import select_decomp_table

    given: list[GraphModule] = []

    def compile_fx(
        module: GraphModule, inputs: Sequence[Any], config_patches: Any = None, decompositions: Any = None, **_: Any
    ) -> Callable[..., Any]:
        given.append(module)
        compiler = aot_autograd(
            fw_compiler=boxed_nop,
            bw_compiler=boxed_nop,
            decompositions=decompositions or select_decomp_table(),
            partition_fn=min_cut_rematerialization_partition,
        )
        return compiler(module, inputs)

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    return given


def run_graphs_as_they_are(monkeypatch: pytest.MonkeyPatch) -> list[GraphModule]:
    """From now on Inductor's entry gives back the rewritten graph itself, which runs node by node.

    ``laconic::`` operators run by their meaning. The quickest way to see what a rewrite computes.
    """
    given: list[GraphModule] = []

    def compile_fx(module: GraphModule, inputs: Sequence[Any], **_: Any) -> GraphModule:
        given.append(module)
        return module

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    return given
