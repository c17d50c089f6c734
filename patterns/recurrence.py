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
