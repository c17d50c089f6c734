"""Feed-forward layers: two linear layers with an element-wise function between them, gated or not.

Each linear layer is taken as a possible last one. What it reads is followed upwards through arithmetic on single
elements until the first layers are met, and the arithmetic is recognised by its values, not by its spelling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from torch.fx import Node

from .effects import effects_of
from .feedforward_site import build
from .graph import NormalGraph
from .hidden import Candidate, Layers, Refused, hidden_value
from .linear import fixed_nodes
from .provenance import Provenance
from .reasons import Reason
from .sites import FeedForward, Site, Sites

Made = TypeVar("Made")


def find_feedforward(graph: NormalGraph, sites: Sites) -> list[Site]:
    """The feed-forward layers among the linear layers and 1x1 convolutions already in ``sites``.

    ``down(act(up(x)))``, ``down(act(gate(x)) * up(x))`` in either order, with gate and up in one layer or two, and
    ``down`` over a concatenation with an attention that runs beside it. A layer returns as many features as it reads
    and adds to the stream it reads from, or is a result of the graph (a layer compiled alone): embeddings, gates and
    projections of conditioning values, which look alike, are refused, as are longer chains of linear layers. Linear
    time; no guard on a symbolic size.
    """
    effects = effects_of(graph)
    layers = Layers(sites, effects, fixed_nodes(graph))
    candidates: list[Candidate] = []

    def attempt(step: Callable[[], Made | None]) -> Made | None:
        try:
            return step()
        except Refused as refused:
            sites.refusals.append(refused.reason)
            return None

    for down in layers.all:
        hidden = attempt(lambda down=down: hidden_value(down, layers))  # type: ignore[misc]
        if hidden is not None:
            candidates.append(Candidate(down, hidden))
    middle = {first.id for item in candidates for first in item.firsts} & {item.down.id for item in candidates}
    provenance = Provenance(graph)
    found: list[FeedForward] = []
    for item in candidates:
        if not item.returns_its_width:
            continue  # an embedding, a projection or a head
        if item.down.id in middle or any(first.id in middle for first in item.firsts):
            sites.refusals.append(_chained(item.down.output))
            continue
        site = attempt(lambda item=item: build(item, effects))  # type: ignore[misc]
        if site is not None and provenance.joins_its_stream(site):
            found.append(site)
        elif site is not None:
            sites.refusals.append(_beside(site.output))
    return [dataclasses.replace(site, id=f"feedforward.{number}") for number, site in enumerate(found)]


def _chained(node: Node) -> Reason:
    return Reason("unsupported-op", "more than two linear layers with functions between them", (node.name,))


def _beside(node: Node) -> Reason:
    text = "not added to the stream it is computed from: a projection or an embedding, not a feed-forward layer"
    return Reason("unsupported-op", text, (node.name,))
