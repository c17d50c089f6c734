"""How long detection takes, and that it grows no faster than the graph.

    python benchmarks/detection.py [--sizes 4000 8000 16000 32000] [--graphs loop transformer hybrid] [--json PATH]

All detectors run on graphs of the given sizes: a gated recurrence unrolled into one step after the other, a transformer
that gets deeper, and a hybrid of both. The promise: under 3 s for 4,000 nodes, under 30 s for the unrolled loop of
32,000. A step or a layer is traced once and repeated, with its own elements or its own weights, because tracing tens
of thousands of nodes takes minutes and says nothing about detection.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import timing
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

WIDTH, HEADS, TOKENS, BATCH = 16, 2, 16, 2


def step(state: Tensor, decay: Tensor, value: Tensor) -> Tensor:
    """One step of a gated recurrence."""
    gate = torch.sigmoid(decay)
    return gate * state + (1 - gate) * value


def squashed(state: Tensor, decay: Tensor, value: Tensor) -> Tensor:
    """One step of a recurrence whose state passes through a nonlinear operation."""
    gate = torch.sigmoid(decay + state)
    return torch.tanh(gate * state + (1 - gate) * value)


def unrolled(count: int, one_step: Callable[..., Tensor]) -> Any:
    """A loop over as many steps as make about ``count`` nodes, its states stacked."""

    def trace(length: int, steps: int) -> Any:
        def loop(decay: Tensor, value: Tensor) -> Tensor:
            state, states = torch.zeros(BATCH, WIDTH), []
            for place in range(steps):
                state = one_step(state, decay[:, place], value[:, place])
                states.append(state)
            return torch.stack(states, 1)

        return normal(loop, torch.rand(BATCH, length, WIDTH), torch.rand(BATCH, length, WIDTH))

    small = trace(8, 3)
    per_step = len(trace(8, 4).module.graph.nodes) - len(small.module.graph.nodes)
    length = count // per_step
    graph = trace(length, 3)
    nodes = graph.module.graph
    join = next(node for node in nodes.nodes if node.target is torch.ops.aten.stack.default)
    states: list[Node] = list(join.args[0])
    inside = list(nodes.nodes)
    template = inside[inside.index(states[1]) + 1 : inside.index(states[2]) + 1]
    before, last = states[1], states[2]
    for place in range(3, length):
        copies: dict[Node, Node] = {before: last}
        with nodes.inserting_before(join):
            for node in template:
                copies[node] = nodes.node_copy(node, lambda read: copies.get(read, read))  # noqa: B023
                if node.target is torch.ops.aten.select.int:
                    copies[node].args = (*node.args[:2], place)
        last = copies[states[2]]
        states.append(last)
    join.args = (states, *join.args[1:])
    with graph.fake_mode:
        join.meta["val"] = torch.stack([node.meta["val"] for node in states], 1)
    return graph


def attend(x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """A pre-norm layer of attention and feed-forward, softmax written out."""
    query, key, value, out, scale, up, down = weights
    norm = F.layer_norm(x, (WIDTH,), scale)
    q, k, v = (F.linear(norm, w).unflatten(-1, (HEADS, -1)).transpose(1, 2) for w in (query, key, value))
    scores = torch.softmax(q @ k.mT / (WIDTH // HEADS) ** 0.5, -1)
    x = x + F.linear((scores @ v).transpose(1, 2).flatten(2), out)
    return x + F.linear(F.gelu(F.linear(F.layer_norm(x, (WIDTH,)), up)), down)


def recur(x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """A pre-norm layer of a gated recurrence, unrolled."""
    query, key, _, out, scale, *_ = weights
    norm = F.layer_norm(x, (WIDTH,), scale)
    decay, value = F.linear(norm, query), F.linear(norm, key)
    state, states = torch.zeros(BATCH, WIDTH), []
    for place in range(TOKENS):
        state = step(state, decay[:, place], value[:, place])
        states.append(state)
    return x + F.linear(torch.stack(states, 1), out)


_WEIGHTS = ((WIDTH, WIDTH),) * 4 + ((WIDTH,), (2 * WIDTH, WIDTH), (WIDTH, 2 * WIDTH))


def deep(count: int, layer: Callable[[Tensor, tuple[Tensor, ...]], Tensor]) -> Any:
    """As many layers as make about ``count`` nodes, each with weights of its own."""
    graph = normal(lambda x, *weights: layer(x, weights), torch.rand(BATCH, TOKENS, WIDTH), *map(torch.rand, _WEIGHTS))
    nodes = graph.module.graph
    inputs = nodes.find_nodes(op="placeholder")
    for node in inputs[1:]:
        _as_parameter(node)
    template = [node for node in nodes.nodes if node.op == "call_function"]
    (output,) = nodes.find_nodes(op="output")
    (result,) = output.all_input_nodes
    last = result
    for _ in range(1, round(count / (len(template) + len(inputs) - 1))):
        copies: dict[Node, Node] = {inputs[0]: last}
        with nodes.inserting_before(template[0]):
            for node in inputs[1:]:
                copies[node] = nodes.node_copy(node)
        with nodes.inserting_before(output):
            for node in template:
                copies[node] = nodes.node_copy(node, copies.__getitem__)
        last = copies[result]
    output.replace_input_with(result, last)
    return graph


def _as_parameter(node: Node) -> None:
    """Marks an input the way Dynamo marks a trained parameter."""
    node.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}


def normal(function: Any, *inputs: Tensor) -> Any:
    """A graph in normal form."""
    from tests.patterns import graphs

    return graphs.normal(function, *inputs)


GRAPHS: dict[str, Callable[[int], Any]] = {
    "loop": lambda count: unrolled(count, step),
    "nonlinear-loop": lambda count: unrolled(count, squashed),
    "transformer": lambda count: deep(count, attend),
    "hybrid": lambda count: deep(count, lambda x, weights: attend(recur(recur(x, weights), weights), weights)),
}
LIMITS = {("loop", 32000): 30.0, **{(name, 4000): 3.0 for name in GRAPHS}}


def measure(graph: Any, rounds: int) -> dict[str, Any]:
    """Nodes, sites by kind, and median seconds of all detectors together and of each."""
    from laconic.patterns.detect import DETECTORS
    from laconic.patterns.sites import Sites

    total: list[float] = []
    each: dict[str, list[float]] = {}
    for _ in range(rounds):
        gc.collect()
        sites = Sites()
        begin = time.perf_counter()
        for detector in DETECTORS:
            start = time.perf_counter()
            result = detector(graph, sites)
            found, refusals = result if isinstance(result, tuple) else (result, [])
            sites.sites += found
            sites.refusals += refusals
            each.setdefault(detector.__name__.removeprefix("find_"), []).append(time.perf_counter() - start)
        total.append(time.perf_counter() - begin)
    kinds = [site.kind for site in sites]
    return {
        "nodes": len(graph.module.graph.nodes),
        "sites": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "seconds": statistics.median(total),
        "detectors": {name: statistics.median(values) for name, values in each.items()},
    }


def main() -> None:
    """Print one line per graph and size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", type=int, default=[4000, 8000, 16000, 32000])
    parser.add_argument("--graphs", nargs="*", choices=sorted(GRAPHS), default=list(GRAPHS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    options = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    load = timing.machine()["load"][0]
    print(f"{'graph':<16}{'nodes':>8}{'seconds':>9}{'x linear':>10}   slowest detectors   (load {load})")
    for name in options.graphs:
        measure(GRAPHS[name](1000), 1)  # first use of torch and sympy
        first: dict[str, Any] | None = None
        for size in options.sizes:
            row = measure(GRAPHS[name](size), options.rounds)
            first = first or row
            row["times_linear"] = row["seconds"] / first["seconds"] * first["nodes"] / row["nodes"]
            figures[f"{name}-{size}"] = row
            slowest = sorted(row["detectors"].items(), key=lambda item: -item[1])[:3]
            text = ", ".join(f"{detector} {seconds:.2f}" for detector, seconds in slowest)
            over = row["seconds"] > LIMITS.get((name, size), float("inf"))
            print(
                f"{name:<16}{row['nodes']:>8}{row['seconds']:>9.2f}{row['times_linear']:>10.2f}   {text}"
                f"{'   OVER' if over else ''}",
                flush=True,
            )
    timing.save(options.json, "detection", figures)


if __name__ == "__main__":
    main()
