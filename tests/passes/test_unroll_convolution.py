"""Short depthwise convolutions as shifted products: equal to the convolution, and no other convolution is touched."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import laconic
from laconic.passes.apply import apply
from laconic.passes.base import PlanContext
from laconic.passes.unroll_convolution import Depthwise, Shifted, by_tap
from laconic.patterns.detect import detect
from laconic.patterns.sites import Convolution
from tests.patterns.graphs import normal


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize(("padding", "dilation"), [(3, 1), (0, 1), (4, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_equal_to_the_convolution(length: int, padding: int, dilation: int, dtype: torch.dtype, biased: bool) -> None:
    torch.manual_seed(0)
    taps = 1 if padding == 0 else 3
    x, weight = torch.randn(2, 6, length).to(dtype), torch.randn(6, 1, taps).to(dtype)
    bias = torch.randn(6).to(dtype) if biased else None
    operands = [x, *([] if bias is None else [bias])]
    got = Shifted(taps, padding, dilation, biased, by_tap=False)(*operands, weight)
    assert torch.equal(got, Shifted(taps, padding, dilation, biased, by_tap=True)(*operands, *by_tap(weight)))
    want = F.conv1d(x.double(), weight.double(), None if bias is None else bias.double(), 1, padding, dilation, 6)
    assert got.dtype == dtype
    torch.testing.assert_close(got, want.to(dtype))


def planned(function, *inputs: Tensor, taps: int = 8) -> int:
    """How many rewrites are applied, each held to the original's result."""
    graph = normal(function, *inputs)
    sites = detect(graph)
    policy = Depthwise(taps)
    plan = policy.plan(PlanContext(graph, sites, sites.of(Convolution)))
    outcome = apply(graph, plan.rewrites)
    assert not outcome.refused
    for got, want in zip(outcome.graph.module(*inputs), graph.module(*inputs), strict=True):
        torch.testing.assert_close(got, want)
        assert got.stride() == want.stride()
    return len(outcome.applied)


def test_only_short_depthwise_convolutions_along_one_axis() -> None:
    x, image, weight = torch.randn(2, 6, 9), torch.randn(2, 6, 9, 9), torch.randn(6, 1, 4)
    assert planned(lambda x, w: (F.conv1d(x, w, padding=3, groups=6)[..., :9],), x, weight) == 1
    assert planned(lambda x, w: (F.conv1d(x, w, padding=3, groups=6)[..., :9],), x, weight, taps=3) == 0
    assert planned(lambda x, w: (F.conv1d(x, w, padding=3, groups=6)[..., :9],), x, weight, taps=0) == 0
    assert planned(lambda x, w: (F.conv1d(x, w, padding=3, stride=2, groups=6),), x, weight) == 0
    assert planned(lambda x, w: (F.conv1d(x, w, padding="same", groups=6),), x, weight) == 0
    assert planned(lambda x, w: (F.conv1d(x, w, groups=3),), x, torch.randn(6, 2, 4)) == 0
    assert planned(lambda x, w: (F.conv1d(x, w, groups=6),), x, torch.randn(12, 1, 4)) == 0
    assert planned(lambda x, w: (F.conv2d(x, w, groups=6),), image, torch.randn(6, 1, 3, 3)) == 0
    assert planned(lambda x, w: (F.conv_transpose1d(x, w, groups=6),), x, weight) == 0


def test_settings_are_checked() -> None:
    with pytest.raises(TypeError, match="taps"):
        laconic.unroll_convolution(taps=1.5)
    with pytest.raises(ValueError, match="taps"):
        laconic.unroll_convolution(taps=-1)
    with pytest.raises(TypeError, match="did you mean 'taps'"):
        laconic.unroll_convolution(tap=1)


def test_by_default_with_gradients_through_torch_compile() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv1d(6, 6, 4, groups=6, padding=3)
    x = torch.randn(2, 6, 9, requires_grad=True)
    expected = layer(x)[..., :9].sin().square().sum()
    wanted = torch.autograd.grad(expected, [x, *layer.parameters()])
    fast = torch.compile(layer, backend="laconic")
    got = torch.autograd.grad(fast(x)[..., :9].sin().square().sum(), [x, *layer.parameters()])
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert [row.op for row in laconic.report(fast).rewrites] == ["shifted products"]


def test_a_changed_weight_is_seen() -> None:
    layer = torch.nn.Conv1d(6, 6, 4, groups=6, padding=3)
    x = torch.randn(2, 6, 9)
    fast = torch.compile(layer, backend="laconic")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), layer(x))
        layer.weight.mul_(2)
        torch.testing.assert_close(fast(x), layer(x))
    assert [row.op for row in laconic.report(fast).rewrites] == ["shifted products"]
