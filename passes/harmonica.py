"""HarmoniCa's router: which layer to compute at which step, learnt along the sampler's own trajectories.

Huang et al. 2024, "HarmoniCa: Harmonizing Training and Inference for Better Feature Caching in Diffusion Transformer
Acceleration" (https://arxiv.org/abs/2410.01723). The model is not touched and not trained; its layers are found in its
graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from ..patterns.detect import detect
from ..patterns.graph import NormalGraph
from ..patterns.normalize import normalize
from ..patterns.reasons import Reason
from .base import PlanContext, UserError, positive
from .cache_levels import regions_at
from .cache_static import Static, Table, as_table
from .forecast import combine, lagrange

Sampler = Callable[[Callable[..., Any], int], Any]

# Logits stay in this range, so that no score is out of reach of the optimiser.
_LIMIT = 5.0


@dataclass(frozen=True, eq=False)
class Router:
    """A trained router: ``scores [steps, layers]`` in (0, 1), layers in the order of ``cache("static")``'s columns."""

    scores: Tensor

    def table(self, threshold: float = 0.1) -> Table:
        """The table for ``laconic.cache("static", table=...)`` that computes where the score is above ``threshold``."""
        rows = [[bool(score > threshold) for score in row] for row in self.scores]
        return tuple(tuple(row) for row in [[True] * len(rows[0]), *rows[1:]])


def train_router(
    model: Callable[..., Any],
    sampler: Sampler,
    *,
    steps: int,
    iterations: int,
    cost: float = 0.1,
    rate: float = 0.01,
    threshold: float = 0.1,
    reweigh: int = 500,
    order: int = 0,
    start: Any = None,
) -> Router:
    """Train a router for ``model`` by step-wise denoising training with the image-error proxy (sections 3.2 and 3.3).

    In each iteration ``sampler(network, iteration)`` draws samples with ``network``, called as the model is and
    ``steps`` times; it returns the samples. At each step the model's output is the target for the mixed output, where
    every layer's output is ``score * fresh + (1 - score) * kept``, and the sampler goes on from the mixed one. The
    loss of a step is ``weight * |mixed - target|^2 / |target|^2 + cost * mean(scores)``; weights, of mean one, are how
    much switching on the router at that step, too, changes the samples, found anew every ``reweigh`` iterations.

    The published recipe: rate 0.01, threshold 0.1, 20 000 iterations (``cost`` is normalised otherwise there). For a
    few dozen iterations begin with a table that is not bad.

    Args:
        order: what a reused layer gets, as ``cache("static", order=)`` will give it: 0 the last output, as published;
            1 or 2 a polynomial through the last computed ones.
        start: a table to begin with (:func:`laconic.interval_table`), of one column or one for each layer; None: at
            random, as published.

    Raises:
        ValueError, TypeError: a number out of range, no such table. UserError: no repeated blocks with layers are
            found, or the sampler calls the network another number of times.
    """
    for name, value in (("steps", steps), ("iterations", iterations), ("reweigh", reweigh)):
        positive(name, value, zero=False)
    for name, number in (("cost", cost), ("rate", rate), ("threshold", threshold)):
        positive(name, number, kind=float)
    positive("order", order)
    table = None if start is None else as_table(start)
    if table is not None and len(table) != steps:
        raise ValueError(f"the table to begin with has {len(table)} rows, not {steps}")
    training = _Training(model, steps, threshold, order)
    training.sample(sampler, 0, on=0)  # the first run finds the layers
    training.logits = [row.requires_grad_(True) for row in _beginning(steps, training.layers(), table)]
    # Each step learns alone: the averages of the optimiser must not run on through the steps of others.
    optimisers = [torch.optim.Adam([row], lr=rate) for row in training.logits]

    def learn(step: int, mixed: Tensor, target: Tensor) -> None:
        if step == 0:
            return
        row = training.logits[step]
        with torch.enable_grad():
            error = (mixed - target).square().mean() / target.square().mean()
            loss = float(training.weights[step]) * error + cost * torch.sigmoid(row).mean()
        optimisers[step].zero_grad()
        loss.backward()
        optimisers[step].step()
        with torch.no_grad():
            row.clamp_(-_LIMIT, _LIMIT)

    for iteration in range(iterations):
        if iteration % reweigh == 0:
            training.weigh(sampler, iteration)
        training.sample(sampler, iteration, on=steps, learn=learn)
    return Router(torch.sigmoid(torch.stack(training.logits).detach()))


def _beginning(steps: int, layers: int, table: Table | None) -> list[Tensor]:
    """The first logits: at random, or a little on the table's side of the threshold."""
    logits = torch.randn(steps, layers, generator=torch.Generator().manual_seed(0))
    if table is not None:
        if len(table[0]) not in (1, layers):
            raise ValueError(f"the table to begin with has {len(table[0])} columns, and there are {layers} layers")
        logits = torch.where(torch.tensor(table), 1.0, -3.0).expand(steps, layers) + 0.1 * logits
    logits[0] = _LIMIT
    return list(logits.unbind())


class _Training:
    """The model compiled to a graph that mixes, and what is kept of its layers along one trajectory."""

    def __init__(self, model: Callable[..., Any], steps: int, threshold: float, order: int = 0) -> None:
        self.steps = steps
        self.threshold = threshold
        self.order = order
        self.logits: Sequence[Tensor] = []
        self.weights = torch.ones(steps)
        self.columns: dict[Node, int] | None = None
        # By place in the graph: the last computed steps and outputs, newest last.
        self.kept: dict[int, list[tuple[float, Tensor]]] = {}
        self.scores: Tensor | None = None
        self.now = 0
        self.learning = False
        self.outputs: list[Any] = []
        self.network = torch.compile(model, backend=self._backend, fullgraph=True)

    def layers(self) -> int:
        assert self.columns is not None
        return len(set(self.columns.values()))

    def sample(
        self,
        sampler: Sampler,
        iteration: int,
        *,
        on: int,
        learn: Callable[[int, Tensor, Tensor], None] | None = None,
        known: Sequence[Any] = (),
    ) -> Any:
        """One trajectory with the router on in the steps 1 to ``on``; the model itself before and after.

        ``known`` are outputs of the first steps, to be given again; what the layers kept in them is then there still.
        The outputs are in ``outputs`` afterwards.
        """
        if not known:
            self.kept.clear()
        self.outputs = []

        def network(*args: Any, **kwargs: Any) -> Any:
            step = len(self.outputs)
            if step >= self.steps:
                raise UserError(f"the sampler calls the network more than {self.steps} times")
            result = known[step] if step < len(known) else self._call(step, on, learn, args, kwargs)
            # The sampler may write into what it gets.
            self.outputs.append(_mapped(Tensor.clone, result))
            return result

        result = sampler(network, iteration)
        if len(self.outputs) != self.steps:
            raise UserError(f"the sampler called the network {len(self.outputs)} times, not {self.steps}")
        return result

    @torch.no_grad()
    def _call(
        self, step: int, on: int, learn: Callable[[int, Tensor, Tensor], None] | None, args: Any, kwargs: Any
    ) -> Any:
        self.now, self.scores, self.learning = step, None, False
        target = self.network(*args, **kwargs) if learn is not None else None
        self.learning = learn is not None
        if step == 0 and self.columns is not None:
            self.scores = torch.ones(self.layers())
        elif 0 < step <= on:
            with torch.set_grad_enabled(self.learning):
                self.scores = torch.sigmoid(self.logits[step])
        result = self.network(*args, **kwargs)
        if learn is not None:
            learn(step, _first(result), _first(target))
        return _mapped(Tensor.detach, result)

    @torch.no_grad()
    def weigh(self, sampler: Sampler, iteration: int) -> None:
        """Weigh each step by how much its switching on changes the samples when all earlier ones are on already."""
        before = _first(self.sample(sampler, iteration, on=0))
        found = torch.zeros(self.steps)
        for step in range(1, self.steps):
            # Up to this step the trajectory is the last one.
            after = _first(self.sample(sampler, iteration, on=step, known=self.outputs[:step]))
            found[step] = (after - before).square().mean()
            before = after
        mean = found[1:].mean()
        self.weights = found / mean if mean > 0 else torch.ones(self.steps)

    def _backend(self, module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        graph = normalize(module, inputs)
        if isinstance(graph, Reason):
            raise UserError(f"train_router: {graph}")
        sites = detect(graph)
        plan = regions_at("layers", PlanContext(graph, sites, ()), Static(((True,),), level="layers"))
        if not plan.regions:
            raise UserError(f"train_router: {plan.refusals[0][1] if plan.refusals else 'no layer was found'}")
        self.columns = {node: index for index, region in enumerate(plan.regions) for node in region.exits}
        mixing = self._mixing(graph)

        def run(*args: Any) -> Any:
            with torch.set_grad_enabled(self.learning):
                return mixing(*args)

        return run

    def _mixing(self, graph: NormalGraph) -> GraphModule:
        """The graph with every layer's output passing through :meth:`mix`."""
        assert self.columns is not None
        new = Graph()
        copies: dict[Node, Node] = {}
        module = GraphModule(graph.module, new)
        module.add_module("laconic_mix", _Mix(self))
        for place, node in enumerate(graph.module.graph.nodes):
            copies[node] = new.node_copy(node, copies.__getitem__)
            if node in self.columns:
                copies[node] = new.call_module("laconic_mix", (copies[node], place, self.columns[node]))
        module.recompile()
        return module

    def mix(self, fresh: Tensor, place: int, column: int) -> Tensor:
        """What the layer at a place of the graph hands on, and what is kept of it."""
        if self.scores is None:
            return fresh
        score, kept = self.scores[column], self.kept.get(place, [])
        if not kept:
            reused = fresh
        else:
            weights = lagrange([time for time, _ in kept], self.now)
            reused = combine(weights, [value for _, value in kept])
        if not kept or float(score.detach()) > self.threshold:
            self.kept[place] = [*kept, (float(self.now), fresh.detach())][-self.order - 1 :]
        return score * fresh + (1 - score) * reused if kept else fresh


class _Mix(nn.Module):
    """A place in the graph where :meth:`_Training.mix` is called."""

    def __init__(self, training: _Training) -> None:
        super().__init__()
        self.mix = training.mix

    def forward(self, fresh: Tensor, place: int, column: int) -> Tensor:
        return self.mix(fresh, place, column)


def _first(value: Any) -> Tensor:
    while not isinstance(value, Tensor):
        value = value[0] if isinstance(value, list | tuple) else next(iter(value.values()))
    return value


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda item: function(item) if isinstance(item, Tensor) else item, value)
