"""What caches held is given back: to the interpreter, to the count of tensors, and to the operating system."""

from __future__ import annotations

import contextlib
import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import laconic
from laconic.backends import session

pytestmark = pytest.mark.usefixtures("node_by_node")

STEPS = 4
MEGABYTES = 34
"""Of one latent: above what the C library keeps for itself once freed, so every one shows in the process's size."""


class Field(nn.Module):
    """A velocity field on rows of eight numbers, with weights of a size of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.big = nn.Parameter(torch.zeros(MEGABYTES << 18), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.addcmul(self.big[:8], x, t)


def resident() -> float:
    """Megabytes of memory the process has."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def tensors() -> int:
    """How many large tensors the interpreter knows."""
    gc.collect()
    found = [item for item in gc.get_objects() if issubclass(type(item), Tensor)]
    return sum(item.numel() >= MEGABYTES << 18 for item in found)


def trackers() -> list[weakref.ref[Any]]:
    """The state of the innermost entered session, weakly."""
    strands = list(session._active.get()[-1]._strands.values())
    states = [state for strand in strands for state in strand.trackers.values()]
    return [weakref.ref(item) for item in (*strands, *states, *(state.tracker for state in states))]


@torch.no_grad()
def run(fast: Any, steps: int = STEPS, streams: int = 1) -> list[weakref.ref[Any]]:
    """A trajectory; what its state was, weakly."""
    x = torch.zeros(MEGABYTES << 15, 8)
    with laconic.session(fast, steps=STEPS, calls_per_step=streams):
        for step in range(steps):
            for stream in range(streams):
                out = fast(x, torch.tensor(step / STEPS) + stream)
            x += out / STEPS
        found = trackers()
        if steps < STEPS:
            raise KeyError
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of the process from /proc")
def test_the_process_is_as_large_as_before() -> None:
    passes = [laconic.cache("taylor", interval=2, order=2, repay=0.5)]
    model = Field()
    fast = torch.compile(model, backend="laconic", options={"passes": passes})
    run(fast)
    before, known = resident(), tensors()
    held: list[float] = []

    @torch.no_grad()
    def inside(fast: Any) -> None:
        x = torch.zeros(MEGABYTES << 15, 8)
        with laconic.session(fast, steps=STEPS):
            for step in range(3):
                fast(x, torch.tensor(step / STEPS))
            held.append(resident())
            raise KeyError

    with contextlib.suppress(KeyError):
        inside(fast)
    # The state is what it says; then it is gone, whatever ends a trajectory, however many there were.
    assert held[0] > before + 1.5 * MEGABYTES
    left = [*run(fast), *run(fast, streams=2)]
    with pytest.raises(KeyError):
        run(fast, steps=2)
    assert left and not [item for item in left if item() is not None]
    assert tensors() == known
    assert resident() < before + MEGABYTES / 4
    # The model goes with its weights, and with what a session still entered knew of it.
    weight = weakref.ref(model.big)
    entered = laconic.session(fast, steps=STEPS)
    with contextlib.suppress(KeyError), torch.no_grad(), entered:
        fast(torch.zeros(MEGABYTES << 15, 8), torch.tensor(0.0))
        state = trackers()
        assert resident() > before + MEGABYTES
        del model, fast
        torch._dynamo.reset()
        gc.collect()
        assert weight() is None and not [item for item in state if item() is not None]
        assert resident() < before - MEGABYTES / 2
        raise KeyError
