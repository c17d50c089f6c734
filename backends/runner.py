"""What a rewritten graph becomes at run time: compiled whole or in pieces, behind its prepared inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..passes.report import GraphReport
from ..patterns.graph import NormalGraph
from .cutting import Cutting
from .inductor import compile_graph
from .options import Options
from .pieces import compile_pieces
from .prepared import PreparedInputs


def build(
    graph: NormalGraph, inputs: Sequence[Any], cutting: Cutting | None, options: Options, report: GraphReport
) -> Callable[..., Any]:
    """Compile a rewritten graph to the callable Dynamo will call with the caller's inputs only.

    ``inputs`` are the example inputs of the rewritten graph, prepared ones included. ``cutting`` says where it is
    cut, if anywhere.
    """

    if cutting is None:
        compiled = compile_whole(graph.module, inputs, options)
    else:
        compiled = _in_pieces(graph, inputs, cutting, options, report)
    prepare = prepared_inputs(graph)
    if prepare is None:
        return compiled

    def run(*args: Any) -> Any:
        return compiled(*args, *prepare(args))

    return run


def compile_whole(module: torch.fx.GraphModule, inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """Compile one graph as it is. Raises what Inductor raises."""
    from .kernel_units import kernel_units  # brings Inductor, which a model that is only explained does not need

    with kernel_units() as kernels:
        compiled = compile_graph(module, inputs, options)
    kernels.wait()
    return compiled


def _in_pieces(
    graph: NormalGraph, inputs: Sequence[Any], cutting: Cutting, options: Options, report: GraphReport
) -> Callable[..., Any]:
    from .kernel_units import kernel_units

    def compile_piece(module: torch.fx.GraphModule, values: Sequence[Any]) -> Callable[..., Any]:
        return compile_graph(module, values, options)

    # Nobody waits for the kernels: they are compiled while Dynamo finishes its own work.
    with kernel_units():
        return compile_pieces(graph, inputs, cutting, compile_piece, report, options.error_budget)


def prepared_inputs(graph: NormalGraph) -> PreparedInputs | None:
    """The run-time source of a graph's prepared inputs, in the order of its extra placeholders; None without any."""
    rows = graph.facts.get("prepared", ())
    if not rows:
        return None
    position = {node: index for index, node in enumerate(graph.placeholders)}
    ordered = sorted(rows, key=lambda row: position[row[1][0]])
    return PreparedInputs([(position[item.source], item) for item, _ in ordered])


def real_inputs(graph: NormalGraph, inputs: Sequence[Any]) -> list[Any]:
    """The example inputs of a (rewritten) graph: the caller's, then the prepared ones."""
    prepare = prepared_inputs(graph)
    if prepare is None:
        return list(inputs)
    with torch.no_grad():
        prepared = prepare(inputs)
    for node, value in zip(graph.placeholders[len(inputs) :], prepared, strict=True):
        if not node.meta["val"]._has_symbolic_sizes_strides:
            # AOTAutograd takes sizes of a tensor that is new to it for symbols, and a guard on one has no source. It
            # finds this fake tensor instead, as long as somebody holds it.
            node.meta["val"] = graph.fake_mode.from_tensor(value, static_shapes=True)
    return [*inputs, *prepared]
