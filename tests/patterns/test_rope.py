"""Rotary embeddings: every spelling is one proven site; what turns nothing, or by no angle, is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from laconic.patterns import proof
from laconic.patterns.detect import detect
from laconic.patterns.proof import prove
from laconic.patterns.sites import Rope, Sites
from tests.models.builders import BUILDERS
from tests.patterns.graphs import normal
from tests.patterns.test_real_models import normal_forms
from tests.zoo.measure import capture
from tests.zoo.rows import ROWS

B, H, S, D = 2, 3, 11, 8
Turn = Callable[[Tensor, Tensor, Tensor], Any]


def rotated_halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def halves(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    return x * c + rotated_halves(x) * s


def slices(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    middle = x.shape[-1] // 2
    return s * torch.cat((x[..., middle:] * -1.0, x[..., :middle]), dim=-1) + c * x


def halves_in_double(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    return halves(x.double(), c.double(), s.double()).to(x.dtype)


def view_of_two(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    first, second = x.reshape(*x.shape[:-1], 2, -1).unbind(-2)
    return x * c + torch.cat([-second, first], dim=-1) * s


def four_products(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    first, second = x[..., : D // 2], x[..., D // 2 :]
    c, s = c[..., : D // 2], s[..., : D // 2]
    return torch.cat([first * c - second * s, second * c + first * s], -1)


def four_products_written(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    c, s = c[..., : D // 2], s[..., : D // 2]
    out = torch.empty_like(x)
    out[..., : D // 2] = x[..., : D // 2] * c - x[..., D // 2 :] * s
    out[..., D // 2 :] = x[..., : D // 2] * s + x[..., D // 2 :] * c
    return out


def neighbours(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    return x * c + torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2) * s


def pairs(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    even, odd = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return c * x + torch.stack([-odd, even], -1).reshape(x.shape) * s


def pairs_of_products(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    even, odd = x[..., ::2], x[..., 1::2]
    c, s = c[..., ::2], s[..., ::2]
    return torch.stack([even * c - odd * s, even * s + odd * c], -1).flatten(-2)


def pairs_written(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    c, s = c[..., 0::2], s[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = even * c - odd * s
    out[..., 1::2] = even * s + odd * c
    return out


def complex_numbers(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    frequencies = torch.complex(c[..., ::2].contiguous(), s[..., ::2].contiguous())
    turned = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * frequencies
    return torch.view_as_real(turned).flatten(-2)


def regrouped(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    even, odd = x[..., ::2], x[..., 1::2]
    c, s = c[..., : D // 2], s[..., : D // 2]
    return torch.cat([even * c - odd * s, odd * c + even * s], -1)


def regrouped_first(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    return halves(x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2), c, s)


def partly(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    turned, kept = x[..., : D // 2], x[..., D // 2 :]
    return torch.cat([halves(turned, c[..., : D // 2], s[..., : D // 2]), kept], -1)


def partly_split(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    first, second, kept = x.split([D // 4, D // 4, D // 2], -1)
    c, s = c[..., : D // 4], s[..., : D // 4]
    return torch.cat([first * c - second * s, second * c + first * s, kept], -1)


def last_part(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    kept, turned = x.split([D // 2, D // 2], -1)
    return torch.cat([kept, neighbours(turned, c[..., : D // 2], s[..., : D // 2])], -1)


SPELLINGS: list[tuple[Turn, str, tuple[int, int]]] = [
    *((turn, "half", (0, D)) for turn in (halves, slices, halves_in_double, view_of_two)),
    *((turn, "half", (0, D)) for turn in (four_products, four_products_written)),
    *((turn, "neighbour", (0, D)) for turn in (neighbours, pairs, pairs_of_products, pairs_written, complex_numbers)),
    *((turn, "half", (0, D // 2)) for turn in (partly, partly_split)),
    (last_part, "neighbour", (D // 2, D)),
    (regrouped, "regrouped", (0, D)),
    (regrouped_first, "half", (0, D)),
]


def angles(step: int = 1) -> Tensor:
    frequencies = 100.0 ** -(torch.arange(0, D, 2) / D)
    table = torch.outer(torch.arange(S * step)[::step].float(), frequencies)
    return torch.cat([table, table], -1)


def inside(turn: Turn) -> Callable[..., Any]:
    def function(x: Tensor) -> Any:
        return turn(x, angles().cos(), angles().sin() * 1.0)

    return function


def found_in(function: Callable[..., Any], *inputs: Tensor) -> tuple[Any, Sites]:
    graph = normal(function, *inputs, writes=False)
    return graph, detect(graph)


def tokens() -> Tensor:
    return torch.randn(B, H, S, D, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("computed", [False, True], ids=["given", "computed"])
@pytest.mark.parametrize(("turn", "pairing", "features"), SPELLINGS, ids=[turn.__name__ for turn, *_ in SPELLINGS])
def test_spellings(turn: Turn, pairing: str, features: tuple[int, int], computed: bool, monkeypatch: Any) -> None:
    inputs = (tokens(),) if computed else (tokens(), torch.randn(S, D), torch.randn(S, D))
    graph, sites = found_in(inside(turn) if computed else turn, *inputs)
    assert len(sites.of(Rope)) == 1, [str(reason) for reason in sites.refusals]
    (site,) = sites.of(Rope)
    assert (site.turn, site.features, site.kind) == (pairing, features, "rope")
    assert (site.sin is None) == (turn is complex_numbers)
    assert prove(site, graph, "always") is None
    other = "half" if pairing == "neighbour" else "neighbour"
    changes: list[dict[str, Any]] = [{"turn": other}, {"features": (0, D // 2) if features[0] else (D // 2, D)}]
    changes += [{"cos": site.sin, "sin": site.cos}] if site.sin is not None else []
    for change in changes:
        assert prove(dataclasses.replace(site, **change), graph, "always") is not None, change
    monkeypatch.setattr(proof, "CHEAP", 0)  # as a large one is: on few rows
    monkeypatch.setattr(proof, "AFFORDABLE", 0)
    assert [len(sizes) > 0 for sizes in proof.sizes_to_try(site)] == [True]
    assert prove(site, graph, "always") is None


LOOK_ALIKES: dict[str, Turn] = {
    "another sign": lambda x, c, s: x * c - rotated_halves(x) * s,
    "not turned": lambda x, c, s: x * c + torch.cat(x.chunk(2, -1)[::-1], -1) * s,
    "two values": lambda x, c, s: x.sin() * c + rotated_halves(x) * s,
    "flipped": lambda x, c, s: x * c + x.flip(-1) * s,
    "one table": lambda x, c, s: x * c + rotated_halves(x) * c,
    "turned the other way": lambda x, c, s: rotated_halves(-x) * c + x * s,
    "shifted": lambda x, c, s: x * c + x.roll(1, -1) * s,
    "three tables": lambda x, c, s: torch.cat(
        [x[..., :4] * c[..., :4] - x[..., 4:] * s[..., :4], x[..., 4:] * c[..., 4:] + x[..., :4] * s[..., :4]], -1
    ),
    "a gate": lambda x, c, s: x * c + s,
    "over tokens": lambda x, c, s: x * c + torch.cat([-x[..., 1:, :], x[..., :1, :]], -2) * s,
}


@pytest.mark.parametrize("name", sorted(LOOK_ALIKES))
def test_look_alikes(name: str) -> None:
    assert not found_in(LOOK_ALIKES[name], tokens(), torch.randn(S, D), torch.randn(S, D))[1].of(Rope)


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "no angle": (lambda x, c, s: halves(x, c.sigmoid(), s.tanh()), "unsupported-op"),
    "sine first": (lambda x, c, s: halves(x, c.sin(), c.cos()), "unsupported-op"),
    "turned value returned": (lambda x, c, s: ((y := rotated_halves(x)), x * c + y * s), "weights-escape"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refusals(name: str) -> None:
    function, code = REFUSED[name]
    _, sites = found_in(function, tokens(), torch.randn(S, D), torch.randn(S, D))
    assert not sites.of(Rope)
    assert code in [reason.code for reason in sites.refusals]


def test_tables_put_together_from_several_angles() -> None:
    def pieced(x: Tensor) -> Tensor:
        table = torch.stack([angles(), angles(2)]).clone()
        table[0, :, 1::3] = table[1, :, 1::3]
        c, s = table.cos(), table.sin()
        c[0, :, ::2] = c[1, :, ::2]
        s[0, :, ::2] = s[1, :, ::2]
        return halves(x, c[0], s[0])

    graph, sites = found_in(pieced, tokens())
    (site,) = sites.of(Rope)
    assert prove(site, graph, "always") is None


def test_queries_and_keys_at_once() -> None:
    def together(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        return halves(torch.cat([q, k], 1), angles().cos(), angles().sin()).split([H, H], 1)

    graph, sites = found_in(together, tokens(), tokens())
    (site,) = sites.of(Rope)
    assert site.dimensions["M1"] == 2 * H and prove(site, graph, "always") is None


@pytest.mark.parametrize(
    ("name", "turn"),
    [("llama-sdpa", "half"), ("gptj", "neighbour"), ("gpt-neox", "half")],
)
def test_real_models(name: str, turn: str) -> None:
    if name in BUILDERS:
        graphs = normal_forms(*BUILDERS[name](2))
    else:
        graphs = [item.graph for item in capture(*ROWS[name].build())[0]]
    (graph,) = graphs
    sites = detect(graph).of(Rope)
    assert len(sites) == 4, "queries and keys of both layers"
    assert {site.turn for site in sites} == {turn}
    assert all(prove(site, graph, "always") is None for site in sites)
