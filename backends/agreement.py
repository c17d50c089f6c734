"""Ranks of one job decide alike: a step is reused only if every rank would, so that collectives inside a model meet."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed


def agreed(reuse: bool, group: Any = None) -> bool:
    """True when every rank of ``group`` (a process group; None: the default one, False: this rank alone) says so.

    One all-reduced number when torch.distributed is initialised with more than one rank, nothing otherwise. Every rank
    of the group must make the same calls.
    """
    if group is False or not distributed.is_available() or not distributed.is_initialized():
        return reuse
    if distributed.get_world_size(group) == 1:
        return reuse
    flag = torch.tensor(int(reuse), device=_device(group))
    distributed.all_reduce(flag, op=distributed.ReduceOp.MIN, group=group)
    return bool(flag.item())


def _device(group: Any) -> str:
    backend = str(distributed.get_backend(group))
    return "cuda" if backend == "nccl" else "cpu"
