"""Other libraries' caches on the digits transformer, for ``benchmarks/cache.py``: what they need, and what they give.

Each peer runs eagerly on a copy of the model; the share of the network that ran is counted by its attentions. A peer
that is not installed or fails is reported with the reason. Nothing here is needed to use laconic.
"""

from __future__ import annotations

import contextlib
import copy
import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.models.timm_support import declare_torchvision_operators

# Both libraries import torchvision, whose wheel may come without its operators.
declare_torchvision_operators()

Sampler = Callable[[Any], Tensor]


def peers(model: nn.Module, sample: Sampler, steps: int) -> Iterator[dict[str, Any]]:
    """A row per peer and setting: ``name``, ``share`` of the uncached network and ``images``, or ``failed``.

    ``sample(network)`` draws the images with a network called as the model is.
    """
    rows: list[tuple[str, Callable[[nn.Module], Any]]] = []
    for threshold in (0.03, 0.05, 0.1, 0.15, 0.2, 0.3):
        rows.append((f"diffusers FirstBlockCache {threshold}", _first_block(threshold)))
    for interval in (2, 3, 4):
        for order in (1, 2):
            rows.append((f"diffusers TaylorSeer interval {interval} order {order}", _taylor(interval, order)))
    for threshold in (0.03, 0.06, 0.12, 0.24):
        rows.append((f"diffusers MagCache {threshold}", _mag(threshold, steps, sample)))
    for threshold in (0.04, 0.08, 0.12, 0.16, 0.24):
        for taylor in (False, True):
            name = f"cache-dit DBCache F1B0 {threshold}" + (" + TaylorSeer 1" if taylor else "")
            rows.append((name, _double_block(threshold, taylor, steps)))
    for name, enable in rows:
        torch.manual_seed(0)
        mine = _renamed(model)
        runs = _count_attentions(mine)
        try:
            run = enable(mine) or mine
            runs.clear()
            images = sample(run)
            yield {"name": name, "share": len(runs) / (steps * len(mine.blocks)), "images": images}
        except Exception as error:  # a peer's failure is a result
            text = f"{type(error).__name__}: {error}".split("\n")[0]
            yield {"name": name, "failed": text[:160]}


def _count_attentions(model: nn.Module) -> list[int]:
    runs: list[int] = []
    for block in model.blocks:
        block.attention.qkv.register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


def _renamed(model: nn.Module) -> nn.Module:
    """A copy whose blocks call their argument ``hidden_states``, the name diffusers' caches look for."""
    mine = copy.deepcopy(model)
    plain = type(model.blocks[0])

    class HiddenStatesBlock(plain):  # type: ignore[misc, valid-type]
        def forward(self, hidden_states: Tensor, condition: Tensor) -> Tensor:
            return super().forward(hidden_states, condition)

    for block in mine.blocks:
        block.__class__ = HiddenStatesBlock
    return mine


def _registered(model: nn.Module) -> None:
    """diffusers' block caches know classes by a list; without this they refuse the model."""
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    TransformerBlockRegistry.register(type(model.blocks[0]), TransformerBlockMetadata(return_hidden_states_index=0))


def _in_context(model: nn.Module) -> None:
    # Models of diffusers have ``cache_context`` for this.
    from diffusers.hooks.hooks import CacheContext, _set_cache_context

    _set_cache_context(model, CacheContext("cached"))


def _first_block(threshold: float) -> Callable[[nn.Module], Any]:
    def enable(model: nn.Module) -> None:
        from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

        _registered(model)
        apply_first_block_cache(model, FirstBlockCacheConfig(threshold=threshold))
        _in_context(model)

    return enable


def _taylor(interval: int, order: int) -> Callable[[nn.Module], Any]:
    def enable(model: nn.Module) -> None:
        from diffusers import TaylorSeerCacheConfig
        from diffusers.hooks import apply_taylorseer_cache

        # Its own list of names finds nothing here, without a warning; these are the layers the paper caches.
        config = TaylorSeerCacheConfig(
            cache_interval=interval,
            disable_cache_before_step=3,
            max_order=order,
            taylor_factors_dtype=torch.float32,
            cache_identifiers=[r"blocks\.\d+\.attention", r"blocks\.\d+\.feed_forward"],
        )
        apply_taylorseer_cache(model, config)
        _in_context(model)

    return enable


def _mag(threshold: float, steps: int, sample: Sampler) -> Callable[[nn.Module], Any]:
    def enable(model: nn.Module) -> None:
        from diffusers.hooks import MagCacheConfig, apply_mag_cache

        _registered(model)
        # Its calibration prints the numbers instead of returning them.
        printed = io.StringIO()
        calibrated = copy.deepcopy(model)
        with contextlib.redirect_stdout(printed):
            apply_mag_cache(calibrated, MagCacheConfig(num_inference_steps=steps, calibrate=True))
            _in_context(calibrated)
            sample(calibrated)
        found = re.search(r"\[([-\d., \sena]+)\]", printed.getvalue())
        if found is None:
            raise RuntimeError("the calibration printed no ratios")
        ratios = [float(value) for value in found.group(1).split(",")]
        config = MagCacheConfig(threshold=threshold, num_inference_steps=steps, mag_ratios=ratios)
        apply_mag_cache(model, config)
        _in_context(model)

    return enable


def _double_block(threshold: float, taylor: bool, steps: int) -> Callable[[nn.Module], Any]:
    def enable(model: nn.Module) -> Any:
        import cache_dit

        adapter = cache_dit.BlockAdapter(
            transformer=model,
            blocks=model.blocks,
            forward_pattern=cache_dit.ForwardPattern.Pattern_3,
            check_forward_pattern=False,
        )
        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            residual_diff_threshold=threshold,
            max_warmup_steps=4,
            num_inference_steps=steps,
        )
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if taylor else None
        cache_dit.enable_cache(adapter, cache_config=config, calibrator_config=calibrator)

    return enable
