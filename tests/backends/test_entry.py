"""The door: every way in, and a clear answer to every mistake."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import laconic
from laconic.backends.options import Options


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)).eval()


X = torch.linspace(-1, 1, 24).reshape(3, 8)


def error_of(run: Any, *args: Any) -> str:
    with pytest.raises(Exception) as caught:
        run(*args)
    return str(caught.value)


class TestWaysIn:
    def test_by_name_without_import(self) -> None:
        assert "laconic" in torch._dynamo.list_backends(None)

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"fullgraph": True},
            {"dynamic": True},
            {"dynamic": False},
            {"mode": "default"},
            {"mode": "max-autotune-no-cudagraphs"},
        ],
        ids=str,
    )
    def test_settings_of_torch_compile(self, settings: dict[str, Any]) -> None:
        model = small()
        torch.testing.assert_close(torch.compile(model, backend="laconic", **settings)(X), model(X))

    def test_object_and_options_and_function_and_submodule(self) -> None:
        model = small()
        expected = model(X)
        torch.testing.assert_close(torch.compile(model, backend=laconic.Backend())(X), expected)
        torch.testing.assert_close(torch.compile(model, backend="laconic", options={"verify": "always"})(X), expected)
        torch.testing.assert_close(torch.compile(lambda x: model(x) + 1, backend="laconic")(X), expected + 1)
        model[0].compile(backend="laconic")
        torch.testing.assert_close(model(X), expected)

    def test_gradients(self) -> None:
        model, x = small(), X.clone().requires_grad_()
        torch.compile(model, backend="laconic")(x).square().sum().backward()
        got = [x.grad.clone(), *(p.grad.clone() for p in model.parameters())]
        model.zero_grad()
        x.grad = None
        model(x).square().sum().backward()
        torch.testing.assert_close(got, [x.grad, *(p.grad for p in model.parameters())])

    def test_backends_are_frozen_equal_and_share_code(self) -> None:
        one, two = (laconic.Backend(error_budget=0.5, inductor={"max_autotune": False}) for _ in range(2))
        assert one == two and hash(one) == hash(two) and one != laconic.Backend()
        assert laconic.Backend(debug=True) == laconic.Backend()
        with pytest.raises(AttributeError):
            one.verify = "never"  # type: ignore[misc]
        model = small()
        counters = torch._dynamo.utils.counters["stats"]
        torch.compile(model, backend=one)(X)
        before = counters["unique_graphs"]
        torch.compile(model, backend=two)(X)
        assert counters["unique_graphs"] == before

    def test_inductor_options_pass_through_and_global_configuration_is_untouched(self) -> None:
        from torch._inductor import config

        seen = []

        class Spy(torch._inductor.custom_graph_pass.CustomGraphPass):
            def __call__(self, graph: Any) -> None:
                seen.append(config.max_fusion_size)

            def uuid(self) -> str:
                return "spy"

        with config.patch(post_grad_custom_pre_pass=Spy(), max_fusion_size=64, force_disable_caches=True):
            before = config.save_config_portable()
            torch.compile(small(), backend="laconic", options={"inductor": {"max_fusion_size": 7}})(X)
            assert config.save_config_portable() == before
        # The pass another tool had installed ran, under our patched option.
        assert seen == [7]


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "hint"),
        [
            ({"pases": []}, "did you mean 'passes'"),
            ({"passes": "int8"}, "list or tuple"),
            ({"passes": ["quantise"]}, "did you mean 'quantize'"),
            ({"passes": [laconic.quantize]}, "not called yet"),
            ({"passes": laconic.scan()}, "write ["),
            ({"passes": [3]}, "not 3"),
            ({"error_budget": "small"}, "must be a number"),
            ({"error_budget": -1}, "at least 0"),
            ({"error_budget": float("nan")}, "at least 0"),
            ({"verify": "frist"}, "did you mean 'first'"),
            ({"debug": 3}, "folder"),
            ({"fuel": -1}, "whole number"),
            ({"inductor": {"max_autotun": True}}, "did you mean 'max_autotune'"),
            ({"inductor": 3}, "must be a dict"),
            ({"max_autotune": True}, "under 'inductor'"),
        ],
        ids=str,
    )
    def test_options(self, options: dict[str, Any], hint: str) -> None:
        with pytest.raises(laconic.UserError, match="") as direct:
            Options.parse(options)
        assert hint in str(direct.value)
        # Dynamo wraps what a backend raises, and keeps its text.
        assert hint in error_of(torch.compile(small(), backend="laconic", options=options), X)

    def test_mode(self) -> None:
        assert "did you mean 'max-autotune'" in error_of(
            torch.compile(small(), backend="laconic", mode="max-autotun"), X
        )

    def test_backend_settings_are_checked_when_made(self) -> None:
        with pytest.raises(laconic.UserError, match="did you mean 'always'"):
            laconic.Backend(verify="allways")

    def test_policies_and_settings(self) -> None:
        with pytest.raises(ValueError, match="did you mean 'int8'"):
            laconic.quantize("int88")
        with pytest.raises(ValueError, match="needs a policy"):
            laconic.quantize()
        with pytest.raises(ValueError, match="did you mean 'easycache'"):
            laconic.cache("easy-cache")
        with pytest.raises(TypeError, match="did you mean 'threshold'"):
            laconic.cache("easycache", treshold=0.1)
        with pytest.raises(TypeError, match="must be a"):
            laconic.cache("easycache", threshold="high")
        with pytest.raises(ValueError, match="at least 0"):
            laconic.cache("easycache", threshold=-1.0)
        with pytest.raises(laconic.UserError, match="did you mean 'quantize'"):
            laconic.disable("quantise")

    def test_passes_are_values_and_print_as_the_call(self) -> None:
        one = laconic.cache("easycache", threshold=0.125)
        assert one == laconic.cache("easycache", threshold=0.125) != laconic.cache("easycache")
        assert hash(one) == hash(laconic.cache("easycache", threshold=0.125))
        assert repr(one) == "laconic.cache('easycache', threshold=0.125)"
        assert eval(repr(one)) == one

    def test_report_and_explain_of_something_else(self) -> None:
        with pytest.raises(laconic.UserError, match="backend='laconic'"):
            laconic.report(torch.compile(small(), backend="inductor"))
        with pytest.raises(laconic.UserError, match="backend='laconic'"):
            laconic.report(small())
        with pytest.raises(laconic.UserError, match="module, a function"):
            laconic.explain(3)

    def test_no_compiler_is_one_clear_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.which", lambda name: None)
        message = error_of(torch.compile(small(), backend="laconic"), X)
        assert "needs a C++ compiler on CPU" in message

    def test_old_torch_is_one_clear_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
        assert "laconic needs torch >= 2.11, found 2.9.1+cpu" in error_of(torch.compile(small(), backend="laconic"), X)


class TestAwkwardGraphs:
    """Whatever the graph, it runs; what is left alone has a reason."""

    def check(self, function: Any, *args: Any, **settings: Any) -> laconic.Report:
        # In-place functions change their arguments, so each run gets its own.
        def copies() -> list[Any]:
            return [value.clone() if isinstance(value, torch.Tensor) else value for value in args]

        first, second = copies(), copies()
        compiled = torch.compile(function, backend="laconic", **settings)
        torch.testing.assert_close(compiled(*first), function(*second), equal_nan=True)
        torch.testing.assert_close(first, second)
        return laconic.report(compiled)

    def test_in_place_and_views(self) -> None:
        def f(x: torch.Tensor) -> torch.Tensor:
            y = x.view(-1)
            y[2:5].mul_(2)
            x.add_(1)
            return x.t() @ x

        self.check(f, X)

    def test_zero_elements(self) -> None:
        self.check(lambda x: torch.softmax(x @ x.transpose(-1, -2), -1) @ x, torch.zeros(2, 0, 4))
        self.check(small(), torch.zeros(0, 8))

    def test_complex_and_integers(self) -> None:
        weight = torch.randn(4, 4, dtype=torch.complex64)
        report = self.check(lambda x: torch.nn.functional.linear(x, weight), torch.randn(3, 4, dtype=torch.complex64))
        assert report.graphs
        self.check(lambda x: (x * 2).cumsum(0), torch.arange(5))

    def test_dicts_none_and_nothing(self) -> None:
        self.check(lambda x: {"a": x + 1, "b": None, "c": [x, (x * 2,)]}, X)
        compiled = torch.compile(lambda x: None, backend="laconic")
        assert compiled(X) is None

    def test_python_numbers_and_dynamic_shapes(self) -> None:
        compiled = torch.compile(lambda x, n: (x * n).sum(0), backend="laconic", dynamic=True)
        for rows in (2, 3, 7):
            x = torch.randn(rows, 5)
            torch.testing.assert_close(compiled(x, rows), (x * rows).sum(0))

    def test_graph_breaks(self) -> None:
        def f(x: torch.Tensor) -> torch.Tensor:
            x = x + 1
            torch._dynamo.graph_break()
            return x * 2

        assert len(self.check(f, X).graphs) == 2

    def test_inference_mode(self) -> None:
        model = small()
        compiled = torch.compile(model, backend="laconic")
        with torch.inference_mode():
            torch.testing.assert_close(compiled(X), model(X))

    def test_an_exception_inside_a_pass_costs_only_that_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from laconic.passes.quantize import Int8

        def broken(self: Any, context: Any) -> Any:
            raise ZeroDivisionError("a bug in a pass")

        monkeypatch.setattr(Int8, "plan", broken)
        model = small()
        compiled = torch.compile(model, backend="laconic", options={"passes": [laconic.quantize("int8")]})
        with torch.no_grad():
            torch.testing.assert_close(compiled(X), model(X))
        (refusal,) = [row for row in laconic.report(compiled).refusals if row.code == "pass-failed"]
        assert refusal.pass_name == "quantize" and "a bug in a pass" in refusal.text

    def test_an_exception_in_detection_runs_the_original(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(graph: Any) -> Any:
            raise RuntimeError("a bug in detection")

        monkeypatch.setattr("laconic.backends.pipeline.detect", broken)
        report = self.check(small(), X)
        assert [row.code for row in report.refusals] == ["pass-failed"]
        assert report.graphs[0].nodes_before == report.graphs[0].nodes_after
