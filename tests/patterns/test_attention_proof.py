"""The proof reads the fields: a site with any field changed is not believed. And it leaves no trace behind."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.patterns import proof
from laconic.patterns.graph import NormalGraph
from laconic.patterns.sites import Attention, Bias, Operand
from tests.patterns.graphs import attentions, compiled, normal

B, H, G, S, T, D = 2, 2, 2, 5, 5, 4


def grouped(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, keep: Tensor) -> Tensor:
    """Every field has something to say: groups, scale, an additive and a boolean bias, a moved output."""
    q = q.view(B, S, G * H, D).transpose(1, 2)
    k, v = (x.view(B, T, H, D).transpose(1, 2).repeat_interleave(G, 1) for x in (k, v))
    scores = q @ k.mT * 0.3 + bias
    weights = scores.masked_fill(~keep[:, None, None, :], float("-inf")).softmax(-1)
    return torch.einsum("bhst,bhtd->bshd", weights, v)


@pytest.fixture(scope="module")
def found() -> tuple[NormalGraph, Attention]:
    keep = torch.ones(B, T, dtype=torch.bool)
    inputs = (torch.randn(B, S, G * H * D), torch.randn(B, T, H * D), torch.randn(B, T, H * D))
    graph = normal(grouped, *inputs, torch.randn(G * H, S, T), keep)
    (site,) = attentions(graph).of(Attention)
    assert proof.prove(site, graph, verify="always") is None
    return graph, site


def swapped(operand: Operand) -> Operand:
    """Two axes of equal size taken for each other: invisible to a check of shapes."""
    return Operand(operand.node, tuple(operand.permutation[i] for i in (0, 1, 3, 2)))  # type: ignore[index]


CHANGES: dict[str, Any] = {
    "query": lambda site: {"query": Operand(site.key.node, site.key.permutation)},
    "key": lambda site: {"key": Operand(site.value.node, site.value.permutation)},
    "value": lambda site: {"value": Operand(site.key.node, site.key.permutation)},
    "scale": lambda site: {"scale": site.scale * 1.001},
    "one bias less": lambda site: {"biases": site.biases[:1]},
    "another bias less": lambda site: {"biases": site.biases[1:]},
    "bias kind": lambda site: {"biases": (site.biases[0], dataclasses.replace(site.biases[1], kind="hidden"))},
    "bias more": lambda site: {"biases": (*site.biases, Bias("causal"))},
    "fill": lambda site: {"biases": (site.biases[0], dataclasses.replace(site.biases[1], fill=0.0))},
    "groups": lambda site: {"groups": 1},
    "output_permutation": lambda site: {"output_permutation": None},
    "inputs": lambda site: {"inputs": site.inputs[:-1]},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("small", [False, True], ids=["own sizes", "small sizes"])
def test_a_changed_field_is_not_believed(found: tuple[NormalGraph, Attention], change: Any, small: bool) -> None:
    graph, site = found
    wrong = dataclasses.replace(site, **change(site))
    limit = 0 if small else proof.CHEAP
    with mock.patch.object(proof, "CHEAP", limit), mock.patch.object(proof, "AFFORDABLE", limit):
        reason = proof.prove(wrong, graph)
    assert reason is not None and reason.code == "not-proven"
    assert reason.nodes == (site.output.name,)


def test_query_and_key_axes_taken_for_each_other() -> None:
    """Square operands: a transposed key has the right shape and the wrong meaning (pytorch/pytorch#195320)."""

    def square(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v

    graph = normal(square, *(torch.randn(2, 2, 4, 4) for _ in range(3)))
    (site,) = attentions(graph).of(Attention)
    wrong = dataclasses.replace(site, key=Operand(site.key.node, (0, 1, 3, 2)))
    assert proof.prove(site, graph) is None
    assert proof.prove(wrong, graph) is not None


def test_permuted_key_is_what_it_is() -> None:
    """k with batch and head exchanged is another attention, and is read as the operand it really is."""

    def exchanged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.permute(1, 0, 3, 2)).softmax(-1) @ v

    graph = normal(exchanged, *(torch.randn(3, 3, 4, 4) for _ in range(3)))
    (site,) = attentions(graph).of(Attention)
    assert site.key.permutation == (1, 0, 2, 3)
    assert proof.prove(site, graph) is None


def test_hidden_rows_are_part_of_the_meaning() -> None:
    def fused(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keep)

    graph = normal(fused, *(torch.randn(2, 2, 5, 4) for _ in range(3)), torch.ones(5, 5, dtype=torch.bool))
    (site,) = attentions(graph).of(Attention)
    assert proof.prove(site, graph) is None
    assert proof.prove(dataclasses.replace(site, hidden_rows="nan"), graph) is not None


def test_equal_layers_are_proven_once() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(8, 24)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (y.view(2, 6, 2, 4).transpose(1, 2) for y in self.project(x).chunk(3, -1))
            return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 6, 8)

    graph = compiled(nn.Sequential(*(Layer() for _ in range(4))), torch.randn(2, 6, 8))
    sites = attentions(graph).of(Attention)
    assert len({proof.structure(site) for site in sites}) == 1
    assert len({site.fingerprint for site in sites}) == 1
    assert [site.module for site in sites] == ["0", "1", "2", "3"]
    with mock.patch.object(proof, "_PROVEN", {}), mock.patch.object(proof, "_attempt", return_value=None) as attempt:
        assert all(proof.prove(site, graph) is None for site in sites)
        assert attempt.call_count == 1
        proof.prove(sites[0], graph, verify="always")
        assert attempt.call_count == 2


def test_loads_that_may_be_nothing_are_not_guarded_on() -> None:
    """An attention in one graph with experts of which some get no token."""

    def attend(x: Tensor, weights: Tensor, loads: list[int]) -> Tensor:
        q, k = (
            torch.cat([F.linear(part, w) for part, w in zip(x.split(loads), weight, strict=True)]) for weight in weights
        )
        return F.scaled_dot_product_attention(q[None], k[None], x[None], scale=0.5)

    graph = compiled(attend, torch.randn(6, 4), torch.randn(2, 3, 4, 4), [2, 0, 4], dynamic=True)
    assert sum(isinstance(node.meta["val"], torch.SymInt) for node in graph.placeholders) >= 3
    assert len(attentions(graph).of(Attention)) == 1


def test_symbolic_sizes_are_never_guarded_on() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        (b, s, _), t = q.shape, k.shape[1]
        q, k, v = (x.view(b, x.shape[1], 2, 4).transpose(1, 2) for x in (q, k, v))
        q, k, v = (x.reshape(b * 2, x.shape[2], 4) for x in (q, k, v))
        weights = (torch.bmm(q, k.mT) / 2.0).view(b, 2, s, t) + bias
        return torch.bmm(weights.softmax(-1).view(b * 2, s, t), v).view(b, 2, s, 4).transpose(1, 2).reshape(b, s, 8)

    graph = compiled(
        attend, torch.randn(3, 5, 8), torch.randn(3, 7, 8), torch.randn(3, 7, 8), torch.randn(2, 5, 7), dynamic=True
    )
    (site,) = attentions(graph).of(Attention)
    assert (site.scale, len(site.biases), site.groups) == (0.5, 1, 1)
    assert {name: site.dimensions[name] for name in "BHSTD"} == {"B": 3, "H": 2, "S": 5, "T": 7, "D": 4}


def test_half_precision_with_wide_softmax_reads_the_narrow_operands() -> None:
    def wide(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q.float() @ k.float().mT) * 0.5
        return (scores.softmax(-1) @ v.float()).to(q.dtype)

    graph = normal(wide, *(torch.randn(2, 2, 5, 4, dtype=torch.bfloat16) for _ in range(3)))
    (site,) = attentions(graph).of(Attention)
    assert proof.prove(site, graph) is None
    assert {operand.node.op for operand in (site.query, site.key, site.value)} == {"placeholder"}
    assert site.output.meta["val"].dtype is torch.bfloat16


def test_a_large_site_is_proven_on_small_sizes(record_property: Any) -> None:
    def large(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        q, k, v = (x.view(4, 4096, 16, 64).transpose(1, 2) for x in (q, k, v))
        mask = torch.where(keep[:, None, None, :], 0.0, torch.finfo(q.dtype).min).expand(4, 1, 4096, 4096)
        out = ((q @ k.mT) * 0.125 + mask).softmax(-1) @ v
        return out.transpose(1, 2).reshape(4, 4096, 1024)

    inputs = tuple(torch.empty(4, 4096, 1024, device="meta") for _ in range(3))
    graph = normal(large, *inputs, torch.empty(4, 4096, dtype=torch.bool, device="meta"))
    (site,) = attentions(graph).of(Attention)
    with mock.patch.object(proof, "_compare", wraps=proof._compare) as compare:
        assert proof.prove(site, graph, verify="always") is None
    ((_, sizes), _) = compare.call_args
    assert sizes["S"] * sizes["T"] < 100 and sizes["D"] == 64


def test_random_numbers_are_left_alone(found: tuple[NormalGraph, Attention]) -> None:
    graph, site = found
    torch.manual_seed(1)
    before = torch.get_rng_state()
    proof.prove(site, graph, verify="always")
    assert torch.equal(before, torch.get_rng_state())
