"""The meaning of a scan site: ``h_t = decay_t * h_{t-1} + input_t`` over stacked operands, in plain torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .batched import align


def recurrence(decay: Tensor, input: Tensor, initial: Tensor | None, dim: int, reverse: bool) -> Tensor:
    """Every ``h_t`` of ``h_t = decay_t * h_{t-1} + input_t`` along ``dim``; ``h_{-1}`` is ``initial`` or zeros.

    ``decay`` and ``input`` have one shape and dtype, ``initial`` that shape without ``dim``. With ``reverse`` the
    recurrence runs from the last element to the first.
    """
    decay, input = decay.movedim(dim, 0), input.movedim(dim, 0)
    states: list[Tensor] = []
    state = initial
    for step in reversed(range(len(input))) if reverse else range(len(input)):
        state = input[step] if state is None else decay[step] * state + input[step]
        states.append(state)
    if not states:
        return input.movedim(0, dim)
    return torch.stack(states[::-1] if reverse else states, dim)


def operands(
    decay: Any,
    input: Any,
    initial: Tensor | None,
    stacked: tuple[bool, bool],
    rank: int,
    length: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Decay and input of one shape ``[length, *state]`` and dtype, from what the steps of a loop read.

    Either may be a number, a tensor read by every step, or (``stacked``) one with time as axis 0; a state has ``rank``
    axes.
    """
    known = next(value for value in (decay, input, initial) if isinstance(value, Tensor))
    values = []
    for value, lifted in zip((decay, input), stacked, strict=True):
        tensor = value if isinstance(value, Tensor) else known.new_full((), value, dtype=dtype)
        values.append((align(tensor, rank) if lifted else tensor).to(dtype))
    starting = () if initial is None else tuple(initial.shape)
    shape = torch.broadcast_shapes((length, *(1 for _ in range(rank))), *(value.shape for value in values), starting)
    first, second = (value.expand(shape) for value in values)
    return first, second, None if initial is None else initial.to(dtype).expand(shape[1:])


def selective(delta: Tensor, rate: Tensor, input: Tensor, expand: Tensor, read: Tensor) -> Tensor:
    """``sum_n read_tn h_tn [B, L, D]`` of ``h_t = exp(delta_t rate) h_{t-1} + input_t expand_t``.

    ``delta, input [B, L, D]``, ``rate [D, N]``, ``expand, read [B, L, N]``.
    """
    decay = torch.exp(delta.unsqueeze(-1) * rate)
    states = recurrence(decay, input.unsqueeze(-1) * expand.unsqueeze(2), None, 1, False)
    return (states * read.unsqueeze(2)).sum(-1)


def product(*factors: Any) -> Any:
    """The product of tensors (broadcast) and numbers."""
    result = factors[0]
    for factor in factors[1:]:
        result = result * factor
    return result


def arranged(value: Tensor, axes: tuple[int | None, ...]) -> Tensor:
    """``value`` with ``axes`` in this order (None: a new axis of size 1); the axes not named have size 1 and go."""
    named = [axis for axis in axes if axis is not None]
    rest = [axis for axis in range(value.dim()) if axis not in named]
    moved = value.permute(*named, *rest)
    for _ in rest:
        moved = moved.squeeze(-1)
    return moved[tuple(None if axis is None else slice(None) for axis in axes)]


def selective_operands(
    delta: Tensor, rate: Tensor, input: Tensor, expand: Tensor, read: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """The five operands of :func:`selective` at their full sizes, from ones that broadcast to them."""
    batch, length, channels = torch.broadcast_shapes(
        delta.shape, input.shape, (*expand.shape[:2], 1), (*read.shape[:2], 1), (1, 1, rate.shape[0])
    )
    (states,) = torch.broadcast_shapes(rate.shape[1:], expand.shape[2:], read.shape[2:])
    shapes = (
        (batch, length, channels),
        (channels, states),
        (batch, length, channels),
        (batch, length, states),
        (batch, length, states),
    )
    operands = (delta, rate, input, expand, read)
    return tuple(value.to(dtype).expand(shape) for value, shape in zip(operands, shapes, strict=True))
