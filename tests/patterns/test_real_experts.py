"""On models nobody here wrote: every layer of experts that eager execution runs is a site, in each of its spellings."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from laconic.patterns import proof
from laconic.patterns.detect import detect
from laconic.patterns.sites import FeedForward, MixtureOfExperts
from tests.models.expert_builders import EXPERTS
from tests.patterns.test_real_models import normal_forms
from tests.zoo.eager_feedforward import counting


def experts_run(module: nn.Module, kwargs: dict[str, Any]) -> tuple[int, int]:
    """How many modules with stacks of matrices ran, and how many feed-forward layers of the ordinary kind."""
    ran: list[str] = []
    handles = [
        part.register_forward_hook(lambda *_, path=path: ran.append(path))
        for path, part in module.named_modules()
        if sum(parameter.dim() == 3 for parameter in part.parameters(recurse=False)) >= 2
    ]
    with counting(module) as calls:
        module(**kwargs)
    for handle in handles:
        handle.remove()
    return len(ran), calls.count


SPELLED = [(name, "grouped_mm") for name in EXPERTS] + [("mixtral", "batched_mm"), ("deepseek-v3", "batched_mm")]


@pytest.mark.parametrize(("name", "spelling"), SPELLED)
def test_every_layer_of_experts_is_found_and_proven(name: str, spelling: str) -> None:
    module, args, kwargs = EXPERTS[name](spelling)
    experts, ordinary = experts_run(module, kwargs)
    assert experts == 1
    found: list[MixtureOfExperts] = []
    feedforwards = 0
    for graph in normal_forms(module, args, kwargs):
        sites = detect(graph)
        for site in sites.of(MixtureOfExperts):
            assert proof.prove(site, graph, verify="always") is None
            with mock.patch.object(proof, "CHEAP", 0), mock.patch.object(proof, "AFFORDABLE", 0):
                assert proof.prove(site, graph, verify="always") is None
            found.append(site)
        feedforwards += len(sites.of(FeedForward))
    assert (len(found), feedforwards) == (experts, ordinary)
    (site,) = found
    config = module.config
    assert site.routing.top_k == config.num_experts_per_tok
    assert site.routing.normalised == getattr(config, "norm_topk_prob", True)
    if name == "deepseek-v3":
        assert (site.routing.scores, site.routing.scale) == ("sigmoid", config.routed_scaling_factor)
        assert (site.routing.groups, site.routing.top_groups) == (config.n_group, config.topk_group)
    assert (site.shared is not None) == (name in ("qwen2-moe", "deepseek-v2", "deepseek-v3"))
    assert (site.shared_gate is not None) == (name == "qwen2-moe")
    assert site.activation == ("clamped_swiglu" if name == "gpt-oss" else "silu")


def test_half_precision_takes_the_grouped_product() -> None:
    module, args, kwargs = EXPERTS["mixtral"]("grouped_mm")
    (graph,) = normal_forms(module.to(torch.bfloat16), args, kwargs)
    assert any("grouped_mm" in str(node.target) for node in graph.module.graph.nodes)
    (site,) = detect(graph).of(MixtureOfExperts)
    assert proof.prove(site, graph, verify="always") is None


def test_a_loop_over_the_experts_that_are_hit_ends_the_graph() -> None:
    module, args, kwargs = EXPERTS["mixtral"]("eager")
    found = [detect(graph) for graph in normal_forms(module, args, kwargs)]
    assert not any(sites.of(MixtureOfExperts) for sites in found)
    assert "data-dependent" in [reason.code for sites in found for reason in sites.refusals]
