"""Linear attention that looks back only, summed step by step or with a table of decays, and what is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from laconic.patterns.scan import find_scan
from laconic.patterns.sites import Recurrence, Sites
from tests.patterns.graphs import normal
from tests.zoo.mutants import mutants

B, H, L, K, V = 2, 3, 9, 6, 4

Spelling = Callable[..., Any]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heads() -> tuple[Tensor, ...]:
    """Query, key ``[B, H, L, K]``, value ``[B, H, L, V]``, input and forget gate ``[B, H, L]``."""
    return (
        draw(B, H, L, K), draw(B, H, L, K, seed=1), draw(B, H, L, V, seed=2), draw(B, H, L, seed=3),
        draw(B, H, L, seed=4),
    )  # fmt: skip


def found(spelling: Spelling) -> list[tuple[str, str]]:
    sites, refusals = find_scan(normal(spelling, *heads(), writes=False), Sites())
    assert all(isinstance(site, Recurrence) and site.length == L for site in sites)
    assert not refusals
    return [(site.form, site.gate) for site in sites]


def hidden() -> Tensor:
    return torch.ones(L, L, dtype=torch.bool).triu(1)


def powers(base: Any) -> Tensor:
    distance = torch.arange(L)[:, None] - torch.arange(L)[None, :]
    return (base ** distance.clamp(min=0)).masked_fill(distance < 0, 0.0)


# Sums of keys times values (Katharopoulos et al., "Transformers are RNNs", 2020).


def two_sums(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    states = torch.einsum("bhld,bhlm->bhldm", k, v).cumsum(2)
    inverse = 1 / (torch.einsum("bhld,bhld->bhl", q, k.cumsum(2)) + 1e-6)
    return torch.einsum("bhld,bhldm,bhl->bhlm", q, states, inverse)


def two_sums_by_products(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    q, k = q.softmax(-1), k.exp()
    states = (k.unsqueeze(-1) * v.unsqueeze(-2)).cumsum(dim=2)
    return (q.unsqueeze(-2) @ states).squeeze(-2) / (q * k.cumsum(2)).sum(-1, keepdim=True)


def one_sum(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    return torch.einsum("bhld,bhldm->bhlm", q, (k.unsqueeze(-1) @ v.unsqueeze(-2)).cumsum(2))


# Scores of all pairs of steps, hidden and decayed.


def lower_triangle(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    scores = torch.tril((F.elu(q) + 1) @ (F.elu(k) + 1).mT)
    return (scores / scores.sum(-1, keepdim=True).clamp(min=1e-6)) @ v


def retention(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    return ((q @ k.mT) * powers(0.9)) @ v


def retention_with_a_rate_for_each_head(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    table = powers(1 - 2.0 ** (-5 - torch.arange(H))[:, None, None])
    return torch.einsum("bhts,bhsv->bhtv", torch.einsum("bhtk,bhsk->bhts", q, k) * table, v)


def backwards(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    return ((q @ k.mT) * powers(0.9).mT) @ v


def memory_of_matrices(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    """Gates in logarithms, relative to each row's maximum (Beck et al., "xLSTM", 2024, appendix A.3)."""
    total = F.pad(F.logsigmoid(f).cumsum(-1), (1, 0)).unsqueeze(-1).repeat(1, 1, 1, L + 1)
    gates = torch.where(~hidden(), (total - total.mT)[:, :, 1:, 1:], -math.inf) + i.unsqueeze(-2)
    largest = gates.amax(-1, keepdim=True)
    weights = (q @ k.mT) * (gates - largest).exp()
    return (weights / torch.maximum(weights.sum(-1, keepdim=True).abs(), (-largest).exp())) @ v


def decay_from_the_scores(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    scores = q @ k.mT
    total = F.logsigmoid(scores.diagonal(dim1=-2, dim2=-1)).cumsum(-1)
    return (scores * (total.unsqueeze(-1) - total.unsqueeze(-2)).exp()).tril() @ v


def moving_average(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    return torch.einsum("vts,bhsv->bhtv", powers(q[0, 0, 0, :V, None, None].sigmoid()), v)


@pytest.mark.parametrize(
    ("spelling", "form", "gate"),
    [
        (two_sums, "cumulative", "none"),
        (two_sums_by_products, "cumulative", "none"),
        (one_sum, "cumulative", "none"),
        (lower_triangle, "parallel", "none"),
        (retention, "parallel", "scalar"),
        (retention_with_a_rate_for_each_head, "parallel", "scalar"),
        (backwards, "parallel", "scalar"),
        (memory_of_matrices, "parallel", "scalar"),
        (decay_from_the_scores, "parallel", "scalar"),
        (moving_average, "parallel", "diagonal"),
    ],
)
def test_linear_attention_that_looks_back(spelling: Spelling, form: str, gate: str) -> None:
    assert found(spelling) == [(form, gate)]


def rectified(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    return (q @ k.mT).relu().tril() @ v


def not_hidden(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    return ((q @ k.mT) * 0.9 ** torch.arange(L)) @ v


def in_a_window(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    return (q @ k.mT).tril().triu(-3) @ v


def other_powers(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    distance = (torch.arange(L)[:, None] - torch.arange(L)[None, :]).clamp(min=0)
    return ((q @ k.mT) / (1.0 + distance)).tril() @ v


def attention(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(hidden(), -math.inf).softmax(-1) @ v


def learned_table(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    return ((q @ k.mT) * i.unsqueeze(-1).expand(B, H, L, L).sin() * f.unsqueeze(-2).expand(B, H, L, L).tril()) @ v


def sums_along_the_keys(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    return torch.einsum("bhld,bhldm->bhlm", q, torch.einsum("bhld,bhlm->bhldm", k, v).cumsum(3))


def sums_squared(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    return torch.einsum("bhld,bhldm->bhlm", q, torch.einsum("bhld,bhlm->bhldm", k, v).cumsum(2) ** 2)


@pytest.mark.parametrize(
    "spelling",
    [
        rectified, not_hidden, in_a_window, other_powers, attention, sums_along_the_keys, sums_squared,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_look_alikes(spelling: Spelling) -> None:
    assert found(spelling) == []


def test_a_table_that_is_a_product_of_one_factor_for_each_row_and_column_forgets_nothing() -> None:
    assert found(learned_table) == [("parallel", "scalar")]


def _weights(module: torch.nn.Module, inputs: list[Tensor], value: int) -> Tensor:
    """``weights[b, h, t, s]`` of the values in what the graph returns, if it is linear in them."""

    def run(given: Tensor) -> Tensor:
        result: Tensor = module(*inputs[:value], given, *inputs[value + 1 :])
        return result

    jacobian = torch.func.jacrev(run)(inputs[value])  # [b, h, t, v, b, h, s, v]
    return torch.einsum("bhtvbhsv->bhtsv", jacobian)[..., 0]


def _mutants(spelling: Spelling) -> Iterator[tuple[Any, Any]]:
    graph = normal(spelling, *heads(), writes=False)
    for mutant in mutants(graph):
        yield mutant.edit.text, mutant.graph


@pytest.mark.parametrize("spelling", [retention, memory_of_matrices, lower_triangle], ids=lambda f: f.__name__)
def test_mutants_are_recurrences_where_they_are_found(spelling: Spelling) -> None:
    """Weights in the jacobian, divided by the products of the site's own queries and keys, are a product of decays."""
    accepted = refused = 0
    before = torch.get_default_dtype()
    for text, graph in _mutants(spelling):
        sites, _ = find_scan(graph, Sites())
        if not sites:
            refused += 1
            continue
        (site,) = sites
        names = [node.name for node in site.operands[:3]]
        torch.set_default_dtype(torch.float64)
        try:
            inputs = [value.double() for value in heads()]
            kept: dict[str, Tensor] = {}

            class Keeping(torch.fx.Interpreter):
                def run_node(self, n: Any) -> Any:
                    value = super().run_node(n)
                    kept[n.name] = value  # noqa: B023
                    return value

            Keeping(graph.module).run(*inputs)
            query, key, value = (kept[name] for name in names)
            result = kept[site.states[0].name]
            if value is not inputs[2] or result.shape != value.shape or not result.isfinite().all():
                continue
            scores = query @ (key if key.shape[-1] == L and key.shape[-2] == K else key.mT)
            weights = _weights(graph.module, inputs, 2)
        finally:
            torch.set_default_dtype(before)
        table = weights / scores
        table = table if not table.triu(1).any() else table.flip(-1, -2)
        accepted += 1
        assert not table.triu(1).any(), text
        column = table[..., :, :1]
        ratio = (table / column).tril()
        assert torch.allclose(ratio, ratio[..., -1:, :].expand_as(ratio).tril(), rtol=1e-6), text
        if site.gate == "none":
            kept_whole = torch.ones_like(ratio).tril() * table.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
            assert torch.allclose(table, kept_whole, rtol=1e-6), text
    assert refused >= 5 and accepted >= 1
