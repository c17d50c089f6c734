"""A pass from outside: the code in docs/adding_a_pass.md runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import laconic

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding_a_pass.md"


def test_the_page_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    names = {"model": model}
    exec(compile(code, str(PAGE), "exec"), names)
    x = torch.randn(3, 4)
    with torch.no_grad():
        got = names["fast"](x)
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.round(layer.weight, decimals=2))
        torch.testing.assert_close(got, model(x))
    report = laconic.report(names["fast"])
    assert [row.op for row in report.rewrites] == ["laconic::rounded_linear"] * 2
    assert report.rewrites[0].pass_name == "laconic.round_weights(digits=2)"
    with pytest.raises(laconic.UserError, match="there is a pass"):
        laconic.graph_pass("round_weights")


def test_mistakes() -> None:
    with pytest.raises(laconic.UserError, match="did you mean 'cache'"):
        laconic.graph_pass("fresh", before="cahce")
    with pytest.raises(laconic.UserError, match="frozen dataclasses"):
        laconic.graph_pass("fresh")(laconic.Policy.__base__)
