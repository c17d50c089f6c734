"""explain looks without touching; report belongs to the right object; debug files run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import laconic


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(-2, -1) * 8**-0.5, -1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2))
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x)
        for layer in self.layers:
            x = x + layer(torch.nn.functional.dropout(x, 0.5, self.training))
        return self.norm(x)


def example() -> tuple[Model, torch.Tensor]:
    torch.manual_seed(0)
    return Model(), torch.randn(2, 5, 16)


def test_explain_finds_sites_with_their_modules() -> None:
    model, x = example()
    report = laconic.explain(model.eval(), x)
    kinds = [site.kind for site in report.sites]
    assert kinds.count("attention") == 1 and kinds.count("feedforward") == 2
    (attention,) = [site for site in report.sites if site.kind == "attention"]
    assert attention.module == "attention" and "test_explain.py:" in attention.source
    paths = dict(model.named_modules())
    assert {site.module for site in report.sites if isinstance(site.module, str)} <= set(paths)
    modules = {site.module for site in report.sites if site.kind == "linear"}
    assert {"attention.qkv", "attention.out", "layers.0.0", "layers.1.2"} <= modules
    assert attention.flops_value and attention.bytes_value
    assert "attention" in str(report) and "2 feedforward" in str(report)


def test_explain_changes_nothing() -> None:
    model, x = example()
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    laconic.explain(model, x)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert not torch._dynamo.eval_frame._debug_get_cache_entry_list(Model.forward.__code__)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_explaining_two_sizes_does_not_make_the_next_compile_dynamic() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ x.T, -1) @ x

    laconic.explain(function, torch.randn(5, 4))
    laconic.explain(function, torch.randn(9, 4))
    seen: list[list[type]] = []

    def spy(module: torch.fx.GraphModule, inputs: list[object]) -> object:
        seen.append([type(value) for value in inputs])
        return module.forward

    torch.compile(function, backend=spy)(torch.randn(7, 4))
    assert seen == [[torch.Tensor]]


def test_explain_takes_functions_compiled_objects_and_keywords() -> None:
    def function(x: torch.Tensor, *, scale: float) -> torch.Tensor:
        return torch.softmax(x, -1) * scale

    assert len(laconic.explain(function, torch.randn(3), scale=2.0).graphs) == 1
    assert len(laconic.explain(lambda: torch.ones(3).exp()).graphs) == 1
    model, x = example()
    compiled = torch.compile(model, backend="laconic")
    assert laconic.explain(compiled, x).sites
    assert not laconic.report(compiled).graphs, "explaining is not compiling"


def test_explain_of_a_model_with_a_graph_break_says_so() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x + 1

    report = laconic.explain(broken, torch.randn(3))
    assert report.refusals[0].code == "not-normalised"

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.first(x))
            torch._dynamo.graph_break()
            return self.second(x)

    model = Broken().train()
    before, state = model.norm.running_mean.clone(), torch.random.get_rng_state()
    report = laconic.explain(model, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    assert [site.module for site in report.sites if site.kind == "linear"] == ["first", "second"]
    assert len(report.graphs) == 2
    assert torch.equal(model.norm.running_mean, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    # An invalidated entry stays in the list without its backend, and never matches again.
    entries = torch._dynamo.eval_frame._debug_get_cache_entry_list(Broken.forward.__code__)
    assert all(entry.backend is None for entry in entries)


def test_why_names_what_is_there() -> None:
    model, x = example()
    text = str(laconic.explain(model.eval(), x, why="attention"))
    assert "why attention:" in text and "found attention" in text


def test_report_belongs_to_its_object() -> None:
    model, x = example()
    other = nn.Sequential(nn.Linear(16, 16))
    first, second = torch.compile(model.eval(), backend="laconic"), torch.compile(other, backend="laconic")
    assert str(laconic.report(first)) == "laconic: nothing compiled yet"
    with torch.no_grad():
        first(x), second(x)
    assert [site.kind for site in laconic.report(second).sites] == ["linear"]
    assert len(laconic.report(first).graphs) == 1
    # Another instance of the class shares the compiled code, and so the report.
    twin = torch.compile(Model().eval(), backend="laconic")
    with torch.no_grad():
        twin(x)
    assert laconic.report(twin).to_dict()["graphs"] == laconic.report(first).to_dict()["graphs"]


def test_report_schema() -> None:
    model, x = example()
    data = laconic.explain(model.eval(), x).to_dict()
    assert data["schema"] == "laconic.report/1"
    assert {"schema", "torch", "device", "graphs"} <= set(data)
    graph = data["graphs"][0]
    assert {"id", "nodes_before", "nodes_after", "sites", "rewrites", "refusals"} <= set(graph)
    for site in graph["sites"]:
        assert {"id", "kind", "module", "source", "form", "fields", "flops", "bytes"} <= set(site)
    assert len({site["id"] for site in graph["sites"]}) == len(graph["sites"])
    json.dumps(data)


@pytest.mark.parametrize("way", ["option", "environment"])
def test_debug_folder_holds_runnable_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    model, x = example()
    folder = tmp_path / "out"
    options = {}
    if way == "option":
        monkeypatch.setenv("LACONIC_DEBUG", str(tmp_path / "not-here"))
        options = {"debug": str(folder)}
    else:
        monkeypatch.setenv("LACONIC_DEBUG", str(folder))
    with torch.no_grad():
        torch.compile(model.eval(), backend="laconic", options=options)(x)
    assert not (tmp_path / "not-here").exists()
    files = sorted(folder.rglob("*.py"))
    assert [file.name for file in files][:2] == ["00-dynamo.py", "01-normal.py"]
    assert json.loads((folder / "report.json").read_text())["graphs"]
    assert "attention" in (folder / "report.txt").read_text()
    for file in files:
        done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0 and "(2, 5, 16)" in done.stdout, done.stderr[-800:]


def test_logging_through_torch_logs() -> None:
    code = (
        "import torch, laconic.backends.pipeline as p; p.detect = lambda graph: 1 / 0;"
        "torch.compile(lambda x: x + 1, backend='laconic')(torch.ones(3))"
    )
    import os

    environment = {**os.environ, "TORCH_LOGS": "+laconic"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-800:]
    assert "ZeroDivisionError" in done.stderr
