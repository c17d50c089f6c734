"""Which steps to compute, found from one uncached trajectory: no further evaluation of the network is needed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from .base import positive
from .forecast import lagrange


def search_table(
    outputs: Tensor, computed: int, *, order: int = 1, repay: float = 0.0, tries: int = 600, seed: int = 0
) -> tuple[tuple[bool, ...], ...]:
    """A table of ``computed`` steps for ``cache("static", order=order, repay=repay)``, one column.

    A forecast is a fixed sum of computed outputs, so what a table does to a sampler that adds the outputs is a sum of
    recorded outputs too, and its size follows from their inner products alone. Starting from even gaps, single steps
    are moved as long as the drift (squared; at the end, and a third of its mean on the way) becomes smaller. How
    outputs change because samples have drifted is left out.

    Args:
        outputs: ``[steps, ...]``, the network's outputs in an uncached trajectory of other samples than the ones to be
            accelerated.
        computed: how many steps to compute, the first and the last among them.
        order, repay: of the forecasts, as the policy will be used.
        tries: how many moves are tried.

    Raises:
        ValueError, TypeError: ``computed`` is not between 2 and the number of steps, or a number out of range.
    """
    steps = len(outputs)
    for name, value in (("computed", computed), ("tries", tries), ("order", order)):
        positive(name, value)
    if not 2 <= computed <= steps:
        raise ValueError(f"computed must be between 2 and the {steps} steps, not {computed}")
    rows = outputs.flatten(1).double()
    gram = rows @ rows.T / rows.square().sum()
    chance = random.Random(seed)
    table = [False] * steps
    for index in range(computed):
        table[round(index * (steps - 1) / (computed - 1))] = True
    best = _drift(table, gram, order, repay)
    for _ in range(tries if 2 < computed < steps else 0):
        source = chance.choice([step for step in range(1, steps - 1) if table[step]])
        near = [step for step in (source - 1, source + 1) if 0 < step < steps - 1 and not table[step]]
        free = near if near and chance.random() < 0.5 else [step for step in range(1, steps - 1) if not table[step]]
        moved = list(table)
        moved[source], moved[chance.choice(free)] = False, True
        drift = _drift(moved, gram, order, repay)
        if drift < best:
            best, table = drift, moved
    return tuple((value,) for value in table)


def _drift(table: Sequence[bool], gram: Tensor, order: int, repay: float) -> float:
    returned = _returned(table, order, repay)
    difference = torch.cumsum(torch.eye(len(table), dtype=torch.float64) - returned, 0)
    squares = ((difference @ gram) * difference).sum(1)
    return float(squares[-1] + squares.mean() / 3)


def _returned(table: Sequence[bool], order: int, repay: float) -> Tensor:
    """What each step returns, as weights ``[steps, steps]`` of the computed outputs: the tracker's rule in numbers."""
    steps = len(table)
    # Plain numbers: a search goes through thousands of tables, and almost all weights are zero.
    rows = [[0.0] * steps for _ in range(steps)]
    known: list[int] = []
    debt: dict[int, float] = {}
    guesses: list[tuple[int, dict[int, float]]] = []
    for step, compute in enumerate(table):
        if compute:
            known.append(step)
            rows[step][step] = 1.0
            for at, guess in guesses if repay else ():
                for point, weight in guess.items():
                    debt[point] = debt.get(point, 0.0) + repay * weight
                for point, weight in _weights(known[-order - 2 :], at).items():
                    debt[point] = debt.get(point, 0.0) - repay * weight
            guesses = []
        else:
            guess = _weights(known[-order - 1 :], step)
            guesses.append((step, guess))
            for point, weight in guess.items():
                rows[step][point] = weight
            for point, weight in debt.items():
                rows[step][point] -= weight
            debt = {}
    return torch.tensor(rows, dtype=torch.float64)


def _weights(points: Sequence[int], step: int) -> dict[int, float]:
    return dict(zip(points, lagrange([float(point) for point in points], float(step)), strict=True))
