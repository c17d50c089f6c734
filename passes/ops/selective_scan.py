"""The selective scan of state-space models: a diagonal recurrence whose states are read out and never stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dialect import operator
from .recurrence import linear_recurrence


def _shape(delta: Tensor, rate: Tensor, input: Tensor, expand: Tensor, read: Tensor) -> Tensor:
    return torch.empty(delta.shape, dtype=delta.dtype, device=delta.device)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    # The states are computed again rather than kept: they are as many times larger than the output as there are
    # states per channel.
    delta, rate, input, expand, read = ctx.saved_tensors
    decay = torch.exp(delta.unsqueeze(-1) * rate)
    states = torch.ops.laconic.linear_recurrence(decay, input.unsqueeze(-1) * expand.unsqueeze(2), None, 1, False)
    grad_read = (grad.unsqueeze(-1) * states).sum(2)
    length = delta.shape[1]
    # G_t = grad_t read_t + decay_{t+1} G_{t+1}
    shifted = torch.cat((decay.narrow(1, 1, length - 1), torch.zeros_like(decay.narrow(1, 0, 1))), 1)
    total = torch.ops.laconic.linear_recurrence(shifted, grad.unsqueeze(-1) * read.unsqueeze(2), None, 1, True)
    previous = torch.cat((torch.zeros_like(states.narrow(1, 0, 1)), states.narrow(1, 0, length - 1)), 1)
    grad_exponent = total * previous * decay
    return (
        (grad_exponent * rate).sum(-1),
        (grad_exponent * delta.unsqueeze(-1)).sum((0, 1)),
        (total * expand.unsqueeze(2)).sum(-1),
        (total * input.unsqueeze(-1)).sum(2),
        grad_read,
    )


@operator(version=1, fake=_shape, backward=_backward, setup_context=_remember)
def selective_scan(delta: Tensor, rate: Tensor, input: Tensor, expand: Tensor, read: Tensor) -> Tensor:
    """``y_t = sum_n read_tn h_tn`` with ``h_t = exp(delta_t rate) h_{t-1} + input_t expand_t`` from ``h_{-1} = 0``.

    Shapes: ``delta, input [B, L, D]``, ``rate [D, N]``, ``expand, read [B, L, N]``, all of one floating dtype and any
    strides; the state ``h_t`` is ``[B, D, N]``. Returns a contiguous ``[B, L, D]``. The states exist only one step at a
    time; the gradient computes them again.

    Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023), equations 2 and 3 and
    section 3.3, with the zero-order-hold step already multiplied into ``input``.
    """
    decay = torch.exp(delta.unsqueeze(-1) * rate)
    states = linear_recurrence(decay, input.unsqueeze(-1) * expand.unsqueeze(2), None, 1, False)
    return (states * read.unsqueeze(2)).sum(-1)
