"""The network of a guidance site on its conditional half alone: what a policy runs instead of the doubled batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ..patterns.guidance_halves import half_program
from ..patterns.reasons import Reason
from ..patterns.sites import Guidance
from .base import PlanContext
from .plan import CachedRegion, Plan
from .reuse import CachePolicy, unfit

_numbers = itertools.count()


@dataclass(eq=False)
class ConditionalHalf:
    """``run(entries)`` is c, ``strength(entries)`` is s of ``u + s * (c - u)``, from the entries of the region.

    The half is compiled when it first runs, by the same backend, and once for all trajectories.
    """

    program: GraphModule
    reads: tuple[tuple[int, int | None], ...]
    """For each input of the program the entry it is, and the axis along which it is halved (None: it is not)."""
    index: int
    """Which half is the conditional one."""
    scale: float | int
    """The scale itself, or (an int) the entry that holds it."""
    factor: float
    offset: float
    _compiled: Any = field(default=None, repr=False)

    def run(self, entries: Sequence[Any]) -> Tensor:
        """The conditional output ``[B, ...]``."""
        if self._compiled is None:
            program = self.program

            def conditional_half(*values: Any) -> Any:
                return program(*values)

            # Inside a compiled call Dynamo passes over a graph module's own frames, and would run it as it is. It keeps
            # compiled code by code object, so every half has one of its own.
            code = conditional_half.__code__
            conditional_half.__code__ = code.replace(co_name=f"{code.co_name}_{next(_numbers)}")
            self._compiled = torch.compile(conditional_half, backend="laconic")
        values = [
            entries[entry] if axis is None else entries[entry].chunk(2, axis)[self.index] for entry, axis in self.reads
        ]
        made: Tensor = self._compiled(*values)
        return made

    def strength(self, entries: Sequence[Any]) -> Any:
        """A number, or a tensor that broadcasts against c."""
        scale = entries[self.scale] if isinstance(self.scale, int) else self.scale
        return self.offset + self.factor * scale


def guided_regions(context: PlanContext, policy: CachePolicy, bind: Any) -> Plan:
    """A region for each guidance site, from everything its network reads to (guided output, c, u).

    ``bind(half)`` returns the policy object for the site's region.
    """
    reason = unfit(context.graph)
    if reason is not None:
        return Plan(refusals=[(None, reason)])
    plan = Plan()
    for site in context.sites.of(Guidance):
        found = _region(site, bind)
        if isinstance(found, Reason):
            plan.refusals.append((site, found))
        else:
            plan.regions.append(found)
    if not plan.regions and not plan.refusals:
        text = "no guidance was found in this graph: compile the whole step, the doubled batch and what combines it"
        plan.refusals.append((None, Reason("no-site", text)))
    return plan


def _region(site: Guidance, bind: Any) -> CachedRegion | Reason:
    if len(site.outputs) > 1:
        return Reason("weights-escape", "more than the guided output is read", tuple(n.name for n in site.outputs[1:]))
    program = half_program(site)
    named = {node.name: node for node in site.inputs}
    sources: list[Node] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            # A copy in another graph may be renamed; its name hint begins with the original's.
            source = named.get(node.target) or named.get(node.name)
            if source is None:
                return Reason("unsupported-op", f"{node.name} of the half is no input of the site", (node.name,))
            sources.append(source)
    entries: list[Node] = list(dict.fromkeys((site.latent, *sources)))
    scale: float | int
    if isinstance(site.scale, Node):
        if site.scale not in entries:
            entries.append(site.scale)
        scale = entries.index(site.scale)
    else:
        scale = float(site.scale)
    half = ConditionalHalf(
        program,
        tuple((entries.index(node), site.doubled_inputs.get(node)) for node in sources),
        site.order.index("conditional"),
        scale,
        site.scale_factor,
        site.scale_offset,
    )
    exits = (site.outputs[0], site.conditional, site.unconditional)
    return CachedRegion(entries=tuple(entries), exits=exits, policy=bind(half), site=site, role=site.id)
