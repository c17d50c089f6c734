"""Let timm be imported beside a torchvision wheel whose compiled operators do not fit the torch that is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_KEEP: list[torch.library.Library] = []


def declare_torchvision_operators() -> None:
    """Declare the operators whose shape functions torchvision registers on import, unless it can bring them itself."""
    spec = importlib.util.find_spec("torchvision")
    for file in Path(spec.origin).parent.glob("_C*.so") if spec is not None and spec.origin else ():
        try:
            torch.ops.load_library(str(file))
        except OSError:
            continue  # built for another torch: CUDA wheels beside a CPU build
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _KEEP.append(library)
