"""``explain(why=...)``: the best near miss of a region names the rule, the node and the source line."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import laconic
from laconic.__main__ import main


class ShowsItsWeights(nn.Module):
    """Attention that returns its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = (q @ k.transpose(-2, -1) * 0.35).softmax(-1)
        return weights @ v, weights


class NormInside(nn.Module):
    """A feed-forward with a norm between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.gelu(self.up(x))
        return x + self.down(functional.layer_norm(hidden, (16,)))


class Bent(nn.Module):
    """A recurrence with a nonlinearity in it."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        state, states = torch.zeros_like(x[:, 0]), []
        for step in range(x.shape[1]):
            state = torch.tanh(self.decay * state + x[:, step])
            states.append(state)
        return torch.stack(states, 1)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.ffn, self.rnn = ShowsItsWeights(), NormInside(), Bent()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.attn(x)
        return self.rnn(self.ffn(x + y)), weights


def line_of(kind: type, text: str) -> int:
    source, start = inspect.getsourcelines(kind)
    return next(start + index for index, line in enumerate(source) if text in line)


@pytest.mark.parametrize(
    ("path", "kind", "what", "owner", "line"),
    [
        ("attn", "attention stopped by weights-escape", "softmax", ShowsItsWeights, "weights = (q"),
        ("ffn", "feedforward stopped by unsupported-op", "layer_norm", NormInside, "self.down(functional.layer_norm"),
    ],
)
def test_the_nearest_miss_names_rule_node_and_line(path: str, kind: str, what: str, owner: type, line: str) -> None:
    report = laconic.explain(Model(), torch.randn(2, 6, 8), why=path)
    text = "\n".join(report.near_misses)
    nearest = text[text.index("nearest miss") :]
    assert nearest.startswith(f"nearest miss: {kind}") and what in nearest.splitlines()[0]
    assert f"at {what}" in nearest
    assert f"{Path(__file__).name}:{line_of(owner, line)}: " in nearest and line in nearest
    assert text in str(report)


def test_a_site_that_no_pass_takes_says_why() -> None:
    report = laconic.explain(Model(), torch.randn(2, 6, 8), why="rnn")
    line = line_of(Bent, "torch.tanh(self.decay")
    assert report.near_misses[1].startswith("  found scan scan.0") and f"{Path(__file__).name}:{line}" in str(report)
    assert "left alone by scan: (nonlinear-state)" in report.near_misses[2]


def test_a_node_is_a_region_too() -> None:
    report = laconic.explain(Model(), torch.randn(2, 6, 8), why="softmax")
    assert "weights-escape" in report.near_misses[1]


def test_a_site_that_was_found_is_said() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(torch.relu(self.up(x)))

    report = laconic.explain(nn.Sequential(Plain()), torch.randn(2, 8), why="0")
    assert "found feedforward feedforward.0" in report.near_misses[1]
    assert report.near_misses[-1] == "  nothing else here came close to a pattern"


def test_an_unknown_region_is_an_error_that_names_the_closest() -> None:
    with pytest.raises(laconic.UserError, match=r"no module or node is called 'atn'; the closest is 'attn'"):
        laconic.explain(Model(), torch.randn(2, 6, 8), why="atn")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "model.py"
    target.write_text(
        "import torch\n\ndef make():\n"
        "    def f(q, k, v):\n        w = (q @ k.mT).softmax(-1)\n        return w @ v, w\n"
        "    return f, [torch.randn(2, 6, 8)] * 3\n"
    )
    assert main(["explain", f"{target}:make", "--why", "softmax"]) == 0
    assert "model.py:5: w = (q @ k.mT).softmax(-1)" in capsys.readouterr().out
    assert main(["explain", f"{target}:make", "--why", "sofmax"]) == 2
    assert "the closest is 'softmax'" in capsys.readouterr().err
