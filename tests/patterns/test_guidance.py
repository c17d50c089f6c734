"""Classifier-free guidance: every spelling gives the same site, look-alikes none; the halves are proven apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import laconic
from laconic.patterns.conditioning import conditioning_inputs
from laconic.patterns.detect import detect
from laconic.patterns.guidance import prove_guidance
from laconic.patterns.guidance_halves import half_program
from laconic.patterns.nodes import operation
from laconic.patterns.sites import Guidance, Sites
from tests.models.builders import BUILDERS
from tests.patterns.graphs import normal
from tests.patterns.test_real_models import normal_forms

BATCH, TOKENS, WIDTH = 2, 6, 8

ENTRIES: dict[str, Callable[[Tensor], Tensor]] = {
    "cat": lambda x: torch.cat([x, x]),
    "repeat": lambda x: x.repeat(2, 1, 1),
    "stack": lambda x: torch.stack([x, x]).flatten(0, 1),
    "expand": lambda x: x[None].expand(2, *x.shape).reshape(2 * x.shape[0], *x.shape[1:]),
}

EXITS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "chunk": lambda y, s: (lambda u, c: u + s * (c - u))(*y.chunk(2)),
    "split": lambda y, s: (lambda u, c: (c - u) * s + u)(*y.split(BATCH)),
    "slices": lambda y, s: torch.lerp(y[:BATCH], y[BATCH:], s),
    "negative": lambda y, s: (lambda u, c: c + (s - 1) * (c - u))(y[:-BATCH], y[-BATCH:]),
    "view": lambda y, s: (lambda z: (1 - s) * z[0] + s * z[1])(y.view(2, BATCH, *y.shape[1:])),
    "unbind": lambda y, s: (lambda u, c: s * c - (s - 1) * u)(*y.unflatten(0, (2, BATCH)).unbind()),
    "float": lambda y, s: (lambda u, c: u.float() + s * (c.float() - u.float()))(*y.chunk(2)),
    "in three": lambda y, s: (lambda u, c: u - s * u + s * c)(*y.tensor_split(2)),
}


def network(x: Tensor, text: Tensor, w: Tensor) -> Tensor:
    """Self-attention, cross-attention and a layer: what a denoiser does to a batch."""
    y = functional.layer_norm(x, (WIDTH,))
    x = x + functional.scaled_dot_product_attention(y, y, y)
    x = x + torch.softmax(x @ text.transpose(1, 2), -1) @ text
    return x + functional.silu(x @ w)


def sampler(entry: str, exit: str, scale: float | None) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    def step(x: Tensor, text: Tensor, w: Tensor, s: Tensor) -> Tensor:
        y = network(ENTRIES[entry](x), text, w)
        return x - 0.1 * EXITS[exit](y, s if scale is None else scale)

    torch.manual_seed(0)
    inputs = (torch.randn(BATCH, TOKENS, WIDTH), torch.randn(2 * BATCH, 3, WIDTH), torch.randn(WIDTH, WIDTH))
    return step, (*inputs, torch.tensor(2.5))


def found(function: Callable[..., Any], *inputs: Tensor) -> tuple[Any, Sites]:
    graph = normal(function, *inputs)
    return graph, detect(graph)


@pytest.mark.parametrize("scale", [3.0, None])
@pytest.mark.parametrize("exit", sorted(EXITS))
@pytest.mark.parametrize("entry", sorted(ENTRIES))
def test_every_spelling_is_the_same_site(entry: str, exit: str, scale: float | None) -> None:
    graph, sites = found(*(lambda step, inputs: (step, *inputs))(*sampler(entry, exit, scale)))
    (site,) = sites.of(Guidance)
    x, text, _, s = graph.placeholders
    assert site.latent is x and site.order == ("unconditional", "conditional")
    assert (site.scale, site.scale_factor, site.scale_offset) == (3.0 if scale else s, 1.0, 0.0)
    assert dict(site.doubled_inputs) == {text: 0}
    assert site.inputs[:2] == (x, text) and len(site.outputs) == 1
    assert site.conditioning[0] is text and s not in site.conditioning
    assert prove_guidance(site, graph) is None


def test_a_half_is_the_network_on_one_half() -> None:
    step, inputs = sampler("cat", "chunk", None)
    graph, sites = found(step, *inputs)
    (site,) = sites.of(Guidance)
    program = half_program(site)
    x, text, w, s = inputs
    values = dict(zip(graph.placeholders, inputs, strict=True))
    u, c = (
        program(
            *(
                values[node].chunk(2)[index] if node in site.doubled_inputs else values[node]
                for node in site.inputs
                if any(node.name == item.name for item in program.graph.nodes)
            )
        )
        for index in (0, 1)
    )
    torch.testing.assert_close(x - 0.1 * (u + s * (c - u)), step(x, text, w, s))


def test_the_conditional_half_may_come_first_and_the_weight_may_be_one_less() -> None:
    def step(x: Tensor, text: Tensor, w: Tensor, strength: Tensor) -> Tensor:
        c, u = network(torch.cat([x, x]), text, w).chunk(2)
        return (1 + strength) * c - strength * u

    _, (*inputs, strength) = sampler("cat", "chunk", None)
    graph, sites = found(step, *inputs, strength)
    (site,) = sites.of(Guidance)
    assert site.order == ("conditional", "unconditional")
    assert (site.scale, site.scale_factor, site.scale_offset) == (graph.placeholders[3], 1.0, 1.0)
    assert prove_guidance(site, graph) is None


def attends_across(x: Tensor, text: Tensor, w: Tensor) -> Tensor:
    y = x.transpose(0, 1)
    return x + functional.scaled_dot_product_attention(y, y, y).transpose(0, 1)


LOOK_ALIKES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "halves meet in attention": lambda x, t, w, s: EXITS["chunk"](attends_across(torch.cat([x, x]), t, w), s),
    "halves meet in a norm": lambda x, t, w, s: EXITS["chunk"](
        functional.batch_norm(torch.cat([x, x]), None, None, training=True), s
    ),
    "halves of the features": lambda x, t, w, s: (lambda u, c: u + s * (c - u))(
        *network(torch.cat([x, x]), t, w).chunk(2, -1)
    ),
    "two different values": lambda x, t, w, s: EXITS["chunk"](network(torch.cat([x, x.flip(0)]), t, w), s),
    "weights that do not sum to one": lambda x, t, w, s: (lambda u, c: u + s * c)(
        *network(torch.cat([x, x]), t, w).chunk(2)
    ),
    "interleaved": lambda x, t, w, s: EXITS["chunk"](network(x.repeat_interleave(2, 0), t, w), s),
    "a square": lambda x, t, w, s: (lambda u, c: u + s * (c - u) * (c - u))(*network(torch.cat([x, x]), t, w).chunk(2)),
    "dropout": lambda x, t, w, s: EXITS["chunk"](functional.dropout(network(torch.cat([x, x]), t, w), 0.5), s),
}


@pytest.mark.parametrize("name", sorted(LOOK_ALIKES))
def test_look_alikes_are_no_guidance(name: str) -> None:
    _, sites = found(LOOK_ALIKES[name], *sampler("cat", "chunk", None)[1])
    assert sites.of(Guidance) == []
    if name.startswith("halves meet") or name == "dropout":
        assert any(reason.code in ("not-proven", "dropout-active") for reason in sites.refusals)


def test_a_table_made_for_each_row_of_the_batch_is_no_second_latent() -> None:
    def step(x: Tensor, text: Tensor, w: Tensor, s: Tensor) -> Tensor:
        positions = torch.arange(TOKENS * WIDTH, dtype=torch.float32).view(1, TOKENS, WIDTH).repeat(2, 1, 1).sin()
        y = network(torch.cat([x, x]) + positions.repeat_interleave(BATCH, 0), text, w)
        return EXITS["chunk"](y, s)

    _, inputs = sampler("cat", "chunk", None)
    graph, sites = found(step, *inputs)
    (site,) = sites.of(Guidance)
    assert site.latent is graph.placeholders[0] and prove_guidance(site, graph) is None


def test_the_time_may_be_doubled_too() -> None:
    def step(x: Tensor, text: Tensor, w: Tensor, s: Tensor, t: Tensor) -> Tensor:
        time = functional.silu(torch.cat([t, t])[:, None].sin() * 3)[:, None]
        return EXITS["chunk"](network(torch.cat([x, x]) * time, text, w), s)

    _, inputs = sampler("cat", "chunk", None)
    graph, sites = found(step, *inputs, torch.rand(BATCH))
    (site,) = sites.of(Guidance)
    assert site.latent is graph.placeholders[0] and prove_guidance(site, graph) is None
    # The time is cut where it is doubled, so that half of the batch computes all that comes of it once.
    cuts = {operation(node) for node in site.doubled_inputs}
    assert "cat" in cuts and len(site.doubled_inputs) == 2
    program = half_program(site)
    assert "silu" in {operation(node) for node in program.graph.nodes}


def test_a_changed_field_fails_the_proof() -> None:
    graph, sites = found(*(lambda step, inputs: (step, *inputs))(*sampler("cat", "chunk", None)))
    (site,) = sites.of(Guidance)
    x, text, *_ = graph.placeholders
    changes: list[dict[str, Any]] = [
        {"order": ("conditional", "unconditional")},
        {"scale": 3.0},
        {"scale_offset": 1.0},
        {"scale_factor": 2.0},
        {"latent": text},
        {"doubled": site.result},
        {"unconditional": site.conditional, "conditional": site.unconditional},
        {"result": site.doubled},
        {"doubled_inputs": {text: 1}},
        {"doubled_inputs": {}},
        {"batch_axes": {**site.batch_axes, site.result: 1}},
    ]
    for change in changes:
        assert prove_guidance(dataclasses.replace(site, **change), graph) is not None, change


class Guided(nn.Module):
    """One step of a sampler around a real denoiser."""

    def __init__(self, network: nn.Module, kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.kwargs = kwargs

    def forward(self, latent: Tensor, strength: Tensor, **tensors: Tensor) -> Tensor:
        kwargs = {**self.kwargs, **tensors, "return_dict": False}
        y = self.network(torch.cat([latent, latent]), **kwargs)[0]
        u, c = y[:, : latent.shape[1]].chunk(2)
        return latent - 0.1 * (u + strength * (c - u))


@pytest.mark.parametrize("name", ["dit", "pixart", "sd3", "unet"])
def test_a_real_sampler_step(name: str) -> None:
    network, args, kwargs = BUILDERS[name](1)
    if name == "unet":
        kwargs = {**kwargs, "timestep": args[1]}
    tensors = {key: value for key, value in kwargs.items() if isinstance(value, Tensor)}
    rest = {key: value for key, value in kwargs.items() if not isinstance(value, Tensor)}
    tensors.pop("hidden_states", None)
    model = Guided(network, rest).eval()
    call = ((torch.randn(1, 4, 8, 8), torch.tensor(2.5)), tensors)
    (graph,) = normal_forms(model, *call)
    sites = detect(graph)
    (site,) = sites.of(Guidance)
    assert prove_guidance(site, graph) is None
    moving = [node for node in graph.placeholders if not graph.is_static(node)]
    assert site.latent in moving and set(site.conditioning) <= set(moving) - {site.latent}
    assert site.scale in moving and site.scale not in site.conditioning
    assert conditioning_inputs(graph, sites) == site.conditioning


def test_the_report_names_the_conditioning() -> None:
    model, args, kwargs = BUILDERS["pixart"](1)
    report = laconic.explain(model, *args, **kwargs)
    assert set(report.graphs[0].conditioning) == {"encoder_hidden_states", "timestep", "encoder_attention_mask"}
    assert report.to_dict()["graphs"][0]["conditioning"] == report.graphs[0].conditioning
