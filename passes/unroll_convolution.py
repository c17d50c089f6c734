"""``laconic.unroll_convolution()``: a short depthwise convolution along a sequence becomes a sum of shifted products.

State-space models mix a few neighbouring tokens of each channel before their recurrence. As a call into a convolution
library that costs more than the arithmetic, and nothing around it can be fused with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ..patterns.describe import shape_of
from ..patterns.reasons import Reason
from ..patterns.sites import Convolution, Site
from .base import PlanContext, Policy, positive, register
from .plan import Fidelity, Prepared, Rewrite
from .preconditions import differentiated


@dataclass(frozen=True)
class Depthwise(Policy):
    """Write a one-dimensional depthwise convolution of few taps as multiplications and additions.

    Exact up to the order of the additions; Inductor fuses them with what comes before and after.

    Args:
        taps: the largest kernel that is written out. 0 leaves every convolution as it is.

    Raises:
        ValueError, TypeError: ``taps`` is negative or no integer.
    """

    taps: int = 8

    kinds: ClassVar[tuple[type[Site], ...]] = (Convolution,)
    fidelity: ClassVar[Fidelity] = Fidelity.REORDERED
    gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("taps", self.taps)

    def rewrite(self, site: Convolution, context: PlanContext) -> Rewrite | Reason | None:
        if not self._takes(site):
            return None
        assert isinstance(site.padding, tuple)
        taps, padding, dilation = shape_of(site.weight)[2], site.padding[0], site.dilation[0]
        bias = () if site.bias is None else (site.bias,)
        kept = context.graph.is_static(site.weight) and site.weight not in differentiated(context.graph)
        return Rewrite(
            site=site,
            inputs=(site.input, *bias) if kept else (site.input, *bias, site.weight),
            outputs=site.outputs,
            replacement=Shifted(taps, padding, dilation, biased=bool(bias), by_tap=kept),
            op="shifted products",
            fidelity=self.fidelity,
            prepared=(Prepared(site.weight, "by_tap", by_tap),) if kept else (),
        )

    def _takes(self, site: Convolution) -> bool:
        """Depthwise, along one axis, short, every position: other convolutions are no business of this pass."""
        kernel = shape_of(site.weight)
        if len(kernel) != 3 or site.transposed or site.stride != (1,) or not isinstance(site.padding, tuple):
            return False
        channels = shape_of(site.input)[1]
        return (
            statically_known_true(kernel[1] == 1)
            and statically_known_true(kernel[0] == channels)
            and statically_known_true(kernel[2] <= self.taps)
            and site.output.meta["val"].is_floating_point()
        )


def by_tap(weight: Tensor) -> tuple[Tensor]:
    """``[C, 1, K]`` as ``[K, C]``: the channels of one tap side by side, so that vectors of them are loaded at once."""
    return (weight.squeeze(1).t().contiguous(),)


@dataclass(frozen=True)
class Shifted:
    """``y[n, c, t] = bias[c] + sum_k weight[c, 0, k] x[n, c, t + k dilation - padding]``, zero outside ``x``.

    Operands are ``x [N, C, L]``, ``bias [C]`` if ``biased``, and the weight: ``[K, C]`` if ``by_tap``, else
    ``[C, 1, K]``.
    """

    taps: int
    padding: int
    dilation: int
    biased: bool
    by_tap: bool

    def __call__(self, x: Tensor, *operands: Tensor) -> Tensor:
        weight = operands[-1] if self.by_tap else operands[-1].squeeze(1).t()
        # Convolutions accumulate half precision in float32.
        wide = torch.promote_types(x.dtype, torch.float32)
        padded = F.pad(x, (self.padding, self.padding)).to(wide)
        length = padded.shape[2] - (self.taps - 1) * self.dilation
        total = operands[0].to(wide)[:, None] if self.biased else None
        for tap in range(self.taps):
            product = weight[tap].to(wide)[:, None] * padded.narrow(2, tap * self.dilation, length)
            total = product if total is None else total + product
        assert total is not None, "a convolution has at least one tap"
        return total.to(x.dtype)


unroll_convolution = register("unroll_convolution", {"depthwise": Depthwise}, default="depthwise")
