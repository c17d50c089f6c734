"""What is found does not depend on the element type, the batch, gradients, or on sizes being known."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from laconic.patterns import proof
from laconic.patterns.detect import detect

from .measure import capture
from .rows import ROWS

NAMES = ("gpt-neo", "gpt-neox-japanese", "phimoe", "rwkv", "timm-eva02", "clip-vision")


def found(name: str, variant: str) -> Counter[str]:
    """The kinds of the sites in all graphs of a row, each proven; no detector may fail or ask for a size."""
    module, inputs = ROWS[name].build()
    if variant == "bfloat16":
        module = module.bfloat16()
        inputs = {key: value.bfloat16() if floating(value) else value for key, value in inputs.items()}
    if variant == "one":
        inputs = {key: value[:1] for key, value in inputs.items()}
    graphs, given_up = capture(
        module, inputs, dynamic=True if variant == "dynamic" else None, gradients=variant == "gradients"
    )
    assert not given_up
    kinds: Counter[str] = Counter()
    for captured in graphs:
        sites = detect(captured.graph)
        assert not [reason for reason in sites.refusals if reason.code == "detector-failed"]
        assert [reason for site in sites if (reason := proof.prove(site, captured.graph)) is not None] == []
        kinds.update(site.kind for site in sites.sites)
    return kinds


def floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@pytest.mark.parametrize("name", NAMES)
def test_all_is_found_in_every_variant(name: str) -> None:
    plain = found(name, "plain")
    assert plain["block"] >= 2
    for variant in ("bfloat16", "one", "dynamic", "gradients"):
        assert found(name, variant) == plain, variant
