"""Every cache policy on real models: no break, no recompile, exact when off, trajectories apart from each other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import laconic
from laconic.backends import entry, runner
from laconic.passes.measure import relative_l2

from .builders import BUILDERS, Built

STEPS = 8


def ltx(layers: int = 2) -> Built:
    """A video transformer: the latent comes as tokens of 2 x 3 x 3 patches."""
    from diffusers import LTXVideoTransformer3DModel

    torch.manual_seed(0)
    model = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=layers,
        caption_channels=24,
    )
    kwargs = {
        "hidden_states": torch.randn(2, 18, 4),
        "encoder_hidden_states": torch.randn(2, 5, 24),
        "timestep": torch.tensor([3, 7]),
        "encoder_attention_mask": torch.ones(2, 5, dtype=torch.int64),
        "num_frames": 2,
        "height": 3,
        "width": 3,
        "return_dict": False,
    }
    return model.eval(), (), kwargs


def digits(layers: int = 3) -> Built:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
    from digits_dit import DigitsDiT, Settings, noise_and_labels

    torch.manual_seed(0)
    model = DigitsDiT(Settings(width=48, depth=layers, heads=4)).eval()
    for layer in (model.condition, model.head_modulation, model.head):
        nn.init.normal_(layer.weight, std=0.05)
    noise, labels = noise_and_labels(2)
    return model, (noise, torch.full((2,), 0.3), labels), {}


MODELS: dict[str, Callable[[], Built]] = {
    "flux": lambda: BUILDERS["flux"](2),
    "dit": lambda: BUILDERS["dit"](2),
    "sd3": lambda: BUILDERS["sd3"](4),
    "ltx": ltx,
    "unet": lambda: BUILDERS["unet"](1),
    "custom": digits,
}

WHOLE = ("easycache", {"threshold": 0.3, "warmup": 2}, {"threshold": 0})
POLICIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "easycache": WHOLE,
    "taylor-network": ("taylor", {"interval": 2, "repay": 0.5}, {"interval": 1}),
    "taylor-blocks": ("taylor", {"interval": 3, "level": "blocks"}, {"interval": 1, "level": "blocks"}),
    "taylor-layers": ("taylor", {"interval": 2, "level": "layers"}, {"interval": 1, "level": "layers"}),
    "first-block": ("first-block", {"threshold": 0.9, "warmup": 1}, {"threshold": 0}),
    "delta-dit": ("delta-dit", {"interval": 2, "blocks": 2}, {"interval": 1, "blocks": 2}),
    "sada": ("sada", {"start": 3, "multistep": 4, "period": 2, "stop": 7}, {"max_interval": 0}),
    "static": ("static", {"table": [1, 1, 0, 1, 0, 0, 1, 1], "order": 1}, {"table": [1] * STEPS}),
}
# A UNet of this size repeats no block, so what needs blocks is refused there.
NEED_BLOCKS = ("taylor-blocks", "taylor-layers", "first-block", "delta-dit")
NO_BLOCKS = {("unet", name) for name in NEED_BLOCKS}


@pytest.fixture
def compiled_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Pieces run as they are instead of through Inductor; the list grows by one for each that is compiled."""
    torch._dynamo.reset()
    count: list[int] = []

    def compile_graph(module: torch.fx.GraphModule, inputs: Any, options: Any) -> Callable[..., Any]:
        count.append(len(count))
        return module

    monkeypatch.setattr(runner, "compile_graph", compile_graph)
    monkeypatch.setattr(entry, "compile_graph", compile_graph)
    yield count
    torch._dynamo.reset()


def sampler(built: Built) -> tuple[str | int, Tensor]:
    """Where the latent is among the arguments, and the latent."""
    _, args, kwargs = built
    return (0, args[0]) if args else ("hidden_states", kwargs["hidden_states"])


@torch.no_grad()
def trajectory(model: Any, built: Built, seed: int = 0) -> Tensor:
    """A few steps of a sampler that adds a tenth of the output; the time moves with the steps."""
    _, args, kwargs = built
    place, x = sampler(built)
    x = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    for step in range(STEPS):
        now = dict(kwargs)
        rest = list(args[1:])
        if "timestep" in now:
            now["timestep"] = now["timestep"] + step
        elif rest:
            rest[0] = rest[0] + (0.01 * step * step if rest[0].is_floating_point() else step)
        if place == 0:
            out = model(x, *rest, **now)
        else:
            now["hidden_states"] = x
            out = model(**now)
        y = out if isinstance(out, Tensor) else out[0]
        y = y[:, : x.shape[1]] if y.shape != x.shape else y
        x = x + 0.1 * y
    return x


def compile_with(model: nn.Module, policy: str, settings: dict[str, Any]) -> Any:
    options = {"passes": [laconic.cache(policy, **settings)]}
    return torch.compile(model, backend="laconic", options=options, fullgraph=True)


@pytest.mark.parametrize("name", list(MODELS))
def test_every_policy(name: str, compiled_pieces: list[int]) -> None:
    built = MODELS[name]()
    model = built[0].requires_grad_(False)
    plain = trajectory(model, built)
    for label, (policy, settings, identity) in POLICIES.items():
        if (name, label) in NO_BLOCKS and label != "delta-dit":
            continue  # one refusal is like the other
        torch._dynamo.reset()
        fast = compile_with(model, policy, settings)
        # Outside a session the pieces run without a policy.
        exact = trajectory(fast, built)
        assert relative_l2(exact, plain) < 1e-5, label
        compiles, ends = len(compiled_pieces), []
        with torch._dynamo.config.patch(error_on_recompile=True):
            for seed in (0, 1, 0):
                with laconic.session(fast, steps=STEPS) as session:
                    ends.append(trajectory(fast, built, seed))
        assert len(compiled_pieces) == compiles, label
        assert torch.equal(ends[0], ends[2]) and not torch.equal(ends[0], ends[1]), label
        if (name, label) in NO_BLOCKS:
            codes = {row.code for row in laconic.report(fast).refusals if row.pass_name == "cache"}
            assert codes == {"no-site"} and torch.equal(ends[0], exact), (label, codes)
            continue
        assert session.summary().reused > 0, label
        assert 0 < relative_l2(ends[0], plain) < 0.1, label
        if label in ("taylor-blocks", "static"):  # one at each level; the others' are in the policies' own tests
            torch._dynamo.reset()
            off = compile_with(model, policy, identity)
            with laconic.session(off, steps=STEPS):
                assert torch.equal(trajectory(off, built), exact), label


def test_forecasts_over_the_models_own_time(compiled_pieces: list[int]) -> None:
    built = digits()
    model = built[0].requires_grad_(False)
    fast = compile_with(model, "taylor", {"interval": 3, "time": "t"})
    with laconic.session(fast, steps=STEPS) as session:
        over_time = trajectory(fast, built)
    assert session.summary().reused > 0
    torch._dynamo.reset()
    plain = compile_with(model, "taylor", {"interval": 3})
    with laconic.session(plain, steps=STEPS):
        # The time of this trajectory grows ever faster, so steps and times give different lines.
        assert not torch.equal(trajectory(plain, built), over_time)
    torch._dynamo.reset()
    wrong = compile_with(model, "taylor", {"time": "time"})
    with laconic.session(wrong, steps=STEPS):
        trajectory(wrong, built)
    texts = [row.text for row in laconic.report(wrong).refusals if row.pass_name == "cache"]
    assert texts == ["no tensor argument is named 'time'; there are x, t, label"]
