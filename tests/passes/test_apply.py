"""The applier: what fits is spliced into a clone, what does not is refused, and the original is never touched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from laconic.passes.apply import apply
from laconic.passes.measure import measure, relative_l2
from laconic.passes.plan import Fidelity, Prepared, Rewrite
from laconic.patterns.graph import NormalGraph
from laconic.patterns.reasons import Reason
from laconic.patterns.sites import Site


def normal_graph(function: Callable[..., Any], *args: Tensor) -> NormalGraph:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(value) for value in args]
    with mode:
        module = make_fx(function, pre_dispatch=True, tracing_mode="real")(*fakes)
    return NormalGraph(module, module, mode, grad_enabled=False)


def rewrite_of(
    graph: NormalGraph, inputs: list[str], output: str, replacement: Callable[..., Any], **extra: Any
) -> Rewrite:
    named = {node.name: node for node in graph.module.graph.nodes}
    outputs = tuple(named[name] for name in output.split())
    sources = tuple(named[name] for name in inputs)
    interior, stack = set(outputs), list(outputs)
    while stack:
        for operand in stack.pop().all_input_nodes:
            if operand not in sources and operand not in interior and operand.op != "placeholder":
                interior.add(operand)
                stack.append(operand)
    site = Site(id="site.0", inputs=sources, outputs=outputs, interior=frozenset(interior))
    settings = {"op": "test::op", "fidelity": Fidelity.EXACT, **extra}
    return Rewrite(site=site, inputs=sources, outputs=outputs, replacement=replacement, **settings)


X, W = torch.randn(3, 4), torch.randn(4, 4)


def chain(x: Tensor, w: Tensor) -> Tensor:
    return (x @ w).relu().exp()


def test_a_rewrite_is_spliced_into_a_clone() -> None:
    graph = normal_graph(chain, X, W)
    before = graph.module.code
    outcome = apply(graph, [rewrite_of(graph, ["x_1", "w_1"], "relu", lambda x, w: torch.clamp(x @ w, min=0))])
    assert not outcome.refused and len(outcome.applied) == 1
    assert graph.module.code == before
    targets = [node.target for node in outcome.graph.module.graph.nodes if node.op == "call_function"]
    assert torch.ops.aten.clamp.default in targets and torch.ops.aten.relu.default not in targets
    torch.testing.assert_close(outcome.graph.module(X, W), chain(X, W))
    for node in outcome.graph.module.graph.nodes:
        assert node.op == "output" or "val" in node.meta


@pytest.mark.parametrize(
    ("replacement", "text"),
    [
        (lambda x, w: (x @ w)[:2], "shape"),
        (lambda x, w: (x @ w).double(), "float64"),
        (lambda x, w: (x @ w, x), "2 values"),
        (lambda x, w: 1 / 0, "ZeroDivisionError"),
    ],
    ids=["shape", "dtype", "count", "raises"],
)
def test_what_does_not_fit_is_refused(replacement: Callable[..., Any], text: str) -> None:
    graph = normal_graph(chain, X, W)
    outcome = apply(graph, [rewrite_of(graph, ["x_1", "w_1"], "relu", replacement)])
    assert outcome.graph is graph and not outcome.applied
    ((_, reason),) = outcome.refused
    assert reason.code == "rolled-back" and text in reason.text


def test_overlapping_rewrites_take_the_first() -> None:
    graph = normal_graph(chain, X, W)
    first = rewrite_of(graph, ["x_1", "w_1"], "relu", lambda x, w: torch.relu(x @ w))
    second = rewrite_of(graph, ["matmul"], "exp", lambda y: y.relu().exp())
    outcome = apply(graph, [first, second])
    assert outcome.applied == [first]
    assert [(rewrite, reason.code) for rewrite, reason in outcome.refused] == [(second, "overlap")]


def test_memory_layout_is_kept() -> None:
    def attention_like(x: Tensor) -> Tensor:
        return x.transpose(0, 1).exp().transpose(0, 1).view(-1)

    graph = normal_graph(attention_like, X)
    outcome = apply(graph, [rewrite_of(graph, ["transpose"], "exp", lambda y: y.contiguous().exp())])
    assert outcome.applied
    # The view after it was written for the original strides.
    torch.testing.assert_close(outcome.graph.module(X), attention_like(X))


def test_several_outputs_and_the_order_of_operands() -> None:
    def two(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.sin(), x.cos()
        return a @ w, b @ w

    graph = normal_graph(two, X, W)
    outcome = apply(graph, [rewrite_of(graph, ["x_1"], "sin cos", lambda x: (x.sin() * 1, x.cos() * 1))])
    assert outcome.applied
    torch.testing.assert_close(outcome.graph.module(X, W), two(X, W))


def test_prepared_inputs_become_shared_placeholders_and_survive_a_second_round() -> None:
    def twice(x: Tensor, w: Tensor) -> Tensor:
        return (x @ w).relu() @ w

    def derive(w: Tensor) -> tuple[Tensor, ...]:
        return (w.half(), w.sum(0))

    graph = normal_graph(twice, X, W)
    weight = graph.placeholders[1]
    prepared = (Prepared(weight, "half", derive),)
    replace = functools.partial(lambda x, half, total: x @ half.float())
    rewrites = [
        rewrite_of(graph, ["x_1"], "matmul", replace, prepared=prepared),
        rewrite_of(graph, ["relu"], "matmul_1", replace, prepared=prepared),
    ]
    outcome = apply(graph, rewrites)
    assert len(outcome.applied) == 2
    assert len(outcome.graph.placeholders) == 4
    again = apply(
        outcome.graph, [rewrite_of(outcome.graph, [outcome.graph.placeholders[0].name], "matmul_2", lambda x: x @ W)]
    )
    facts = (again.graph if again.applied else outcome.graph).facts["prepared"]
    assert len(facts) == 1
    got = outcome.graph.module(X, W, *derive(W))
    torch.testing.assert_close(got, twice(X, W.half().float()), rtol=1e-3, atol=1e-3)


def test_measured_error_is_that_of_each_site_alone() -> None:
    graph = normal_graph(chain, X, W)
    exact = rewrite_of(graph, ["matmul"], "relu", torch.relu)
    rough = rewrite_of(graph, ["relu"], "exp", lambda y: y.exp() * 1.01)
    raises = rewrite_of(graph, ["relu"], "exp", lambda y: y.nonsense())
    errors = measure(graph, [X, W], [exact, rough, raises])
    assert errors[exact] == 0
    assert errors[rough] == pytest.approx(0.01, rel=1e-4)
    assert isinstance(errors[raises], Reason) and errors[raises].code == "no-sample"
    fake = measure(graph, [node.meta["val"] for node in graph.placeholders], [exact])
    assert fake[exact].code == "no-sample"


def test_measuring_changes_neither_inputs_nor_randomness() -> None:
    def noisy(x: Tensor) -> Tensor:
        x.add_(1)
        return (x + torch.rand_like(x)).exp()

    graph = normal_graph(noisy, X.clone())
    x, state = X.clone(), torch.random.get_rng_state()
    output = next(node.name for node in graph.module.graph.nodes if node.name.startswith("exp"))
    source = next(iter(graph.module.graph.nodes)).name
    measure(graph, [x], [rewrite_of(graph, [source], output, lambda x: x)])
    assert torch.equal(x, X) and torch.equal(torch.random.get_rng_state(), state)


def test_relative_l2() -> None:
    assert relative_l2(torch.ones(4), torch.ones(4)) == 0
    assert relative_l2(torch.zeros(0), torch.zeros(0)) == 0
    assert relative_l2(torch.ones(1), torch.zeros(1)) == 1
    nan = relative_l2(torch.tensor([float("nan")]), torch.ones(1))
    assert nan != nan
