"""torchvision's wheel brings no CPU operators; its import needs their names. Declared once for every test process."""

from __future__ import annotations

import contextlib
import importlib.metadata

import torch


def declare_torchvision_operators() -> None:
    """Make ``import torchvision`` (which timm and transformers do) work without torchvision's compiled operators."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("torchvision")
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEEP.append(library)


_KEEP: list[torch.library.Library] = []
declare_torchvision_operators()
