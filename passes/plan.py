"""A plan is pure data: what to put in place of what. Only :mod:`laconic.passes.apply` changes a graph."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.fx import Node

from ..patterns.reasons import Reason
from ..patterns.sites import Site

if TYPE_CHECKING:
    from .base import Policy


class Fidelity(enum.Enum):
    """How close a rewrite stays to the original."""

    EXACT = "exact"
    """The same floating-point operations."""
    REORDERED = "reordered"
    """The same real-number function; only rounding differs."""
    APPROXIMATE = "approximate"
    """A different function; its error is measured against ``error_budget`` when one is set."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Tensors derived from one graph input on the host, kept across calls while that input is unchanged.

    ``derive(tensor) -> tuple of tensors`` runs again whenever the identity, data pointer, version or sampled content
    of the tensor that came in differs, so nothing is ever fixed at compile time. ``key`` tells derivations apart:
    equal keys of one input share one result.
    """

    source: Node
    key: str
    derive: Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Rewrite:
    """Put ``replacement(*inputs, *prepared tensors)`` in place of the subgraph from ``inputs`` to ``outputs``.

    ``replacement`` is an ordinary function over tensors that calls ``laconic::`` operators and plain torch; it is
    traced on the fake values of ``inputs`` and must return one tensor per output (a single tensor, or a tuple) with
    the outputs' shapes and dtypes. ``inputs`` may also be any values computed before the outputs.
    """

    site: Site
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    replacement: Callable[..., Any]
    op: str
    fidelity: Fidelity
    prepared: tuple[Prepared, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class CachedRegion:
    """A part of the graph whose result may be reused across steps, decided on the host between compiled pieces.

    The region computes ``exits`` from ``entries`` (and from any other values, which stay inputs of the piece). Both may
    be graph inputs or values computed anywhere in the graph; entries are what the policy gets to see, whether or not
    the region reads them. A graph may hold any number of regions; they may be nested, follow each other or lie on two
    streams. ``policy`` is the frozen settings object; the backend makes its run-time counterpart, a tracker, for this
    ``role``: which part of the policy's scheme the region is (``"front"``, ``"rear"``, a site's id), another for each.
    ``site`` is what the report shows it under (a block, or None for the whole graph).
    """

    entries: tuple[Node, ...]
    exits: tuple[Node, ...]
    policy: Policy
    site: Site | None = None
    role: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Cut:
    """A part of the graph that is compiled on its own, so that equal parts are compiled once. It always runs."""

    nodes: frozenset[Node]
    policy: Policy
    site: Site | None = None


@dataclass(eq=False)
class Plan:
    """Everything one pass wants done to one graph, and everything it refused."""

    rewrites: list[Rewrite] = field(default_factory=list)
    refusals: list[tuple[Site | None, Reason]] = field(default_factory=list)
    regions: list[CachedRegion] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
