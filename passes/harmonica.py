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
from .cache_static import Static, Table

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
) -> Router:
    """Train a router for ``model`` by step-wise denoising training with the image-error proxy (sections 3.2 and 3.3).

    In each iteration ``sampler(network, iteration)`` draws samples with ``network``, called as the model is and
    ``steps`` times; it returns the samples. At each step the model's output is the target for the mixed output, where
    every layer's output is ``score * fresh + (1 - score) * kept``, and the sampler goes on from the mixed one. The
    loss of a step is ``weight * |mixed - target|^2 / |target|^2 + cost * mean(scores)``; weights, of mean one, are how
    much switching on the router at that step changes the samples, found anew every ``reweigh`` iterations.

    The published recipe: rate 0.01, threshold 0.1, 20 000 iterations (``cost`` is normalised otherwise there).

    Raises:
        ValueError, TypeError: a number out of range. UserError: no repeated blocks with layers are found, or the
            sampler calls the network another number of times.
    """
    for name, value in (("steps", steps), ("iterations", iterations), ("reweigh", reweigh)):
        positive(name, value, zero=False)
    for name, number in (("cost", cost), ("rate", rate), ("threshold", threshold)):
        positive(name, number, kind=float)
    training = _Training(model, steps, threshold)
    with torch.no_grad():
        training.sample(sampler, 0, on=0)  # the first run finds the layers
    logits = torch.randn(steps, training.layers(), generator=torch.Generator().manual_seed(0))
    logits[0] = _LIMIT
    training.logits = logits.requires_grad_(True)
    optimiser = torch.optim.AdamW([training.logits], lr=rate)

    def learn(step: int, mixed: Tensor, target: Tensor) -> None:
        if step == 0:
            return
        with torch.enable_grad():
            error = (mixed - target).square().mean() / target.square().mean()
            loss = float(training.weights[step]) * error + cost * torch.sigmoid(training.logits[step]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            training.logits.clamp_(-_LIMIT, _LIMIT)
            training.logits[0] = _LIMIT

    for iteration in range(iterations):
        if iteration % reweigh == 0:
            training.weigh(sampler, iteration)
        training.sample(sampler, iteration, on=steps, learn=learn)
    return Router(torch.sigmoid(training.logits.detach()))


class _Training:
    """The model compiled to a graph that mixes, and what is kept of its layers along one trajectory."""

    def __init__(self, model: Callable[..., Any], steps: int, threshold: float) -> None:
        self.steps = steps
        self.threshold = threshold
        self.logits = torch.empty(steps, 0)
        self.weights = torch.ones(steps)
        self.columns: dict[Node, int] | None = None
        self.kept: dict[int, Tensor] = {}
        self.scores: Tensor | None = None
        self.learning = False
        self.network = torch.compile(model, backend=self._backend, fullgraph=True)

    def layers(self) -> int:
        assert self.columns is not None
        return len(set(self.columns.values()))

    def sample(
        self, sampler: Sampler, iteration: int, *, on: int, learn: Callable[[int, Tensor, Tensor], None] | None = None
    ) -> Any:
        """One trajectory with the router on in the last ``on`` steps (all scores one before)."""
        self.kept.clear()
        step = 0

        def network(*args: Any, **kwargs: Any) -> Any:
            nonlocal step
            if step >= self.steps:
                raise UserError(f"the sampler calls the network more than {self.steps} times")
            self.scores, self.learning = None, False
            target = None
            with torch.no_grad():
                if learn is not None:
                    target = self.network(*args, **kwargs)
                    self.learning = True
                if self.logits.shape[1]:
                    with torch.set_grad_enabled(self.learning):
                        scores = torch.sigmoid(self.logits[step])
                    live = step > 0 and step >= self.steps - on
                    self.scores = scores if live else torch.ones_like(scores)
                result = self.network(*args, **kwargs)
            if learn is not None:
                learn(step, _first(result), _first(target))
            step += 1
            return _detached(result)

        result = sampler(network, iteration)
        if step != self.steps:
            raise UserError(f"the sampler called the network {step} times, not {self.steps}")
        return result

    @torch.no_grad()
    def weigh(self, sampler: Sampler, iteration: int) -> None:
        """Weigh each step by how much its switching on changes the samples when all later ones are on already."""
        before = _first(self.sample(sampler, iteration, on=0))
        found = torch.zeros(self.steps)
        for on in range(1, self.steps):
            after = _first(self.sample(sampler, iteration, on=on))
            found[self.steps - on] = (after - before).square().mean()
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
        score, kept = self.scores[column], self.kept.get(place)
        if kept is None or float(score.detach()) > self.threshold:
            self.kept[place] = fresh.detach()
        return fresh if kept is None else score * fresh + (1 - score) * kept


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


def _detached(value: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda item: item.detach() if isinstance(item, Tensor) else item, value)
