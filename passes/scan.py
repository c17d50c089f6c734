"""``laconic.scan()``: a recurrence spelled as a loop or a tree becomes one operator.

``laconic.selective_scan()`` follows it: operands made and states read inside the operator. Both are exact up to
rounding and on by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter

from ..patterns import recurrence as meaning
from ..patterns.describe import size_hint
from ..patterns.reasons import Reason
from ..patterns.sites import Recurrence, Scan, SelectiveScan, Site
from .base import PlanContext, Policy, register
from .ops.recurrence import linear_recurrence
from .ops.selective_scan import selective_scan as selective_scan_operator
from .plan import Fidelity, Rewrite


@dataclass(frozen=True)
class LinearScan(Policy):
    """Compute every linear recurrence with one operator instead of one copy of the loop's body per step.

    The graph shrinks from a size proportional to the length of the sequence to a constant one, and with it the time to
    compile. Source: Blelloch, "Prefix Sums and Their Applications" (1990).
    """

    kinds: ClassVar[tuple[type[Site], ...]] = (Scan, Recurrence)
    fidelity: ClassVar[Fidelity] = Fidelity.REORDERED
    gradient: ClassVar[bool] = True

    def rewrite(self, site: Scan | Recurrence, context: PlanContext) -> Rewrite | Reason | None:
        if isinstance(site, Recurrence):
            return site.obstacle
        if site.program is None:
            return Reason("not-proven", "the site has no program", tuple(node.name for node in site.outputs))
        return Rewrite(
            site=site,
            inputs=site.inputs,
            outputs=site.outputs,
            replacement=Replacement(site.program),
            op=linear_recurrence.qualified_name,
            fidelity=self.fidelity,
        )


@dataclass(frozen=True)
class Selective(Policy):
    """Read the states of a recurrence with an exponential decay as they are made: they are never stored.

    Takes what ``scan()`` leaves behind; memory traffic falls by the number of states per channel. Source: Gu and Dao,
    "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023), section 3.3.
    """

    kinds: ClassVar[tuple[type[Site], ...]] = (SelectiveScan,)
    fidelity: ClassVar[Fidelity] = Fidelity.REORDERED
    gradient: ClassVar[bool] = True

    def rewrite(self, site: SelectiveScan, context: PlanContext) -> Rewrite | Reason | None:
        return Rewrite(
            site=site,
            inputs=site.inputs,
            outputs=site.outputs,
            replacement=Replacement(site.program),
            op=selective_scan_operator.qualified_name,
            fidelity=self.fidelity,
        )


@dataclass(frozen=True, eq=False)
class Replacement:
    """A scan site's program with its recurrence computed by the operator."""

    program: GraphModule

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(_WithOperator(self.program).run(*inputs))


class _WithOperator(Interpreter):
    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is meaning.recurrence:
            return in_memory_order(*args)
        if target is meaning.selective:
            return selective_scan_operator(*args)
        return super().call_function(target, args, kwargs)


def in_memory_order(decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool) -> Tensor:
    """``linear_recurrence`` with its axes in the order in which the operands lie in memory.

    The operator returns a contiguous tensor; so its states are written as its operands are read.
    """
    strides = [size_hint(a) + size_hint(b) for a, b in zip(decay.stride(), input.stride(), strict=True)]
    order = sorted(range(input.dim()), key=lambda axis: -strides[axis])
    if order == list(range(input.dim())):
        return linear_recurrence(decay, input, initial, dim, reverse)
    if initial is not None:
        rest = [axis for axis in order if axis != dim]
        initial = initial.permute([axis - (axis > dim) for axis in rest])
    states = linear_recurrence(decay.permute(order), input.permute(order), initial, order.index(dim), reverse)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return torch.permute(states, inverse)


scan = register("scan", {"linear": LinearScan}, default="linear")
selective_scan = register("selective_scan", {"fused": Selective}, default="fused")
