"""What the attention zoo is made of: sizes that can change, operands before their heads, families of spellings."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from laconic.patterns import proof
from laconic.patterns.describe import evaluated
from laconic.patterns.operands import permuted
from laconic.patterns.sites import Attention, Operand
from tests.patterns.graphs import attentions, normal

Spelling = Callable[..., Any]


@dataclass
class Sizes:
    """Batch, heads, queries, keys, width of queries and keys, width of values; ``G`` query heads for each key head."""

    B: int = 2
    H: int = 3
    S: int = 5
    T: int = 7
    D: int = 4
    E: int = 6
    G: int = 2

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.D)


n = Sizes()


@contextlib.contextmanager
def square(size: int = 3) -> Iterator[None]:
    """Every axis of one size: nothing that exchanges two of them can be told by shapes."""
    before = dataclasses.asdict(n)
    for name in ("B", "H", "S", "T", "D", "E"):
        setattr(n, name, size)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(n, name, value)


@dataclass(frozen=True)
class Family:
    """Spellings of one attention: the same inputs, and sites that mean the same. The first one is the standard."""

    name: str
    spellings: tuple[Spelling, ...]
    inputs: Callable[[], tuple[Tensor, ...]]


def made(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value before they are split into heads: ``[B, S, H*D]``, ``[B, T, Hk*D]``, ``[B, T, Hk*E]``."""
    shapes = (n.B, n.S, n.H * groups * n.D), (n.B, n.T, n.H * n.D), (n.B, n.T, n.H * n.E)
    return tuple(made(*shape, seed=seed) for seed, shape in enumerate(shapes))  # type: ignore[return-value]


def split(x: Tensor, width: int) -> Tensor:
    """``[B, N, heads * width]`` to ``[B, heads, N, width]``."""
    return x.view(x.shape[0], x.shape[1], -1, width).transpose(1, 2)


def heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three operands with their heads apart."""
    return split(q, n.D), split(k, n.D), split(v, n.E)


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    """Scaled products of all queries and keys ``[B, H, S, T]``."""
    return split(q, n.D) @ split(k, n.D).mT * n.scale


def only_site(function: Spelling, *inputs: Tensor) -> Attention:
    """The one attention of ``function``, proven at its own sizes and shrunk as if it were a large one."""
    graph = normal(function, *inputs)
    sites = attentions(graph)
    found = sites.of(Attention)
    assert len(found) == 1, [str(reason) for reason in sites.refusals]
    (site,) = found
    for cheap in (proof.CHEAP, 0):
        with (
            mock.patch.object(proof, "CHEAP", cheap),
            mock.patch.object(proof, "AFFORDABLE", proof.CHEAP if cheap else 0),
        ):
            assert proof.prove(site, graph, verify="always") is None
    return site


def shape(operand: Operand) -> tuple[int, ...]:
    """The shape of an operand in its canonical axis order."""
    return tuple(permuted(operand.node.meta["val"], operand.permutation).shape)


def meaning_of(site: Attention) -> dict[str, Any]:
    """Everything a pass may depend on, comparable across graphs. ``hidden`` is a boolean mask stored the other way."""
    output = site.output.meta["val"]
    order = site.output_permutation or tuple(range(output.dim()))
    return {
        "query": shape(site.query),
        "key": shape(site.key),
        "value": shape(site.value),
        "output": tuple(output.permute(sorted(range(output.dim()), key=order.__getitem__)).shape),
        "scale": pytest.approx(site.scale, rel=1e-6),
        "biases": [
            (b.kind.replace("hidden", "boolean"), b.structure, b.window, b.value is None, b.cut) for b in site.biases
        ],
        "groups": site.groups,
        "dropout": site.dropout,
        "factor": site.factor is not None,
        "soft_cap": site.soft_cap and pytest.approx(site.soft_cap, rel=1e-6),
        "sinks": site.sinks is not None,
        "mixed": (site.share is not None, site.added is not None),
        "flops": evaluated(site.flops, site.dimensions),
    }
