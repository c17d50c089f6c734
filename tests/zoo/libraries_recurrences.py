"""Rows of fla's reference recurrences: plain PyTorch that its Triton kernels are tested against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .table import Row, Value, given, looked_up, real


class Called(nn.Module):
    """A function as a module; ``options`` are given to every call."""

    def __init__(self, function: str, options: Mapping[str, Any]) -> None:
        super().__init__()
        self._function = looked_up(function)
        self._options = dict(options)

    def forward(self, **tensors: Tensor) -> Any:
        return self._function(**tensors, **self._options)


_BATCH, _HEADS, _LENGTH, _WIDTH = 2, 2, 16, 8
_FULL = (_BATCH, _LENGTH, _HEADS, _WIDTH)
_HEADS_FIRST = (_BATCH, _HEADS, _LENGTH, _WIDTH)


def _decay(*shape: int) -> Value:
    """Logarithms of numbers between zero and one."""
    return given(lambda: nn.functional.logsigmoid(torch.randn(shape)))


def _share(*shape: int) -> Value:
    """Numbers between zero and one."""
    return given(lambda: torch.rand(shape))


def _row(
    name: str, path: str, shape: tuple[int, ...], *names: str, attention: bool = False, states: int = 1, **more: Any
) -> Row:
    """``names`` are arguments of ``shape``; ``more`` are other arguments and, where they are no values, options."""
    inputs = {argument: real(*shape) for argument in ("q", "k", "v", *names)}
    inputs |= {argument: value for argument, value in more.items() if callable(value)}
    options = {argument: value for argument, value in more.items() if not callable(value)}
    sizes = {"function": f"fla.ops.{path}", "options": options}
    recurrent = ("Called",) * (0 if attention else states)
    return Row(f"fla-{name}", "sequences", "fla", f"{__name__}:Called", sizes, inputs, recurrent=recurrent)


_EACH = _FULL[:-1]

ROWS = (
    _row("gla", "gla.naive:naive_recurrent_gla", _FULL, gk=_decay(*_FULL)),
    _row("simple-gla", "simple_gla.naive:naive_recurrent_simple_gla", _FULL, g=_decay(*_EACH)),
    _row("simple-gla-chunks", "simple_gla.naive:naive_chunk_simple_gla", _FULL, g=_decay(*_EACH), chunk_size=4),
    _row("simple-gla-parallel", "simple_gla.naive:naive_parallel_simple_gla", _FULL, g=_decay(*_EACH)),
    _row("delta-rule", "delta_rule.naive:delta_rule_recurrence", _HEADS_FIRST, beta=_share(*_HEADS_FIRST[:-1])),
    _row(
        "delta-rule-chunks",
        "delta_rule.naive:delta_rule_chunkwise",
        _HEADS_FIRST,
        beta=_share(*_HEADS_FIRST[:-1]),
        chunk_size=4,
    ),
    _row(
        "gated-delta-rule",
        "gated_delta_rule.naive:naive_recurrent_gated_delta_rule",
        _FULL,
        beta=_share(*_EACH),
        g=_decay(*_EACH),
    ),
    _row(
        "gated-delta-rule-chunks",
        "gated_delta_rule.naive:naive_chunk_gated_delta_rule",
        _FULL,
        beta=_share(*_EACH),
        g=_decay(*_EACH),
        chunk_size=4,
    ),
    _row("linear-attn", "linear_attn.naive:naive_recurrent_linear_attn", _FULL),
    _row("linear-attn-normalised", "linear_attn.naive:naive_recurrent_linear_attn", _FULL, normalize=True),
    _row("retention", "retention.naive:naive_retention", _HEADS_FIRST),
    _row(
        "rwkv6",
        "rwkv6.recurrent_naive:naive_recurrent_rwkv6",
        _HEADS_FIRST,
        w=_decay(*_HEADS_FIRST),
        u=real(_HEADS, _WIDTH),
    ),
    _row(
        "rwkv6-chunks",
        "rwkv6.chunk_naive:naive_chunk_rwkv6",
        _HEADS_FIRST,
        w=_decay(*_HEADS_FIRST),
        u=real(_HEADS, _WIDTH),
        chunk_size=4,
    ),
    _row("kda", "kda.naive:naive_recurrent_kda", _FULL, g=_decay(*_FULL), beta=_share(*_EACH)),
    _row("kda-chunks", "kda.naive:naive_chunk_kda", _FULL, g=_decay(*_FULL), beta=_share(*_EACH), chunk_size=4),
    _row("iplr", "generalized_delta_rule.iplr.naive:iplr_recurrence", _HEADS_FIRST, "alpha", "beta"),
    _row(
        "dplr",
        "generalized_delta_rule.dplr.naive:dplr_recurrence",
        _HEADS_FIRST,
        "alpha",
        "beta",
        gk=_decay(*_HEADS_FIRST),
    ),
    _row("comba", "comba.naive:naive_recurrent_comba", _FULL, "p", beta=_share(*_EACH), g=_decay(*_EACH)),
    _row("based", "based.naive:naive_parallel_based", _HEADS_FIRST),
    _row("rebased", "rebased.naive:naive_parallel_rebased", _HEADS_FIRST),
    _row("gsa", "gsa.naive:naive_recurrent_gsa", _FULL, s=real(*_FULL[:-1], 4), g=_decay(*_FULL[:-1], 4)),
    _row(
        "mesa",
        "mesa_net.naive:naive_mesa_net_exact",
        _FULL,
        states=2,
        g=_decay(*_EACH),
        beta=_share(*_EACH),
        lamb=_share(_HEADS, _WIDTH),
    ),
    _row(
        "gated-delta-product",
        "gated_delta_product.naive:naive_recurrent_gated_delta_product",
        _FULL,
        g=_decay(*_EACH),
        beta=_share(*_EACH),
        scale=0.5,
    ),
    _row("attn", "attn.naive:naive_parallel_attn", _FULL, attention=True),
    _row("attn-window", "attn.naive:naive_parallel_attn", _FULL, attention=True, window_size=4),
    _row("attn-sink", "attn.naive:naive_parallel_attn", _FULL, attention=True, sink_bias=real(_HEADS)),
    _row("forgetting-attn", "forgetting_attn.naive:naive_forgetting_attn", _FULL, attention=True, g=_decay(*_EACH)),
    _row("stickbreaking-attn", "stickbreaking_attn.naive:naive_stickbreaking_attn", _FULL, attention=True),
    _row(
        "path-attn",
        "path_attn.naive:naive_path_attn",
        _FULL,
        "w",
        attention=True,
        beta=_share(*_EACH),
        g=_decay(*_EACH),
        scale=0.5,
        chunk_size=8,
    ),
    Row(
        "fla-hgrn",
        "sequences",
        "fla",
        f"{__name__}:Called",
        {"function": "fla.ops.hgrn.naive:naive_recurrent_hgrn", "options": {}},
        {"x": real(2, 16, 8), "g": _decay(2, 16, 8)},
        recurrent=("Called",),
    ),
)
