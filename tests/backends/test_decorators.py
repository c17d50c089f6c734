"""Decorators reach exactly the region they wrap: classes, functions and methods, nested or switched off inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import laconic
from tests.without_inductor import run_graphs_as_they_are

INT8 = laconic.quantize("int8", min_features=1, min_products=0)
OTHER = laconic.quantize("int8", min_features=2, min_products=0)
X = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def as_they_are(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch._dynamo.reset()
    run_graphs_as_they_are(monkeypatch)
    yield
    torch._dynamo.reset()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


def decorated(item: Any) -> type[Layer]:
    """A class of its own under a decorator; its forward is Layer's."""
    return item(type("Decorated", (Layer,), {}))


def rewritten(model: nn.Module, *passes: Any) -> dict[str, str]:
    """Module -> the pass that rewrote it, for everything rewritten; the result must stay close to eager."""
    run = torch.compile(model, backend="laconic", options={"passes": list(passes)})
    with torch.no_grad():
        torch.testing.assert_close(run(X), model(X), rtol=0.1, atol=0.05)
    report = laconic.report(run)
    modules = {site.id: site.module for site in report.sites}
    return {str(modules[row.site]): row.pass_name for row in report.rewrites if row.status == "applied"}


def test_a_class_alone() -> None:
    found = rewritten(nn.Sequential(Layer(), decorated(INT8)(), Layer(), nn.Linear(16, 16)))
    assert found == {"1.up": repr(INT8), "1.down": repr(INT8)}


def test_the_parent_of_a_decorated_class_stays_as_it_is() -> None:
    decorated(INT8)
    assert rewritten(Layer()) == {}


def test_an_own_forward_that_calls_its_parents() -> None:
    @INT8
    class Child(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x

    assert set(rewritten(nn.Sequential(Child(), Layer()))) == {"0.up", "0.down"}


def test_a_method_and_a_function() -> None:
    @INT8
    def head(layer: nn.Linear, x: Tensor) -> Tensor:
        return layer(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Linear(16, 16) for _ in range(3))

        @INT8
        def middle(self, x: Tensor) -> Tensor:
            return self.second(x)

        def forward(self, x: Tensor) -> Tensor:
            return head(self.third, self.middle(self.first(x)))

    assert set(rewritten(Model())) == {"second", "third"}


def around(inner: Callable[[], nn.Module], item: Any) -> nn.Module:
    """A layer and then a decorated one, in a module whose class is decorated with ``item``."""

    @item
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.inner = Layer(), inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.plain(x))

    return Outer()


def test_the_innermost_wins_over_the_outer_and_over_the_options() -> None:
    model = nn.Sequential(around(decorated(OTHER), INT8), Layer())
    within = {"0.plain.up": INT8, "0.plain.down": INT8, "0.inner.up": OTHER, "0.inner.down": OTHER}
    assert rewritten(model) == {name: repr(item) for name, item in within.items()}
    third = laconic.quantize("int8", min_features=3, min_products=0)
    within |= {"1.up": third, "1.down": third}
    assert rewritten(model, third) == {name: repr(item) for name, item in within.items()}


@pytest.mark.parametrize("name", ["quantize", None])
def test_switched_off_inside(name: str | None) -> None:
    off = laconic.disable(name)
    model = nn.Sequential(Layer(), decorated(off)())
    assert set(rewritten(model, INT8)) == {"0.up", "0.down"}
    run = torch.compile(model, backend="laconic", options={"passes": [INT8]})
    with torch.no_grad():
        run(X)
    disabled = [row for row in laconic.report(run).refusals if row.code == "disabled"]
    assert {row.pass_name for row in disabled} == {"quantize"} and repr(off) in disabled[0].text


def test_switched_off_outside_and_on_again_inside() -> None:
    assert set(rewritten(around(decorated(INT8), laconic.disable("quantize")), OTHER)) == {"inner.up", "inner.down"}


def test_a_region_that_no_graph_reaches_is_reported() -> None:
    @INT8
    class Hidden(Layer):
        @torch._dynamo.disable
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    class Never(Layer):
        pass

    INT8(Never)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.hidden = Layer(), Hidden()

        def forward(self, x: Tensor) -> Tensor:
            return self.hidden(self.seen(x))

    model = Model()
    run = torch.compile(model, backend="laconic")
    with torch.no_grad():
        torch.testing.assert_close(run(X), model(X))
    (row,) = [row for row in laconic.report(run).refusals if row.code == "region-not-reached"]
    assert row.pass_name == "quantize" and "Hidden" in row.text


def test_what_cannot_be_decorated() -> None:
    for target, text in ((Layer(), "not Layer"), (dict, "not the class dict"), (3, "not int")):
        with pytest.raises(laconic.UserError, match=text):
            INT8(target)  # type: ignore[type-var]


def test_a_decorated_module_is_itself_without_the_backend() -> None:
    model = decorated(INT8)()
    torch.testing.assert_close(model(X), Layer.forward(model, X))
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="eager")(X), model(X))
