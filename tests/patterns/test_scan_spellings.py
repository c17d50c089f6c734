"""One recurrence, many ways to write it: every spelling is a site with the right gate, look-alikes are told apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from laconic.patterns.scan import find_scan, prove_scan
from laconic.patterns.sites import Recurrence, Scan, Sites
from tests.patterns.graphs import normal

B, L, D, H, K, V = 2, 9, 5, 3, 6, 4

Spelling = Callable[..., Any]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def vectors() -> tuple[Tensor, Tensor]:
    """Decays in (0, 1) and inputs, ``[B, L, D]``."""
    return draw(B, L, D).sigmoid(), draw(B, L, D, seed=1)


def heads() -> tuple[Tensor, ...]:
    """Query, key ``[B, H, L, K]``, value ``[B, H, L, V]``, logarithm of the decay and learning rate ``[B, H, L]``."""
    return (
        draw(B, H, L, K), draw(B, H, L, K, seed=1), draw(B, H, L, V, seed=2),
        -draw(B, H, L, seed=3).abs(), draw(B, H, L, seed=4).sigmoid(),
    )  # fmt: skip


def looped(step: Callable[[Tensor, Tensor, Tensor], Tensor], a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros(x.shape[0], x.shape[2]), []
    for t in range(x.shape[1]):
        state = step(a[:, t], state, x[:, t])
        states.append(state)
    return torch.stack(states, 1)


# Diagonal recurrences of vectors.


def multiplied_and_added(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: a * h + x, a, x)


def operands_the_other_way(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: x + h * a, a, x)


def addcmul(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: torch.addcmul(x, a, h), a, x)


def subtracted(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: a * h - x, a, x)


def convex(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: a * h + (1 - a) * x, a, x)


def gates_in_the_step(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: torch.sigmoid(a) * h + F.silu(x) * torch.sqrt(1 - torch.sigmoid(a) ** 2), a, x)


def decay_in_logarithms(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: torch.exp(-F.softplus(a)) * h + x, a, x)


def cast_in_the_step(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: a.to(torch.float32) * h.to(torch.float32) + x.type(torch.float32), a, x)


def unbound(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for decay, value in zip(a.unbind(1), x.unbind(1), strict=True):
        state = decay * state + value
        states.append(state)
    return torch.stack(states, 1)


def split(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, :1]), []
    for decay, value in zip(a.split(1, 1), x.chunk(L, 1), strict=True):
        state = decay * state + value
        states.append(state)
    return torch.cat(states, 1)


def time_first(a: Tensor, x: Tensor) -> Tensor:
    a, x = a.transpose(0, 1), x.transpose(0, 1)
    state, states = torch.zeros_like(x[0]), []
    for t in range(L):
        state = a[t] * state + x[t]
        states.append(state)
    return torch.stack(states)


def time_last(a: Tensor, x: Tensor) -> Tensor:
    a, x = a.mT, x.mT
    state, states = torch.zeros_like(x[..., 0]), []
    for t in range(L):
        state = a[..., t] * state + x[..., t]
        states.append(state)
    return torch.stack(states, -1)


def backwards(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for t in reversed(range(L)):
        state = a[:, t] * state + x[:, t]
        states.append(state)
    return torch.stack(states[::-1], 1)


def inputs_against_the_decays(a: Tensor, x: Tensor) -> Tensor:
    return multiplied_and_added(a, x.flip(1))


def from_the_first_input(a: Tensor, x: Tensor) -> Tensor:
    states = [x[:, 0]]
    for t in range(1, L):
        states.append(a[:, t] * states[-1] + x[:, t])
    return torch.stack(states, 1)


def only_the_last(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: a * h + x, a, x)[:, -1]


def written_into_a_buffer(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
    for t in range(L):
        state = a[:, t].type(torch.float32) * state
        state = state + x[:, t].type(torch.float32)
        states[:, t] = state.type(x.dtype)
    return states


def doubling(a: Tensor, x: Tensor) -> Tensor:
    shift = 1
    while shift < x.shape[1]:
        x = torch.cat((x[:, :shift], x[:, shift:] + a[:, shift:] * x[:, :-shift]), 1)
        a = torch.cat((a[:, :shift], a[:, shift:] * a[:, :-shift]), 1)
        shift *= 2
    return x


def doubling_by_padding(a: Tensor, x: Tensor) -> Tensor:
    shift = 1
    while shift < x.shape[1]:
        x = x + a * F.pad(x, (0, 0, shift, 0))[:, :L]
        a = a * F.pad(a, (0, 0, shift, 0))[:, :L]
        shift *= 2
    return x


def products_divided_out(a: Tensor, x: Tensor) -> Tensor:
    product = a.cumprod(1)
    return (x / product).cumsum(1) * product


def products_divided_out_backwards_written(a: Tensor, x: Tensor) -> Tensor:
    product = torch.cumprod(a, -2)
    return product * torch.cumsum(x * product.reciprocal(), dim=1)


def sums_of_logarithms(a: Tensor, x: Tensor) -> Tensor:
    total = a.log().cumsum(1)
    return (x * (-total).exp()).cumsum(1) * total.exp()


def sums_of_decays_in_logarithms(a: Tensor, x: Tensor) -> Tensor:
    total = (-a).cumsum(1)
    return torch.exp(total) * torch.cumsum(x * torch.exp(-total), 1)


def sums_of_exponentials(a: Tensor, x: Tensor) -> Tensor:
    """Positive states in logarithms (Heinsen, "Efficient parallelization of a ubiquitous sequential computation")."""
    total = F.logsigmoid(a).cumsum(1)
    return (total + (x - total).logcumsumexp(1)).exp()


def sums_of_complex_exponentials(a: Tensor, x: Tensor) -> Tensor:
    total = a.clamp(min=1e-6).log().cumsum(1)
    return (total + ((x.sign() * x.abs()).to(torch.complex64).log() - total).logcumsumexp(1)).exp().real


VECTORS = [
    multiplied_and_added, operands_the_other_way, addcmul, subtracted, convex, gates_in_the_step, decay_in_logarithms,
    cast_in_the_step, unbound, split, time_first, time_last, backwards, inputs_against_the_decays, from_the_first_input,
    only_the_last, written_into_a_buffer, doubling, doubling_by_padding, products_divided_out,
    products_divided_out_backwards_written, sums_of_logarithms, sums_of_decays_in_logarithms,
    sums_of_exponentials, sums_of_complex_exponentials,
]  # fmt: skip


def found(spelling: Spelling, *inputs: Tensor) -> tuple[list[Any], list[Any]]:
    return find_scan(normal(spelling, *inputs), Sites())


@pytest.mark.parametrize("spelling", VECTORS, ids=lambda f: f.__name__)
def test_vectors(spelling: Spelling) -> None:
    (site,), refusals = found(spelling, *vectors())
    assert isinstance(site, Scan) and site.gate == "diagonal"
    assert site.length == L - (spelling is from_the_first_input)
    assert prove_scan(site) is None
    assert not refusals


# Other gates, and states that are matrices.


def no_gate(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: h + x * a, a, x)


def constant_decay(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: 0.9 * h + x, a, x) + a


def one_decay_for_a_state(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: a * h + x, a[..., :1], x)


def interpolated(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: torch.lerp(h, x, a), a, x)


def moved_towards(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: h + a * (x - h), a, x)


def rotated(a: Tensor, x: Tensor) -> Tensor:
    real, imaginary, states = torch.zeros(B, D), torch.zeros(B, D), []
    for t in range(L):
        cosine, sine = a[:, t].cos(), a[:, t].sin()
        real, imaginary = cosine * real - sine * imaginary + x[:, t], sine * real + cosine * imaginary
        states.append(real)
    return torch.stack(states, 1)


def matrix_in_the_step(a: Tensor, x: Tensor) -> Tensor:
    weight = draw(D, D, seed=5)
    return looped(lambda a, h, x: h @ weight + x, a, x) + a


def with_a_sum_of_weights(a: Tensor, x: Tensor) -> Tensor:
    top, bottom, results = torch.zeros(B, D), torch.zeros(B, D), []
    for t in range(L):
        weight = torch.exp(x[:, t])
        top, bottom = torch.lerp(top, weight * x[:, t], a[:, t]), torch.lerp(bottom, weight, a[:, t])
        results.append(top / bottom)
    return torch.stack(results, 1)


def relative_to_a_maximum(a: Tensor, x: Tensor) -> Tensor:
    """Numerator and denominator kept in range by a running maximum, with a bonus for the present token."""
    decay, bonus = -torch.exp(a[0, 0]), a[1, 1]
    top, bottom, maximum, results = torch.zeros(B, D), torch.zeros(B, D), torch.zeros(B, D) - 1e38, []
    for t in range(L):
        key, value = x[:, t], a[:, t]
        largest = torch.maximum(maximum, key + bonus)
        old, new = torch.exp(maximum - largest), torch.exp(key + bonus - largest)
        results.append((old * top + new * value) / (old * bottom + new))
        largest = torch.maximum(maximum + decay, key)
        old, new = torch.exp(maximum + decay - largest), torch.exp(key - largest)
        top, bottom, maximum = old * top + new * value, old * bottom + new, largest
    return torch.stack(results, 1)


@pytest.mark.parametrize(
    ("spelling", "kind", "gate"),
    [
        (no_gate, Recurrence, "none"),
        (constant_decay, Scan, "scalar"),
        (one_decay_for_a_state, Scan, "scalar"),
        (interpolated, Recurrence, "diagonal"),
        (moved_towards, Recurrence, "diagonal"),
        (rotated, Recurrence, "dense"),
        (matrix_in_the_step, Recurrence, "dense"),
        (with_a_sum_of_weights, Recurrence, "diagonal"),
        (relative_to_a_maximum, Recurrence, "diagonal"),
    ],
)
def test_gates_of_vectors(spelling: Spelling, kind: type, gate: str) -> None:
    (site,), refusals = found(spelling, *vectors())
    assert isinstance(site, kind) and site.gate == gate
    assert not refusals
    assert kind is Scan or site.obstacle.code == "no-operator"


def state_space_dual_in_a_loop(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    state, results = torch.zeros(B, H, K, V), []
    for t in range(L):
        state = g[:, :, t].exp()[..., None, None] * state + k[:, :, t].unsqueeze(-1) * v[:, :, t].unsqueeze(-2)
        results.append((q[:, :, t].unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(results, 2)


def gated_linear_attention_in_a_loop(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    state, results = torch.zeros(B, H, K, V), []
    for t in range(L):
        state = state * torch.sigmoid(q[:, :, t])[..., None] + torch.einsum("bhk,bhv->bhkv", k[:, :, t], v[:, :, t])
        results.append(torch.einsum("bhk,bhkv->bhv", q[:, :, t], state))
    return torch.stack(results, 2)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    state, results = torch.zeros(B, H, K, V), []
    for t in range(L):
        key = k[:, :, t]
        error = (v[:, :, t] - (state * key.unsqueeze(-1)).sum(-2)) * b[:, :, t, None]
        state = state + key.unsqueeze(-1) * error.unsqueeze(-2)
        results.append((state * q[:, :, t].unsqueeze(-1)).sum(-2))
    return torch.stack(results, 2)


def delta_rule_with_matrices(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    state, results = torch.zeros(B, H, K, V), []
    for t in range(L):
        key = k[:, :, t].unsqueeze(-1)
        state = (torch.eye(K) - b[:, :, t, None, None] * (key @ key.mT)) @ state + key @ v[:, :, t].unsqueeze(-2)
        results.append(q[:, :, t].unsqueeze(-2) @ state)
    return torch.stack(results, 2)


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    state, results = torch.zeros(B, H, K, V), torch.zeros(B, H, L, V)
    for t in range(L):
        key = k[:, :, t]
        state = state * g[:, :, t].exp()[..., None, None]
        error = (v[:, :, t] - (state * key.unsqueeze(-1)).sum(-2)) * b[:, :, t, None]
        state = state + key.unsqueeze(-1) * error.unsqueeze(-2)
        results[:, :, t] = (state * q[:, :, t].unsqueeze(-1)).sum(-2)
    return results


def decayed_scores(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    total = g.cumsum(-1)
    hidden = ~torch.ones(L, L, dtype=torch.bool).tril()
    decay = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(hidden, -math.inf).exp()
    return ((q @ k.mT) * decay) @ v


def decayed_queries_and_keys(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    total = F.logsigmoid(q).cumsum(2)
    scores = (k * total.exp()) @ (q * (-total).exp()).mT
    return scores.masked_fill(torch.ones(L, L).triu(1).bool(), 0.0) @ v


def chunked(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    """Within chunks of 3 by decayed scores, between them by the decayed states at their ends."""
    q, k, v, g = (x.unflatten(2, (3, 3)) for x in (q, k, v, g))
    total = g.cumsum(-1)
    hidden = torch.ones(3, 3, dtype=torch.bool).triu(1)
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(hidden, -math.inf).exp()
    inside = torch.einsum("bhcls,bhcsv->bhclv", torch.einsum("bhclk,bhcsk->bhcls", q, k) * decay, v)
    ends = torch.einsum("bhclk,bhclv->bhckv", k * (total[..., -1:] - total).exp()[..., None], v)
    between = F.pad(total[..., -1], (1, 0)).cumsum(-1)
    hidden = torch.ones(4, 4, dtype=torch.bool).triu(1)
    steps = (between[..., :, None] - between[..., None, :]).masked_fill(hidden, -math.inf).exp()
    states = torch.einsum("bhcz,bhzkv->bhckv", steps, torch.cat((torch.zeros_like(ends[:, :, :1]), ends), 2))[:, :, :-1]
    return inside + torch.einsum("bhclk,bhckv->bhclv", q, states) * total.exp()[..., None]


@pytest.mark.parametrize(
    ("spelling", "kind", "gate", "form"),
    [
        (state_space_dual_in_a_loop, Scan, "scalar", "loop"),
        (gated_linear_attention_in_a_loop, Scan, "diagonal", "loop"),
        (delta_rule, Recurrence, "delta", "loop"),
        (delta_rule_with_matrices, Recurrence, "delta", "loop"),
        (gated_delta_rule, Recurrence, "delta", "loop"),
        (decayed_scores, Recurrence, "scalar", "cumulative"),
        (decayed_queries_and_keys, Recurrence, "diagonal", "cumulative"),
        (chunked, Recurrence, "scalar", "chunked"),
    ],
)
def test_matrices(spelling: Spelling, kind: type, gate: str, form: str) -> None:
    (site,), refusals = found(spelling, *heads())
    assert isinstance(site, kind) and (site.gate, site.form, site.length) == (gate, form, L)
    assert not refusals
    assert kind is Scan or site.obstacle.code == "no-operator"


# Recurrent networks: understood, and never rewritten.


def long_short_term_memory(a: Tensor, x: Tensor) -> Tensor:
    cell = torch.nn.LSTMCell(D, D)
    hidden, kept, states = torch.zeros(B, D), torch.zeros(B, D), []
    for t in range(L):
        gates = F.linear(x[:, t], cell.weight_ih, cell.bias_ih) + F.linear(hidden, cell.weight_hh, cell.bias_hh)
        enter, forget, new, leave = gates.chunk(4, -1)
        kept = forget.sigmoid() * kept + enter.sigmoid() * new.tanh()
        hidden = leave.sigmoid() * kept.tanh()
        states.append(hidden)
    return torch.stack(states, 1) + a


def gated_unit(a: Tensor, x: Tensor) -> Tensor:
    cell = torch.nn.GRUCell(D, D)
    return looped(lambda a, h, x: cell(x, h), a, x) + a


def simple_network(a: Tensor, x: Tensor) -> Tensor:
    weight = draw(D, D, seed=5)
    return looped(lambda a, h, x: torch.tanh(h @ weight + x), a, x) + a


def rectified(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: F.relu(a * h + x), a, x)


def clamped_far_out(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: (a * h + x).clamp(-1e4, 1e4), a, x)


def decay_from_the_state(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: torch.sigmoid(h * a) * h + x, a, x)


def input_from_the_state(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: a * h + torch.tanh(h + x), a, x)


def state_squared(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: a * h * h + x, a, x)


def normalised(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: F.layer_norm(a * h + x, (D,)), a, x)


def rounded(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: torch.round(a * h * 4) / 4 + x, a, x)


@pytest.mark.parametrize(
    "spelling",
    [
        long_short_term_memory, gated_unit, simple_network, rectified, clamped_far_out, decay_from_the_state,
        input_from_the_state, state_squared, normalised, rounded,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_nonlinear_states(spelling: Spelling) -> None:
    sites, refusals = found(spelling, *vectors())
    assert [(type(site), site.gate, site.obstacle.code) for site in sites] == [
        (Recurrence, "nonlinear", "nonlinear-state")
    ]
    assert not refusals


# Look-alikes: loops with one step that is another, and formulas with one factor wrong.


def one_step_reads_another_decay(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for t in range(L):
        state = a[:, t - 1 if t == 4 else t] * state + x[:, t]
        states.append(state)
    return torch.stack(states, 1)


def one_step_decays_twice(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for t in range(L):
        state = (a[:, t] * a[:, t] if t == 4 else a[:, t]) * state + x[:, t]
        states.append(state)
    return torch.stack(states, 1)


def one_step_squashes(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for t in range(L):
        state = a[:, t] * state + x[:, t]
        state = state.tanh() if t == 4 else state
        states.append(state)
    return torch.stack(states, 1)


def one_step_has_another_constant(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for t in range(L):
        state = (0.8 if t == 4 else 0.9) * state + x[:, t]
        states.append(state)
    return torch.stack(states, 1) + a


def inputs_out_of_order(a: Tensor, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for t, read in enumerate((0, 1, 2, 4, 3, 5, 6, 7, 8)):
        state = a[:, t] * state + x[:, read]
        states.append(state)
    return torch.stack(states, 1)


def second_order(a: Tensor, x: Tensor) -> Tensor:
    older, old, states = torch.zeros(B, D), torch.zeros(B, D), []
    for t in range(L):
        older, old = old, a[:, t] * old + 0.5 * older + x[:, t]
        states.append(old)
    return torch.stack(states, 1)


def dropped_out(a: Tensor, x: Tensor) -> Tensor:
    return looped(lambda a, h, x: F.dropout(a * h + x, 0.1), a, x)


@pytest.mark.parametrize(
    ("spelling", "code"),
    [
        (one_step_reads_another_decay, "irregular-steps"),
        (one_step_decays_twice, "irregular-steps"),
        (one_step_has_another_constant, "irregular-steps"),
        (inputs_out_of_order, "irregular-steps"),
        (second_order, "higher-order"),
        (dropped_out, "unsupported-op"),
    ],
)
def test_look_alike_loops(spelling: Spelling, code: str) -> None:
    sites, refusals = found(spelling, *vectors())
    assert not sites
    assert [reason.code for reason in refusals] == [code]


def test_the_steps_before_another_one_are_a_loop_of_their_own() -> None:
    sites, _ = found(one_step_squashes, *vectors())
    assert sites and all(isinstance(site, Scan) and site.length < L and prove_scan(site) is None for site in sites)


def products_not_divided_out(a: Tensor, x: Tensor) -> Tensor:
    product = a.cumprod(1)
    return (x * product).cumsum(1) * product


def products_of_the_step_before(a: Tensor, x: Tensor) -> Tensor:
    product = a.cumprod(1)
    return (x / product.roll(1, 1)).cumsum(1) * product


def products_along_another_axis(a: Tensor, x: Tensor) -> Tensor:
    product = a.cumprod(1)
    return (x / product).cumsum(2) * product


def sums_doubled(a: Tensor, x: Tensor) -> Tensor:
    total = (-a).cumsum(1)
    return (x * (-total).exp()).cumsum(1) * (2 * total).exp()


def sums_of_exponentials_doubled(a: Tensor, x: Tensor) -> Tensor:
    total = F.logsigmoid(a).cumsum(1)
    return (total + (x - 2 * total).logcumsumexp(1)).exp()


def sums_of_exponentials_along_another_axis(a: Tensor, x: Tensor) -> Tensor:
    total = F.logsigmoid(a).cumsum(1)
    return (total + (x - total).logcumsumexp(2)).exp()


def plain_sums(a: Tensor, x: Tensor) -> Tensor:
    return (x * a).cumsum(1).relu()


def doubling_with_a_square(a: Tensor, x: Tensor) -> Tensor:
    shift = 1
    while shift < L:
        x = torch.cat((x[:, :shift], x[:, shift:] + a[:, shift:] * a[:, shift:] * x[:, :-shift]), 1)
        a = torch.cat((a[:, :shift], a[:, shift:] * a[:, :-shift]), 1)
        shift *= 2
    return x


def doubling_that_stops_early(a: Tensor, x: Tensor) -> Tensor:
    for shift in (1, 2, 4):
        x = torch.cat((x[:, :shift], x[:, shift:] + a[:, shift:] * x[:, :-shift]), 1)
        a = torch.cat((a[:, :shift], a[:, shift:] * a[:, :-shift]), 1)
    return x


def pairs(a: Tensor, x: Tensor) -> Tensor:
    return torch.stack([a[:, t] * x[:, t - 1] + x[:, t] for t in range(L)], 1)


def layers(a: Tensor, x: Tensor) -> Tensor:
    """Stacked weights, one of them for each layer, of a residual network."""
    for weight in (torch.nn.Parameter(draw(D, D, seed=t)) for t in range(L)):
        x = x + F.gelu(x @ weight)
    return x * a


@pytest.mark.parametrize(
    "spelling",
    [
        products_not_divided_out, products_of_the_step_before, products_along_another_axis, sums_doubled, plain_sums,
        sums_of_exponentials_doubled, sums_of_exponentials_along_another_axis,
        doubling_with_a_square, doubling_that_stops_early, pairs, layers,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_look_alike_formulas(spelling: Spelling) -> None:
    assert found(spelling, *vectors()) == ([], [])


def undecayed_diagonal(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    total = g.cumsum(-1)
    hidden = ~torch.ones(L, L, dtype=torch.bool).tril(-1)
    decay = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(hidden, -math.inf).exp()
    return ((q @ k.mT) * decay) @ v


def decay_of_the_key_left_out(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    decay = g.cumsum(-1).exp().unsqueeze(-1)
    return ((q @ k.mT) * decay).tril() @ v


def squashed_scores(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    total = g.cumsum(-1)
    hidden = ~torch.ones(L, L, dtype=torch.bool).tril()
    decay = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(hidden, -math.inf).exp()
    return ((q @ k.mT) * decay).tanh() @ v


@pytest.mark.parametrize(
    "spelling",
    [undecayed_diagonal, squashed_scores],
    ids=lambda f: f.__name__,
)
def test_look_alikes_of_decayed_scores(spelling: Spelling) -> None:
    assert found(spelling, *heads()) == ([], [])


def test_a_decay_of_the_query_alone_is_no_gate() -> None:
    (site,), _ = found(decay_of_the_key_left_out, *heads())
    assert (site.form, site.gate) == ("parallel", "none")
