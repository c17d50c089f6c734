"""Other libraries' caches, for ``benchmarks/cache.py``: what they need to run, and how they are started afresh.

Each works on a copy of the model. A peer that is not installed or fails is reported with the reason. Nothing here is
needed to use laconic.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from cache_setups import CALIBRATION, Setup
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Peer:
    """``model`` with the cache on; ``reset()`` before each trajectory, where the library does not do so itself."""

    model: nn.Module
    reset: Callable[[], Any]


@dataclass(frozen=True)
class Choice:
    """A library's cache at one setting.

    ``timed`` ones are compiled and timed too, ``few`` ones are run where each row takes long.
    """

    name: str
    make: Callable[[Setup], Peer]
    timed: bool = False
    few: bool = False


def choices(setup: Setup) -> Iterator[Choice]:
    """Every peer with the settings its curve is drawn from."""
    for threshold in (0.03, 0.05, 0.1, 0.15, 0.2, 0.3):
        yield Choice(
            f"diffusers FirstBlockCache {threshold}", _first_block(threshold), threshold == 0.1, threshold in (0.1, 0.2)
        )
    for interval in (2, 3, 4):
        for order in (1, 2):
            name = f"diffusers TaylorSeer interval {interval} order {order}"
            yield Choice(name, _taylor(interval, order), (interval, order) == (2, 1), order == 1)
        # Its mode that forecasts the network's output needs the last layer to have a certain name.
        if hasattr(setup.model, "proj_out"):
            name = f"diffusers TaylorSeer lite, interval {interval} order 1"
            yield Choice(name, _taylor(interval, 1, lite=True), few=True)
    for threshold in (0.03, 0.06, 0.12, 0.24):
        yield Choice(f"diffusers MagCache {threshold}", _mag(threshold), threshold == 0.06, threshold in (0.06, 0.24))
    for threshold in (0.04, 0.08, 0.12, 0.16, 0.24):
        for taylor in (False, True):
            name = f"cache-dit DBCache F1B0 {threshold}" + (" + TaylorSeer 1" if taylor else "")
            yield Choice(name, _double_block(threshold, taylor), threshold == 0.08, threshold == 0.16)


def _stacks(model: nn.Module) -> list[nn.ModuleList]:
    names = ("transformer_blocks", "single_transformer_blocks", "blocks")
    return [getattr(model, name) for name in names if hasattr(model, name)]


def _prepared(setup: Setup) -> nn.Module:
    """A copy of the model as diffusers' block caches want it: they know classes by a list and arguments by name."""
    mine = copy.deepcopy(setup.model)
    if hasattr(mine, "blocks"):
        plain = type(mine.blocks[0])

        class HiddenStatesBlock(plain):  # type: ignore[misc, valid-type]
            def forward(self, hidden_states: Tensor, condition: Tensor) -> Tensor:
                return super().forward(hidden_states, condition)

        for block in mine.blocks:
            block.__class__ = HiddenStatesBlock
    return mine


def _registered(model: nn.Module) -> None:
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    for blocks in _stacks(model):
        try:
            TransformerBlockRegistry.get(type(blocks[0]))
        except ValueError:
            metadata = TransformerBlockMetadata(return_hidden_states_index=0)
            TransformerBlockRegistry.register(type(blocks[0]), metadata)


def _hooked(model: nn.Module) -> Peer:
    from diffusers.hooks.hooks import CacheContext, HookRegistry, _set_cache_context

    registry = HookRegistry.check_if_exists_or_initialize(model)

    def reset() -> None:
        registry.reset_stateful_hooks()
        # Models of diffusers have ``cache_context`` for this.
        _set_cache_context(model, CacheContext("cached"))

    reset()
    return Peer(model, reset)


def _first_block(threshold: float) -> Callable[[Setup], Peer]:
    def make(setup: Setup) -> Peer:
        from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

        model = _prepared(setup)
        _registered(model)
        apply_first_block_cache(model, FirstBlockCacheConfig(threshold=threshold))
        return _hooked(model)

    return make


def _taylor(interval: int, order: int, lite: bool = False) -> Callable[[Setup], Peer]:
    def make(setup: Setup) -> Peer:
        from diffusers import TaylorSeerCacheConfig
        from diffusers.hooks import apply_taylorseer_cache

        model = _prepared(setup)
        # Its own list of names finds nothing in these models, or attentions only; these are what the paper caches.
        layers = [
            r".*blocks\.\d+\.(attention|attn|attn1|attn2)",
            r".*blocks\.\d+\.(feed_forward|ff|ff_context|proj_mlp|proj_out)",
        ]
        config = TaylorSeerCacheConfig(
            cache_interval=interval,
            disable_cache_before_step=3,
            max_order=order,
            taylor_factors_dtype=torch.float32,
            cache_identifiers=None if lite else layers,
            use_lite_mode=lite,
        )
        apply_taylorseer_cache(model, config)
        return _hooked(model)

    return make


def _mag(threshold: float) -> Callable[[Setup], Peer]:
    def make(setup: Setup) -> Peer:
        from diffusers.hooks import MagCacheConfig, apply_mag_cache

        model = _prepared(setup)
        _registered(model)
        calibrated = copy.deepcopy(model)
        # Its calibration prints the numbers instead of returning them.
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            apply_mag_cache(calibrated, MagCacheConfig(num_inference_steps=setup.steps, calibrate=True))
            _hooked(calibrated)
            setup.samples(calibrated, CALIBRATION[:1])
        found = re.search(r"\[([-\d., \sena]+)\]", printed.getvalue())
        if found is None:
            raise RuntimeError("the calibration printed no ratios")
        ratios = [float(value) for value in found.group(1).split(",")]
        config = MagCacheConfig(threshold=threshold, num_inference_steps=setup.steps, mag_ratios=ratios)
        apply_mag_cache(model, config)
        return _hooked(model)

    return make


def _double_block(threshold: float, taylor: bool) -> Callable[[Setup], Peer]:
    def make(setup: Setup) -> Peer:
        import cache_dit

        # It says what it does on every trajectory.
        logging.disable(logging.WARNING)
        model = _prepared(setup)
        pattern = cache_dit.ForwardPattern
        stacks = _stacks(model)
        adapter = cache_dit.BlockAdapter(
            transformer=model,
            blocks=stacks if len(stacks) > 1 else stacks[0],
            forward_pattern=[pattern.Pattern_1] * 2 if len(stacks) > 1 else pattern.Pattern_3,
            check_forward_pattern=False,
        )
        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            residual_diff_threshold=threshold,
            max_warmup_steps=4,
            num_inference_steps=setup.steps,
        )
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if taylor else None
        cache_dit.enable_cache(adapter, cache_config=config, calibrator_config=calibrator)
        return Peer(model, lambda: cache_dit.refresh_context(model, num_inference_steps=setup.steps))

    return make
