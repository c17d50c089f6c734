"""What caches remember lies in buffers that stay where they are, and nothing handed out is part of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import laconic
from laconic.backends import runner, session
from laconic.passes.reuse import CachePolicy, Tracker
from tests.passes.test_share_blocks import Stack

pytestmark = pytest.mark.usefixtures("node_by_node")

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


class Guided(nn.Module):
    """The same with guidance in the graph; the condition is added to the latent."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Velocity()

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        u, c = self.network(torch.cat([x, x]) + condition, t).chunk(2)
        return u + 3.0 * (c - u)


MIXED = ((0.5, 0.25), (0.25, 0.1))
GUIDED: dict[str, laconic.Pass] = {
    "linear-ag": laconic.cache("linear-ag", coefficients=[MIXED if step % 3 == 2 else None for step in range(STEPS)]),
    "adaptive-guidance": laconic.cache("adaptive-guidance", threshold=0.0),
}


def trackers() -> dict[Any, Tracker]:
    """Every tracker of the entered session."""
    (trajectory,) = session._active.get()
    strands = list(trajectory._strands.values())
    return {(index, *key): state.tracker for index, s in enumerate(strands) for key, state in s.trackers.items()}


def where(found: dict[Any, Tracker]) -> dict[Any, int]:
    return {(*key, name): kept.data_ptr() for key, t in found.items() for name, kept in t.buffers().items()}


def storages(tensors: Any) -> set[int]:
    return {value.untyped_storage().data_ptr() for value in tensors}


def inputs_of(name: str) -> tuple[nn.Module, tuple[Tensor, ...], laconic.Pass]:
    """The model of a policy, what it is given besides latent and time, and the pass."""
    if name in GUIDED:
        condition = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))
        return Guided(), (condition,), GUIDED[name]
    return Velocity(), (), POLICIES[name]


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("name", [*POLICIES, *GUIDED])
def test_state_stays_where_it_is_and_is_never_handed_out(name: str, streams: int) -> None:
    model, more, chosen = inputs_of(name)
    fast = torch.compile(model, backend="laconic", options={"passes": [chosen]})
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    addresses: dict[Any, int] = {}
    with torch.no_grad(), laconic.session(fast, steps=STEPS, calls_per_step=streams) as here:
        for step in range(STEPS):
            for stream in range(streams):
                out = fast(x, torch.tensor(step / STEPS) + 0.01 * stream, *more)
                found = trackers()
                now = where(found)
                # A buffer is allocated at its first use and never moves; none is given up.
                assert {key: now.get(key) for key in addresses} == addresses
                addresses = now
                kept = storages(value for tracker in found.values() for value in tracker.tensors())
                assert kept == storages(value for tracker in found.values() for value in tracker.buffers().values())
                assert kept.isdisjoint(storages([out, x]))
                x = x + out / STEPS
    assert here.summary().reused > 0 and bool(addresses) == (name != "adaptive-guidance")
    assert len(set(addresses.values())) == len(addresses)


READS = ("item", "tolist", "numpy", "__float__", "__int__", "__bool__", "__index__", "cpu")
"""Ways in which the host waits for a value."""


@pytest.mark.parametrize("name", [*POLICIES, *GUIDED])
def test_the_host_waits_for_one_number_per_decision_and_for_none_without(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as a policy that goes by values decides; none where steps decide, and none inside pieces ever."""
    pieces: list[torch.fx.GraphModule] = []
    waits: list[str] = []

    def compile_graph(module: torch.fx.GraphModule, inputs: Any, options: Any) -> Any:
        pieces.append(module)
        return module

    def counted(read: str) -> Any:
        original = getattr(Tensor, read)

        def reading(self: Tensor, *args: Any) -> Any:
            waits.append(read)
            return original(self, *args)

        return reading

    monkeypatch.setattr(runner, "compile_graph", compile_graph)
    model, more, chosen = inputs_of(name)
    fast = torch.compile(model, backend="laconic", options={"passes": [chosen]})
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    steps = [torch.tensor(step / STEPS) for step in range(STEPS)]
    with torch.no_grad():
        for turn in range(2):
            if turn:  # everything is compiled
                for read in READS:
                    monkeypatch.setattr(Tensor, read, counted(read))
            with laconic.session(fast, steps=STEPS) as here:
                for step in steps:
                    x = x + fast(x, step, *more) / STEPS
    monkeypatch.undo()
    decisions = len(here.summary().calls)
    assert pieces and here.summary().reused > 0
    policy = chosen.policy
    assert isinstance(policy, CachePolicy)
    assert bool(waits) == policy.dynamic and len(waits) <= 2 * decisions, waits
    for piece in pieces:
        for node in piece.graph.nodes:
            name_of = str(node.target)
            assert not any(word in name_of for word in ("_local_scalar_dense", "item.", "nonzero", "_to_cpu")), node


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
