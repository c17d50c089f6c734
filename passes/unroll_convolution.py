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
from .plan import Fidelity, Rewrite


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
        operands = (site.input, site.weight, *(() if site.bias is None else (site.bias,)))
        assert isinstance(site.padding, tuple)
        return Rewrite(
            site=site,
            inputs=operands,
            outputs=site.outputs,
            replacement=Shifted(site.padding[0], site.dilation[0]),
            op="shifted products",
            fidelity=self.fidelity,
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


@dataclass(frozen=True)
class Shifted:
    """``y[n, c, t] = bias[c] + sum_k weight[c, 0, k] x[n, c, t + k dilation - padding]``, zero outside ``x``."""

    padding: int
    dilation: int

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        # Convolutions accumulate half precision in float32.
        wide = torch.promote_types(x.dtype, torch.float32)
        taps = weight.shape[2]
        padded = F.pad(x, (self.padding, self.padding)).to(wide)
        length = padded.shape[2] - (taps - 1) * self.dilation
        kernel = weight.to(wide)
        total = None if bias is None else bias.to(wide)[:, None]
        for tap in range(taps):
            product = kernel[:, :, tap] * padded.narrow(2, tap * self.dilation, length)
            total = product if total is None else total + product
        assert total is not None
        return total.to(x.dtype)


unroll_convolution = register("unroll_convolution", {"depthwise": Depthwise}, default="depthwise")
