"""Quantisation: linear layers in 8-bit integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from ..patterns.graph import NormalGraph
from ..patterns.reasons import Reason
from ..patterns.sites import Linear, Site
from .base import PlanContext, Policy, positive, register
from .ops.int8 import int8_linear, multiplies_bytes, quantize_rows
from .plan import Fidelity, Prepared, Rewrite
from .preconditions import no_gradient

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

LONGEST = 2**31 // 127**2
"""The longest row whose product of int8 values is sure to fit int32."""

PRODUCTS = {"cpu": 2**21, "cuda": 2**31}
"""Rows x inputs x outputs from which int8 pays. On CPU measured (``benchmarks/int8.py --crossover``): below two million
products the passes over the activations and the look-up of the packed weight cost what the product saves. On CUDA an
estimate from launch and memory cost, to be replaced by a measurement."""


@dataclass(frozen=True)
class Int8(Policy):
    """8-bit weights and activations: one scale for each output channel and, found at run time, for each token.

    Needs no calibration; nothing is fixed when compiling, since weights are packed when they first arrive and again
    whenever they have changed. A linear layer whose weight is computed in the graph, or needs a gradient, is refused.

    ``min_features``: layers with fewer inputs or outputs are left alone. Above every width in the model this is the
    identity.
    ``min_products``: layers with fewer multiplications (rows x inputs x outputs) in the first call are left alone as
    not faster. None is the measured crossover of the device, and leaves CPUs without 8-bit dot products alone; 0
    quantises whatever its size.

    Source: Dettmers et al., LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale (2022), section 2.
    """

    kinds: ClassVar[tuple[type[Site], ...]] = (Linear,)
    fidelity: ClassVar[Fidelity] = Fidelity.APPROXIMATE

    min_features: int = 64
    min_products: int | None = None

    def __post_init__(self) -> None:
        positive("min_features", self.min_features)
        if self.min_products is not None:
            positive("min_products", self.min_products)

    def rewrite(self, site: Linear, context: PlanContext) -> Rewrite | Reason | None:
        reason = (
            _unsupported(site)
            or _weight_not_kept(site, context.graph)
            or no_gradient(site, context.graph, 'quantize("int8")')
            or self._slower(site)
        )
        return reason or _rewrite(site)

    def _slower(self, site: Linear) -> Reason | None:
        """``not-faster`` by the settings: too narrow, too little work, or a CPU without the instructions."""
        names = (site.output.name,)
        inputs, outputs = _features(site)
        if min(inputs, outputs) < self.min_features:
            text = f"{inputs} x {outputs} features are below min_features={self.min_features}"
            return Reason("not-faster", text, names)
        device = site.input.meta["val"].device.type
        least = PRODUCTS.get(device, PRODUCTS["cuda"]) if self.min_products is None else self.min_products
        if device == "cpu" and self.min_products is None and not multiplies_bytes():
            return Reason("not-faster", "this CPU has no 8-bit dot product instructions", names)
        rows = _hint(site.input.meta["val"].numel()) // inputs
        if rows * inputs * outputs < least:
            text = f"{rows} x {inputs} x {outputs} multiplications are below the {least} from which int8 pays"
            return Reason("not-faster", text, names)
        return None


def _features(site: Linear) -> tuple[int, int]:
    """Inputs and outputs of the layer."""
    rows, columns = site.weight.meta["val"].shape
    return (rows, columns) if site.transposed else (columns, rows)


def _unsupported(site: Linear) -> Reason | None:
    names = (site.output.name,)
    tensors = [node.meta["val"] for node in (site.input, site.weight, site.bias) if node is not None]
    for value in (*tensors, site.output.meta["val"]):
        if value.dtype not in DTYPES:
            return Reason("unsupported-dtype", f"no 8-bit grid for {value.dtype}", names)
    x, weight = tensors[0], tensors[1]
    if x.dim() == 0 or weight.dim() != 2 or not all(isinstance(size, int) for size in weight.shape):
        text = f"input {tuple(x.shape)} and weight {tuple(weight.shape)} are not rows and a matrix of known size"
        return Reason("unsupported-shape", text, names)
    if any(isinstance(size, int) and size == 0 for value in tensors for size in value.shape):
        return Reason("unsupported-shape", "there is nothing to compute", names)
    if site.bias is not None and tensors[2].dim() != 1:
        return Reason("unsupported-shape", f"the bias has the shape {tuple(tensors[2].shape)}", names)
    if _features(site)[0] > LONGEST:
        return Reason("unsupported-shape", f"rows longer than {LONGEST} could overflow 32-bit sums", names)
    return None


def _weight_not_kept(site: Linear, graph: NormalGraph) -> Reason | None:
    if not graph.is_static(site.weight):
        return Reason("weight-not-parameter", f"{site.weight.name} is not a parameter or buffer", (site.weight.name,))
    # What is packed before the call must still hold inside it.
    pending, seen = [site.weight], {site.weight}
    while pending:
        node = pending.pop()
        for user in node.users:
            alias = _alias(user, node)
            if alias is not None and alias.is_write:
                return Reason("mutation", f"{user.name} writes to {site.weight.name}", (user.name, site.weight.name))
            if alias is not None and user not in seen:
                seen.add(user)
                pending.append(user)
    return None


def _alias(user: Node, operand: Node) -> Any:
    """How ``user`` aliases ``operand`` by its schema (torch's alias info), or None when it only reads it."""
    schema = getattr(user.target, "_schema", None)
    if schema is None:
        return None
    for position, argument in enumerate(schema.arguments):
        given = user.args[position] if position < len(user.args) else user.kwargs.get(argument.name)
        if given is operand and argument.alias_info is not None:
            return argument.alias_info
    return None


def _rewrite(site: Linear) -> Rewrite:
    dtype = site.output.meta["val"].dtype
    inputs = (site.input,) if site.bias is None else (site.input, site.bias)

    def quantized(x: Tensor, *rest: Tensor) -> Tensor:
        *bias, weight, weight_scale = rest
        values, scale = quantize_rows(x)
        return int8_linear(values, scale, weight, weight_scale, bias[0] if bias else None, dtype)

    packed = (
        Prepared(site.weight, "int8_columns", pack_columns)
        if site.transposed
        else Prepared(site.weight, "int8_rows", pack_rows)
    )
    return Rewrite(
        site=site,
        inputs=inputs,
        outputs=site.outputs,
        replacement=quantized,
        op=int8_linear.qualified_name,
        fidelity=Fidelity.APPROXIMATE,
        prepared=(packed,),
    )


def pack_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight [N, K]`` as int8 ``[N, K]`` and one float32 scale for each row ``[N]``."""
    values, scale = quantize_rows(weight.detach())
    return values, scale.squeeze(-1)


def pack_columns(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight [K, N]`` as int8 ``[N, K]`` and one float32 scale for each of its columns ``[N]``."""
    return pack_rows(weight.detach().t())


def _hint(size: Any) -> int:
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return int(hint) if hint is not None else 0


quantize = register("quantize", {"int8": Int8})
