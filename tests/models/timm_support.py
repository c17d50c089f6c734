"""Let timm be imported beside a torchvision wheel that brings no compiled operators."""

from __future__ import annotations

import torch

_KEEP: list[torch.library.Library] = []


def declare_torchvision_operators() -> None:
    """Declare the operators whose shape functions torchvision registers on import. Does nothing when they exist."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _KEEP.append(library)
