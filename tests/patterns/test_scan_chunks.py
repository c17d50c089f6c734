"""Recurrences computed chunk by chunk or written into a buffer, as layers of real models are spelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from laconic.patterns.scan import find_scan, prove_scan
from laconic.patterns.sites import Recurrence, Scan, Sites
from tests.patterns.graphs import normal

B, H, K, V, CHUNK, CHUNKS = 2, 3, 5, 4, 4, 3
L = CHUNK * CHUNKS

Spelling = Callable[..., Any]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heads() -> tuple[Tensor, ...]:
    """Query, key ``[B, H, L, K]``, value ``[B, H, L, V]``, logarithm of the decay and learning rate ``[B, H, L]``."""
    return (
        draw(B, H, L, K), draw(B, H, L, K, seed=1), draw(B, H, L, V, seed=2),
        -draw(B, H, L, seed=3).abs(), draw(B, H, L, seed=4).sigmoid(),
    )  # fmt: skip


def found(spelling: Spelling, *inputs: Tensor) -> tuple[list[Any], list[Any]]:
    return find_scan(normal(spelling, *inputs, writes=False), Sites())


# The gated delta rule (Yang et al., "Gated Delta Networks", 2024): a triangular system within each chunk, then a loop
# over chunks.


def solved(scores: Tensor, *right: Tensor) -> list[Tensor]:
    return [torch.linalg.solve_triangular(scores, side, upper=False, unitriangular=True) for side in right]


def inverted_row_by_row(scores: Tensor, *right: Tensor) -> list[Tensor]:
    inverse = -scores
    for row in range(1, CHUNK):
        old = inverse[..., row, :row].clone()
        inverse[..., row, :row] = old + (old.unsqueeze(-1) * inverse[..., :row, :row].clone()).sum(-2)
    inverse = inverse + torch.eye(CHUNK)
    return [inverse @ side for side in right]


def gated_delta_rule(
    solve: Callable[..., list[Tensor]], q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, wrong: float = 1.0
) -> Tensor:
    erase = k * b[..., None]
    q, k, value, erase, g = (x.unflatten(2, (-1, CHUNK)) for x in (q, k, v * b[..., None], erase, g))
    total = g.cumsum(-1)
    future = torch.ones(CHUNK, CHUNK, dtype=torch.bool).triu(1)
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(future, -torch.inf).exp()
    scores = ((erase @ k.mT) * decay).masked_fill(torch.ones(CHUNK, CHUNK, dtype=torch.bool).triu(), 0.0)
    value, carried = solve(scores, value, erase * total.exp()[..., None])
    state = torch.zeros(B, H, K, V)
    results = torch.zeros_like(value)
    for c in range(q.shape[2]):
        new = value[:, :, c] - carried[:, :, c] @ state
        seen = (q[:, :, c] * total[:, :, c, :, None].exp()) @ state
        results[:, :, c] = seen + ((q[:, :, c] @ k[:, :, c].mT) * decay[:, :, c]) @ new
        last = total[:, :, c, -1, None]
        left = (last - total[:, :, c]).exp()[..., None]
        state = state * (wrong * last).exp()[..., None] + (k[:, :, c] * left).mT @ new
    return results.flatten(2, 3)


def with_a_triangular_system(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    return gated_delta_rule(solved, q, k, v, g, b)


def with_an_inverse_made_row_by_row(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    return gated_delta_rule(inverted_row_by_row, q, k, v, g, b)


@pytest.mark.parametrize(
    "spelling", [with_a_triangular_system, with_an_inverse_made_row_by_row], ids=lambda f: f.__name__
)
def test_gated_delta_rule_in_chunks(spelling: Spelling) -> None:
    (site,), refusals = found(spelling, *heads())
    assert isinstance(site, Recurrence) and (site.form, site.gate, site.length) == ("chunked", "delta", L)
    assert site.obstacle.code == "no-operator"
    assert not refusals


def test_a_chunked_delta_rule_with_another_decay_between_chunks_is_only_a_loop_over_chunks() -> None:
    def wrong(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
        return gated_delta_rule(solved, q, k, v, g, b, wrong=2.0)

    sites, _ = found(wrong, *heads())
    assert [(site.form, site.gate) for site in sites] == [("loop", "dense")]


# Linear attention with a fixed decay per head, in chunks (Qin et al., "Lightning Attention-2", 2024).


def in_chunks(chunk: int, q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    rate = torch.arange(1.0, H + 1)[:, None, None] / 8
    place = torch.arange(chunk) + 1.0
    inside = (place[:, None] - place[None, :]) * rate
    mask = torch.exp(-inside).masked_fill(inside < 0, 0.0)
    before, after = torch.exp(-rate * place[:, None]), torch.exp(-rate * (chunk - place[:, None]))
    state, results = torch.zeros(B, H, K, V), []
    length = q.shape[2]
    for start in range(0, length, chunk):
        end = min(start + chunk, length)
        size = end - start
        query, key, value = (x[:, :, start:end] for x in (q, k, v))
        old = (query * before[:, :size]) @ state
        results.append(old + ((query @ key.mT) * mask[:, :size, :size]) @ value)
        state = state * torch.exp(-rate * size) + (key * after[:, -size:]).mT @ value
    return torch.cat(results, -2) + g[..., None] * b[..., None]


def three_chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    return in_chunks(4, q, k, v, g, b)


def six_chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    return in_chunks(2, q, k, v, g, b)


def three_chunks_and_a_rest(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    return in_chunks(3, q[:, :, :-1], k[:, :, :-1], v[:, :, :-1], g[:, :, :-1], b[:, :, :-1])


@pytest.mark.parametrize(
    ("spelling", "length"),
    # The state after the last chunk is read by nobody; a rest is no chunk like the others.
    [(three_chunks, 2), (six_chunks, 5), (three_chunks_and_a_rest, 3)],
)
def test_decayed_linear_attention_in_chunks(spelling: Spelling, length: int) -> None:
    (site,), refusals = found(spelling, *heads())
    assert isinstance(site, Recurrence) and (site.form, site.gate, site.length) == (
        "loop over chunks",
        "scalar",
        length,
    )
    assert not refusals


# States written into a buffer.


def vectors() -> tuple[Tensor, Tensor]:
    return draw(B, L, K).sigmoid(), draw(B, L, K, seed=1)


def into_a_buffer(a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    state, states = torch.zeros(B, K), torch.zeros_like(x)
    for t in range(L):
        state = a[:, t].to(torch.float32) * state.to(device="cpu", dtype=torch.float32) + x[:, t]
        states[:, t] = state.type(x.dtype)
    return states, state


def into_a_buffer_with_its_axis(a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    state, states = torch.zeros(B, 1, K), torch.empty_like(x)
    for t in range(L):
        state = a[:, t : t + 1] * state + x[:, t : t + 1]
        states[:, t : t + 1] = state
    return states, state


@pytest.mark.parametrize("spelling", [into_a_buffer, into_a_buffer_with_its_axis], ids=lambda f: f.__name__)
def test_a_filled_buffer_is_the_stacked_states(spelling: Spelling) -> None:
    (site,), refusals = found(spelling, *vectors())
    assert isinstance(site, Scan) and site.form == "loop" and site.length == L
    assert len(site.outputs) == 2, "the buffer and the last state, not every state"
    assert prove_scan(site) is None
    assert not refusals


def partly_filled(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros(B, K), torch.ones_like(x)
    for t in range(L - 1):
        state = a[:, t] * state + x[:, t]
        states[:, t] = state
    return states


def test_a_buffer_with_a_place_left_keeps_what_was_there() -> None:
    (site,), _ = found(partly_filled, *vectors())
    assert isinstance(site, Scan) and len(site.outputs) == L - 1


def weighted_mean(a: Tensor, x: Tensor) -> Tensor:
    """Numerator and denominator relative to a running maximum, results written into a buffer."""
    top, bottom, maximum = torch.zeros(B, K), torch.zeros(B, K), torch.full((B, K), -1e38)
    results = torch.zeros_like(x)
    for t in range(L):
        largest = torch.maximum(maximum - 0.1, x[:, t])
        old, new = torch.exp(maximum - 0.1 - largest), torch.exp(x[:, t] - largest)
        top, bottom, maximum = old * top + new * a[:, t], old * bottom + new, largest
        results[:, t] = top / bottom
    return results


def weighted_mean_with_gates(a: Tensor, x: Tensor) -> Tensor:
    """The same with a forgetting gate of its own in each step, added to the maximum before it is compared."""
    level = F.logsigmoid(a * 3)
    top, bottom, maximum = torch.zeros(B, K), torch.zeros(B, K), torch.zeros(B, K)
    results = torch.zeros_like(x)
    for t in range(L):
        kept = maximum + level[:, t]
        largest = torch.maximum(kept, x[:, t])
        old, new = torch.exp(kept - largest), torch.exp(x[:, t] - largest)
        top, bottom, maximum = old * top + new * a[:, t], old * bottom + new, largest
        results[:, t] = top / bottom
    return results


@pytest.mark.parametrize(("spelling", "gate"), [(weighted_mean, "scalar"), (weighted_mean_with_gates, "diagonal")])
def test_states_relative_to_a_maximum(spelling: Spelling, gate: str) -> None:
    (site,), refusals = found(spelling, *vectors())
    assert isinstance(site, Recurrence) and site.form == "loop, relative to a running maximum"
    assert site.gate == gate and site.length == L
    assert not refusals


# Sums of a few parts carry nothing on.


def sum_of_chunks(a: Tensor, x: Tensor) -> Tensor:
    first, second, third = (a * x).chunk(3, 1)
    return first + second + third


def sum_of_elements(a: Tensor, x: Tensor) -> Tensor:
    total = x[:, 0]
    for t in range(1, L):
        total = total + x[:, t]
    return total * a[:, 0]


@pytest.mark.parametrize("spelling", [sum_of_chunks, sum_of_elements], ids=lambda f: f.__name__)
def test_a_sum_whose_terms_are_not_read_is_no_recurrence(spelling: Spelling) -> None:
    assert found(spelling, *vectors()) == ([], [])
