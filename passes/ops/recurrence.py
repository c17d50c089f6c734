"""Linear recurrences along one axis: the core of state-space models, linear attention and gated RNNs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dialect import operator


def _shape(decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool) -> Tensor:
    if decay.dim() != input.dim() or decay.dtype != input.dtype:
        raise ValueError(
            f"linear_recurrence: decay {tuple(decay.shape)} {decay.dtype} does not match "
            f"input {tuple(input.shape)} {input.dtype}"
        )
    return torch.empty(input.shape, dtype=input.dtype, device=input.device)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    decay, _, initial, ctx.dim, ctx.reverse = inputs
    ctx.has_initial = initial is not None
    ctx.save_for_backward(decay, output, *(() if initial is None else (initial,)))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None, None]:
    # With G_t = dL/dh_t in total: G_t = grad_t + conj(decay_{t+1}) G_{t+1}, the same recurrence run the other way.
    decay, states, *rest = ctx.saved_tensors
    initial = rest[0] if ctx.has_initial else None
    dim, reverse = ctx.dim, ctx.reverse
    length = decay.shape[dim]
    if length == 0:
        return torch.zeros_like(decay), grad, None if initial is None else torch.zeros_like(initial), None, None
    first = length - 1 if reverse else 0
    conjugate = decay.conj() if decay.is_complex() else decay
    rest_of_decay = conjugate.narrow(dim, 0 if reverse else 1, length - 1)
    unused = torch.zeros_like(conjugate.narrow(dim, 0, 1))
    shifted = torch.cat((unused, rest_of_decay) if reverse else (rest_of_decay, unused), dim)
    total = torch.ops.laconic.linear_recurrence(shifted, grad, None, dim, not reverse)
    grad_decay = None
    if ctx.needs_input_grad[0]:
        start = torch.zeros_like(unused) if initial is None else initial.unsqueeze(dim)
        kept = states.narrow(dim, 1 if reverse else 0, length - 1)
        previous = torch.cat((kept, start) if reverse else (start, kept), dim)
        grad_decay = total * (previous.conj() if previous.is_complex() else previous)
    grad_initial = (conjugate.select(dim, first) * total.select(dim, first)) if initial is not None else None
    return grad_decay, total, grad_initial, None, None


@operator(version=1, fake=_shape, backward=_backward, setup_context=_remember)
def linear_recurrence(decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool) -> Tensor:
    """``h_t = decay_t * h_{t-1} + input_t`` along ``dim``, elementwise in all other axes; returns every ``h_t``.

    ``decay`` and ``input`` have one shape and dtype (floating or complex) and any strides: broadcast with ``expand``,
    axes of stride 0 are read as they are. ``initial`` is ``h_{-1}``, of that shape without axis ``dim``; None means
    zeros. With ``reverse`` the recurrence runs from the last element to the first, ``h_t = decay_t * h_{t+1} +
    input_t``, starting from ``initial``. The result is contiguous. Gradients are the recurrence run the other way,
    and may be differentiated again.

    Raises ValueError when decay and input differ in rank or dtype. Source: Blelloch, "Prefix Sums and Their
    Applications" (1990), section 1.4, for the recurrence; Martin and Cundy, "Parallelizing Linear Recurrent Neural
    Nets Over Sequence Length" (ICLR 2018), for its gradient.
    """
    length = input.shape[dim]
    states: list[Tensor] = []
    state = initial
    for step in reversed(range(length)) if reverse else range(length):
        decayed = None if state is None else decay.select(dim, step) * state
        state = input.select(dim, step) if decayed is None else decayed + input.select(dim, step)
        states.append(state)
    return torch.stack(states[::-1] if reverse else states, dim) if states else input.clone()
