"""Measure what a rewrite costs in accuracy: replacement against the subgraph it replaces, on a call's real inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from ..patterns.graph import NormalGraph
from ..patterns.reasons import Reason
from .plan import Rewrite


def relative_l2(value: Tensor, reference: Tensor) -> float:
    """``|value - reference| / |reference|`` in float64; NaN where either has one and the other has not."""
    if value.numel() == 0:
        return 0.0
    value, reference = value.detach(), reference.detach()
    if not value.is_complex():
        value, reference = value.double(), reference.double()
    scale = torch.linalg.vector_norm(reference)
    distance = torch.linalg.vector_norm(value - reference)
    return float(distance / scale) if scale > 0 else float(distance)


def measure(graph: NormalGraph, inputs: Sequence[Any], rewrites: Sequence[Rewrite]) -> dict[Rewrite, float | Reason]:
    """The relative L2 error of each rewrite's own outputs, one site changed at a time.

    ``inputs`` are the real tensors of the first call. They are not modified (tensors the graph mutates are cloned), the
    random state is forked and autograd is off. A fake or missing input gives every site a ``no-sample`` reason.
    """
    if any(_is_fake(value) for value in inputs):
        return {rewrite: Reason("no-sample", "the first call's inputs were not real tensors") for rewrite in rewrites}
    walker = _Walker(graph, rewrites)
    with torch.no_grad(), torch.random.fork_rng(devices=_cuda_devices(inputs)):
        try:
            walker.run(*(value.clone() if isinstance(value, Tensor) and walker.mutates else value for value in inputs))
        except Exception as error:
            reason = Reason("no-sample", f"the sample run raised {type(error).__name__}: {error}")
            return {rewrite: walker.errors.get(rewrite, reason) for rewrite in rewrites}
    return walker.errors


class _Walker(Interpreter):
    """Runs the graph and, as soon as a site's outputs exist, its replacement on the same values."""

    def __init__(self, graph: NormalGraph, rewrites: Sequence[Rewrite]) -> None:
        super().__init__(graph.module, garbage_collect_values=False)
        self.errors: dict[Rewrite, float | Reason] = {}
        self.mutates = any(
            isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
            for node in graph.module.graph.nodes
        )
        order = {node: index for index, node in enumerate(graph.module.graph.nodes)}
        self.pending: dict[Node, list[Rewrite]] = {}
        last_use: dict[Node, Node] = {}
        for node in graph.module.graph.nodes:
            for operand in node.all_input_nodes:
                last_use[operand] = node
        for rewrite in rewrites:
            due = max(rewrite.outputs, key=order.__getitem__)
            self.pending.setdefault(due, []).append(rewrite)
            needed = [*rewrite.inputs, *rewrite.outputs, *(item.source for item in rewrite.prepared)]
            for node in needed:
                if order[last_use.get(node, node)] < order[due]:
                    last_use[node] = due
        # Free each value after its last reader, ours included: a large model must not be held whole.
        self.free_after: dict[Node, list[Node]] = {}
        for operand, reader in last_use.items():
            self.free_after.setdefault(reader, []).append(operand)

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n in self.pending:
            self.env[n] = result
            for rewrite in self.pending[n]:
                self.errors[rewrite] = _error(rewrite, self.env)
        for operand in self.free_after.get(n, ()):
            if operand is not n:
                self.env.pop(operand, None)
        return result


def _error(rewrite: Rewrite, env: Mapping[Node, Any]) -> float | Reason:
    args = [env[node] for node in rewrite.inputs]
    for item in rewrite.prepared:
        args.extend(item.derive(env[item.source]))
    try:
        result = rewrite.replacement(*args)
    except Exception as error:
        return Reason("no-sample", f"the replacement raised {type(error).__name__}: {error}")
    values = (result,) if isinstance(result, Tensor) else tuple(result)
    errors = [relative_l2(value, env[node]) for value, node in zip(values, rewrite.outputs, strict=True)]
    return max(errors, key=lambda error: (error != error, error))


def _is_fake(value: Any) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(value, FakeTensor)


def _cuda_devices(inputs: Sequence[Any]) -> list[int]:
    return sorted({value.device.index for value in inputs if isinstance(value, Tensor) and value.is_cuda})
