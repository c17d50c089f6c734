"""With no passes named, laconic changes only rounding, on models nobody here wrote; all of it through Inductor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import laconic
from tests.models.builders import BUILDERS, LAYERS
from tests.models.support import relative, tensors

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_forward_matches_eager(name: str) -> None:
    # A UNet has every kind of block already with one layer each, and many of them.
    model, args, kwargs = BUILDERS[name](1 if name == "unet" else LAYERS)
    with torch.no_grad():
        expected = tensors(model(*args, **kwargs))
        compiled = torch.compile(model, backend="laconic")
        got = tensors(compiled(*args, **kwargs))
    assert len(got) == len(expected) > 0
    for value, reference in zip(got, expected, strict=True):
        assert relative(value, reference) <= 1e-5
    report = laconic.report(compiled)
    assert report.sites
    assert not [row for row in report.refusals if row.code in ("not-normalised", "pass-failed", "not-proven")]
