"""Scan sites: every spelling of one recurrence is found, look-alikes are not."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from laconic.patterns.graph import NormalGraph
from laconic.patterns.normalize import normalize
from laconic.patterns.scan import find_scan, prove_scan
from laconic.patterns.sites import Recurrence, Scan, Sites
from tests.patterns.graphs import normal

B, L, D, N = 2, 7, 5, 3


def scans(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[list[Scan], Sites]:
    """What is found in the graph of ``function`` as Dynamo and the retrace spell it."""
    seen: list[NormalGraph] = []

    def backend(module: torch.fx.GraphModule, values: list[Tensor]) -> torch.fx.GraphModule:
        graph = normalize(module, values)
        assert isinstance(graph, NormalGraph), graph
        seen.append(graph)
        return module

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(function, backend=backend, fullgraph=True)(*inputs)
    sites = Sites()
    found, sites.refusals = find_scan(seen[0], sites)
    return [site for site in found if isinstance(site, Scan)], sites


def operands(length: int = L) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(B, length, D, generator=generator), torch.randn(B, length, D, generator=generator)


def loop(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros(x.shape[0], x.shape[2]), []
    for step in range(x.shape[1]):
        state = a[:, step] * state + x[:, step]
        states.append(state)
    return torch.stack(states, 1)


def unbound(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for decay, value in zip(a.unbind(1), x.unbind(1), strict=True):
        state = value + state * decay
        states.append(state)
    return torch.stack(states, 1)


def kept_axes(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, :1]), []
    for step in range(x.shape[1]):
        state = torch.addcmul(x[:, step : step + 1], a[:, step : step + 1], state)
        states.append(state)
    return torch.cat(states, 1)


def backwards(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros(x.shape[0], x.shape[2]), []
    for step in reversed(range(x.shape[1])):
        state = a[:, step] * state + x[:, step]
        states.append(state)
    return torch.stack(states[::-1], 1)


def from_first(a: Tensor, x: Tensor) -> Tensor:
    states = [x[:, 0]]
    for step in range(1, x.shape[1]):
        states.append(a[:, step] * states[-1] + x[:, step])
    return torch.stack(states, 1)


def minus(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.ones(x.shape[0], x.shape[2]), []
    for step in range(x.shape[1]):
        state = a[:, step] * state - x[:, step]
        states.append(state)
    return torch.stack(states, 1)


def fixed_decay(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for step in range(x.shape[1]):
        state = 0.9 * state + x[:, step]
        states.append(state)
    return torch.stack(states, 1) + a


def gated_in_the_step(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for step in range(x.shape[1]):
        gate = torch.sigmoid(a[:, step] @ torch.eye(D))
        state = gate * state + (1 - gate) * x[:, step].tanh()
        states.append(torch.nn.functional.silu(state).sum(-1, keepdim=True))
    return torch.stack(states, 1)


def only_the_last(a: Tensor, x: Tensor) -> Tensor:
    state = torch.zeros_like(x[:, 0])
    for step in range(x.shape[1]):
        state = a[:, step] * state + x[:, step]
    return state.exp()


@pytest.mark.parametrize(
    "spelling",
    [
        loop, unbound, kept_axes, backwards, from_first, minus, fixed_decay, gated_in_the_step, only_the_last,
    ],
    ids=lambda item: item.__name__,
)  # fmt: skip
def test_loops_are_found_and_folded(spelling: Callable[..., Tensor]) -> None:
    (site,), sites = scans(spelling, *operands())
    assert site.form.startswith("loop")
    assert len(site.outputs) == 1, "one operation over the stacked states, none per step"
    assert not sites.refusals
    assert site.reverse == (spelling is backwards)
    assert (site.initial is not None) == (spelling in (from_first, minus))


def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return left[0] * right[0], right[0] * left[1] + right[1]


def tree(a: Tensor, x: Tensor) -> Tensor:
    from torch._higher_order_ops.associative_scan import associative_scan

    return associative_scan(combine, (a, x), dim=1, combine_mode="generic")[1]


def reversed_tree(a: Tensor, x: Tensor) -> Tensor:
    from torch._higher_order_ops.associative_scan import associative_scan

    return associative_scan(combine, (a, x), dim=1, reverse=True, combine_mode="generic")[1]


def doubling(a: Tensor, x: Tensor) -> Tensor:
    shift, length = 1, x.shape[1]
    while shift < length:
        x = torch.cat((x[:, :shift], x[:, shift:] + a[:, shift:] * x[:, :-shift]), 1)
        a = torch.cat((a[:, :shift], a[:, shift:] * a[:, :-shift]), 1)
        shift *= 2
    return x


@pytest.mark.parametrize("length", [2, 3, 8, 17])
@pytest.mark.parametrize("spelling", [tree, reversed_tree, doubling], ids=lambda item: item.__name__)
def test_trees_are_found_by_evaluation(spelling: Callable[..., Tensor], length: int) -> None:
    (site,), sites = scans(spelling, *operands(length))
    assert site.form == "tree"
    assert site.length == length
    assert not sites.refusals


def test_one_step_says_nothing() -> None:
    for spelling in (loop, tree, doubling):
        found, sites = scans(spelling, *operands(1))
        assert not found and not sites.refusals


# Look-alikes. Each differs from a recurrence in one place.


def one_step_differs(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for step in range(x.shape[1]):
        decay = a[:, step] if step != 4 else a[:, step - 1]
        state = decay * state + x[:, step]
        states.append(state)
    return torch.stack(states, 1)


def decay_squared_once(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for step in range(x.shape[1]):
        decay = a[:, step] * a[:, step] if step == 4 else a[:, step]
        state = decay * state + x[:, step]
        states.append(state)
    return torch.stack(states, 1)


def input_from_the_state(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for step in range(x.shape[1]):
        state = a[:, step] * state + torch.tanh(state + x[:, step])
        states.append(state)
    return torch.stack(states, 1)


def decay_from_the_state(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for step in range(x.shape[1]):
        state = torch.sigmoid(state * a[:, step]) * state + x[:, step]
        states.append(state)
    return torch.stack(states, 1)


@pytest.mark.parametrize("spelling", [one_step_differs, decay_squared_once], ids=lambda item: item.__name__)
def test_loops_with_an_odd_step_are_refused(spelling: Callable[..., Tensor]) -> None:
    found, sites = scans(spelling, *operands(9))
    assert not found
    assert [reason.code for reason in sites.refusals] == ["irregular-steps"]


@pytest.mark.parametrize("spelling", [input_from_the_state, decay_from_the_state], ids=lambda item: item.__name__)
def test_loops_that_are_not_affine_are_no_scans(spelling: Callable[..., Tensor]) -> None:
    graph = normal(spelling, *operands(9))
    (site,), refusals = find_scan(graph, Sites())
    assert isinstance(site, Recurrence) and site.gate == "nonlinear" and site.obstacle.code == "nonlinear-state"
    assert not refusals


def states_out_of_order(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for step in range(x.shape[1]):
        state = a[:, step] * state + x[:, step]
        states.append(state)
    states[2], states[3] = states[3], states[2]
    return torch.stack(states, 1)


def test_states_read_out_of_order_are_read_one_by_one() -> None:
    (site,), _ = scans(states_out_of_order, *operands())
    assert len(site.outputs) == L
    assert [reason.code for reason in site.unfolded] == ["not-proven"]


def wrong_tree(a: Tensor, x: Tensor) -> Tensor:
    """The doubling form with one shift off by one in its last round: wrong only in the longest products."""
    shift, length = 1, x.shape[1]
    while shift < length:
        lag = shift + 1 if 2 * shift >= length else shift
        x = torch.cat((x[:, :lag], x[:, lag:] + a[:, lag:] * x[:, :-lag]), 1)
        a = torch.cat((a[:, :shift], a[:, shift:] * a[:, :-shift]), 1)
        shift *= 2
    return x


def squared_tree(a: Tensor, x: Tensor) -> Tensor:
    shift, length = 1, x.shape[1]
    while shift < length:
        x = torch.cat((x[:, :shift], x[:, shift:] + a[:, shift:] * a[:, shift:] * x[:, :-shift]), 1)
        a = torch.cat((a[:, :shift], a[:, shift:] * a[:, :-shift]), 1)
        shift *= 2
    return x


def rotation(a: Tensor, x: Tensor) -> Tensor:
    first, second, cosine, sine = x[:, ::2], x[:, 1::2], a[:, ::2], a[:, 1::2]
    return torch.stack((first * cosine + second * sine, second * cosine + first * sine), 2).flatten(1, 2)


@pytest.mark.parametrize("spelling", [wrong_tree, squared_tree, rotation], ids=lambda item: item.__name__)
def test_look_alike_trees_are_left_alone(spelling: Callable[..., Tensor]) -> None:
    found, _ = scans(spelling, *operands(64))
    assert not found


def test_proof_fails_on_a_mutated_program() -> None:
    (site,), _ = scans(loop, *operands())
    assert prove_scan(site) is None
    for node in site.program.graph.nodes:
        if getattr(node.target, "__name__", "") == "take":
            node.args = (*node.args[:2], 0, *node.args[3:4], node.args[4] - 1, node.args[5])
            break
    else:
        raise AssertionError("no operand is taken from a tensor")
    site.program.recompile()
    reason = prove_scan(site)
    assert reason is not None and reason.code == "not-proven"


class TwoLayers(nn.Module):
    """Two loops that share nothing; the second reads the first's output."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(D, 2 * D) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for projection in self.projections:
            decay, value = projection(x).chunk(2, -1)
            x = x + loop(decay.sigmoid(), value)
        return x


def test_each_layer_is_a_site() -> None:
    found, sites = scans(TwoLayers(), operands()[1])
    assert [site.id for site in found] == ["scan.0", "scan.1"]
    assert not sites.refusals
    assert not found[0].interior & found[1].interior
    assert str(found[0].flops) == "2*E*L" and found[0].dimensions == {"L": L, "E": B * D}


def test_time_is_linear_in_the_length() -> None:
    def seconds(length: int) -> float:
        graph = normal(loop, *operands(length))
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            found, _ = find_scan(graph, Sites())
            best = min(best, time.perf_counter() - start)
            assert len(found) == 1
        return best

    assert seconds(800) < 8 * max(seconds(200), 0.02)
