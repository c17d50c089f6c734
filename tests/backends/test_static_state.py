"""What caches remember lies in buffers that stay where they are, and nothing handed out is part of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import laconic
from laconic.backends import runner, session
from laconic.passes.reuse import Tracker
from tests.passes.test_share_blocks import Stack

STEPS = 12


class Velocity(nn.Module):
    """A small transformer as a velocity field: the blocks are found, and the output has the latent's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = Stack(4).eval().requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.stack(x) * (1 + t) - 0.1 * x


POLICIES: dict[str, laconic.Pass] = {
    "easycache": laconic.cache("easycache", threshold=0.5, warmup=2),
    "easycache-order-1": laconic.cache("easycache", threshold=0.5, warmup=2, order=1),
    "taylor-network": laconic.cache("taylor", interval=3, order=2, warmup=1, repay=0.5),
    "taylor-blocks": laconic.cache("taylor", interval=3, order=1, warmup=1, level="blocks"),
    "taylor-layers": laconic.cache("taylor", interval=2, order=0, warmup=1, level="layers"),
    "static": laconic.cache("static", table=[step % 3 == 0 for step in range(STEPS - 1)] + [True]),
    "first-block": laconic.cache("first-block", threshold=9.0, warmup=1, max_consecutive=2),
    "delta-dit": laconic.cache("delta-dit", interval=2, blocks=2),
    "sada": laconic.cache("sada", multistep=4, period=3, start=3, stop=STEPS),
}


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch._dynamo.reset()
    monkeypatch.setattr(runner, "compile_graph", lambda module, inputs, options: module)
    yield
    torch._dynamo.reset()


def trackers() -> dict[Any, Tracker]:
    """Every tracker of the entered session."""
    (trajectory,) = session._active.get()
    strands = list(trajectory._strands.values())
    return {(index, *key): state.tracker for index, s in enumerate(strands) for key, state in s.trackers.items()}


def where(found: dict[Any, Tracker]) -> dict[Any, int]:
    return {(*key, name): kept.data_ptr() for key, t in found.items() for name, kept in t.buffers().items()}


def storages(tensors: Any) -> set[int]:
    return {value.untyped_storage().data_ptr() for value in tensors}


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("name", POLICIES)
def test_state_stays_where_it_is_and_is_never_handed_out(name: str, streams: int) -> None:
    fast = torch.compile(Velocity(), backend="laconic", options={"passes": [POLICIES[name]]})
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    addresses: dict[Any, int] = {}
    with torch.no_grad(), laconic.session(fast, steps=STEPS, calls_per_step=streams) as here:
        for step in range(STEPS):
            for stream in range(streams):
                out = fast(x, torch.tensor(step / STEPS) + 0.01 * stream)
                found = trackers()
                now = where(found)
                # A buffer is allocated at its first use and never moves; none is given up.
                assert {key: now.get(key) for key in addresses} == addresses
                addresses = now
                kept = storages(value for tracker in found.values() for value in tracker.tensors())
                assert kept == storages(value for tracker in found.values() for value in tracker.buffers().values())
                assert kept.isdisjoint(storages([out, x]))
                x = x + out / STEPS
    assert here.summary().reused > 0 and addresses
    assert len(set(addresses.values())) == len(addresses)


def test_after_the_first_interval_no_step_allocates_a_buffer() -> None:
    """A long trajectory holds no more than a short one."""
    fast = torch.compile(Velocity(), backend="laconic", options={"passes": [POLICIES["taylor-network"]]})
    held = {}
    for steps in (STEPS, 4 * STEPS):
        x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), laconic.session(fast, steps=steps) as here:
            for step in range(steps):
                x = x + fast(x, torch.tensor(step / steps)) / steps
        held[steps] = here.summary().peak_bytes
    assert held[STEPS] == held[4 * STEPS] > 0


def test_buffers_follow_shape_and_dtype_and_both_gradient_modes() -> None:
    tracker = Tracker()
    with torch.inference_mode():
        kept = tracker.keep("a", torch.ones(3))
    again = tracker.keep("a", torch.full((3,), 2.0))
    assert again is kept and torch.equal(kept, torch.full((3,), 2.0))
    assert not tracker.keep("a", torch.ones(3, requires_grad=True)).requires_grad
    for other in (torch.ones(4), torch.ones(3, dtype=torch.float64)):
        before = tracker.buffers()["a"]
        assert tracker.keep("a", other) is not before
        assert tracker.buffers()["a"].dtype == other.dtype and len(tracker.tensors()) == 1
    strided = torch.ones(2, 3).t()
    assert tracker.keep("b", strided).stride() == strided.stride()
