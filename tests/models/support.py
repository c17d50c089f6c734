"""Comparing what real models return, and feeding them more of the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def tensors(result: Any) -> list[Tensor]:
    """Every floating-point tensor of a result, whatever dataclass, dict or tuple it comes in."""
    return [
        leaf
        for leaf in torch.utils._pytree.tree_leaves(dict(result) if hasattr(result, "items") else result)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def relative(value: Tensor, reference: Tensor) -> float:
    """Relative L2 error; the absolute one where the reference is zero."""
    scale = reference.double().norm()
    return float((value.double() - reference.double()).norm() / scale) if scale > 0 else float(value.double().norm())


def with_batch(inputs: Any, batch: int) -> Any:
    """A model's inputs (nested) with every batch of two, as the builders make them, grown to ``batch``."""

    def grown(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or leaf.shape[0] != 2:
            return leaf
        return leaf[torch.arange(batch) % 2]

    return torch.utils._pytree.tree_map(grown, inputs)
