"""Rewrites that change nothing, run backwards on an attention at random: it is found again and means the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.zoo.attention import made, meaning_of, only_site

B, H, S, D = 2, 3, 5, 4
SCALE = D**-0.5
HIDDEN = float("-inf")

Step = Callable[..., Any]

# What moves the elements of a tensor ``[B, H, *, *]`` about, or copies them, and brings all back.
MOVES: dict[str, Step] = {
    "clone": lambda x: x.clone(),
    "contiguous": lambda x: x.contiguous(),
    "same type": lambda x: x.to(x.dtype),
    "whole slice": lambda x: x[:, :, 0:],
    "one more axis": lambda x: x.unsqueeze(2).squeeze(2),
    "same view": lambda x: x.reshape(x.shape),
    "transposed twice": lambda x: x.transpose(-1, -2).transpose(2, 3),
    "permuted twice": lambda x: x.permute(2, 0, 3, 1).permute(1, 3, 0, 2),
    "moved twice": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "batch joined": lambda x: x.flatten(0, 1).unflatten(0, (B, H)),
    "all joined": lambda x: x.reshape(-1).view(x.shape),
    "wide and back": lambda x: x.double().to(x.dtype),
}
PACKED: dict[str, Step] = {
    "chunk": lambda x: [y.view(B, S, H, D).transpose(1, 2) for y in x.chunk(3, -1)],
    "split": lambda x: [y.unflatten(-1, (H, D)).permute(0, 2, 1, 3) for y in x.split(H * D, -1)],
    "unbind": lambda x: x.view(B, S, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0),
    "select": lambda x: [x.view(B, S, 3, H, D)[:, :, part].transpose(1, 2) for part in range(3)],
    "slice": lambda x: [x[..., i * H * D : (i + 1) * H * D].view(B, S, H, D).transpose(1, 2) for i in range(3)],
}
TIMES: dict[str, Step] = {
    "mul": lambda x, c: x * c,
    "mul in front": lambda x, c: c * x,
    "div": lambda x, c: x / (1 / c),
}
SCORES: dict[str, Step] = {
    "matmul": lambda q, k: q @ k.transpose(-2, -1),
    "bmm": lambda q, k: torch.bmm(q.reshape(-1, S, D), k.reshape(-1, S, D).mT).view(B, H, S, S),
    "einsum": lambda q, k: torch.einsum("bhsd,bhtd->bhst", q, k),
    "keys first": lambda q, k: (k @ q.mT).mT,
    "tokens first": lambda q, k: torch.einsum("bshd,bthd->bhst", q.transpose(1, 2), k.transpose(1, 2)),
}
MASKS: dict[str, Step] = {
    "masked_fill": lambda x, keep: x.masked_fill(~keep, HIDDEN),
    "equal to zero": lambda x, keep: x.masked_fill(keep.float() == 0, HIDDEN),
    "where": lambda x, keep: torch.where(keep, x, HIDDEN),
    "where not": lambda x, keep: torch.where(keep.logical_not(), HIDDEN, x),
    "added": lambda x, keep: x + torch.where(keep, 0.0, HIDDEN),
    "added in front": lambda x, keep: torch.zeros(B, 1, 1, S).masked_fill(~keep, HIDDEN) + x,
}
SOFTMAXES: dict[str, Step] = {
    "operator": lambda x: x.softmax(-1),
    "in float64": lambda x: F.softmax(x, dim=3, dtype=torch.float64).to(x.dtype),
    "exp": lambda x: _normalised(x.exp()),
    "stable exp": lambda x: _normalised((x - x.amax(-1, keepdim=True)).exp()),
    "logarithms": lambda x: F.log_softmax(x, -1).exp(),
    "other axis": lambda x: x.transpose(2, 3).softmax(2).transpose(2, 3),
    "no dropout": lambda x: F.dropout(x.softmax(-1), 0.2, training=False),
}
OUTPUTS: dict[str, Step] = {
    "matmul": lambda w, v: w @ v,
    "bmm": lambda w, v: torch.bmm(w.flatten(0, 1), v.flatten(0, 1)).view(B, H, S, D),
    "einsum": lambda w, v: torch.einsum("bhst,bhtd->bhsd", w, v),
    "value first": lambda w, v: (v.mT @ w.mT).mT,
    "tokens first": lambda w, v: torch.einsum("bhst,bthd->bshd", w, v.transpose(1, 2)).transpose(1, 2),
}


def _normalised(raised: Tensor) -> Tensor:
    return raised / raised.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Writing:
    """One way to write the attention: a choice for each of its parts, and moves between them."""

    packed: str
    query: tuple[str, ...]
    key: tuple[str, ...]
    value: tuple[str, ...]
    scores: str
    on_scores: tuple[str, ...]
    scales: tuple[tuple[str, str, float], ...]
    mask: str | None
    softmax: str
    on_weights: tuple[str, ...]
    output: str

    def __call__(self, x: Tensor, keep: Tensor) -> Tensor:
        parts = dict(zip(("query", "key", "value"), PACKED[self.packed](x), strict=True))
        for name in parts:
            parts[name] = self._scaled(name, _moved(parts[name], getattr(self, name)))
        scores = self._scaled("scores", SCORES[self.scores](parts["query"], parts["key"]))
        scores = _moved(scores, self.on_scores)
        if self.mask is not None:
            scores = MASKS[self.mask](scores, keep[:, None, None, :])
        weights = _moved(SOFTMAXES[self.softmax](scores), self.on_weights)
        return OUTPUTS[self.output](weights, parts["value"])

    def _scaled(self, name: str, x: Tensor) -> Tensor:
        for place, how, share in self.scales:
            x = TIMES[how](x, SCALE**share) if place == name else x
        return x


def _moved(x: Tensor, moves: tuple[str, ...]) -> Tensor:
    for move in moves:
        x = MOVES[move](x)
    return x


def _some(names: dict[str, Step], most: int = 2) -> Any:
    return st.lists(st.sampled_from(sorted(names)), max_size=most).map(tuple)


_place = st.sampled_from(["query", "key", "scores"])
_shares = st.sampled_from([(1.0,), (0.5, 0.5), (0.25, 0.75), (2.0, -1.0)]).flatmap(
    lambda shares: st.tuples(*[st.tuples(_place, st.sampled_from(sorted(TIMES)), st.just(share)) for share in shares])
)
_writings = st.builds(
    Writing,
    packed=st.sampled_from(sorted(PACKED)),
    query=_some(MOVES),
    key=_some(MOVES),
    value=_some(MOVES),
    scores=st.sampled_from(sorted(SCORES)),
    on_scores=_some(MOVES),
    scales=_shares,
    mask=st.none() | st.sampled_from(sorted(MASKS)),
    softmax=st.sampled_from(sorted(SOFTMAXES)),
    on_weights=_some(MOVES),
    output=st.sampled_from(sorted(OUTPUTS)),
)


def _standard(x: Tensor, keep: Tensor, masked: bool) -> Tensor:
    q, k, v = PACKED["chunk"](x)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :] if masked else None)


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    return made(B, S, 3 * H * D), torch.arange(S).expand(B, S) < S - 1


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writing=_writings)
def test_found_again(inputs: tuple[Tensor, Tensor], writing: Writing) -> None:
    masked = writing.mask is not None
    standard = only_site(lambda x, keep: _standard(x, keep, masked), *inputs)
    assert meaning_of(only_site(writing, *inputs)) == meaning_of(standard)


@pytest.mark.parametrize("masked", [False, True])
def test_the_writings_compute_the_same(inputs: tuple[Tensor, Tensor], masked: bool) -> None:
    """The rewrites are what they say: values stay, up to rounding."""
    x, keep = inputs
    for softmax, output, scores, packed in zip(SOFTMAXES, [*OUTPUTS] * 2, [*SCORES] * 2, [*PACKED] * 2, strict=False):
        moves = tuple(MOVES)
        scale = (("scores", "mul", 1.0),)
        mask = sorted(MASKS)[len(softmax) % len(MASKS)] if masked else None
        writing = Writing(packed, moves, moves, moves, scores, moves, scale, mask, softmax, moves, output)
        torch.testing.assert_close(writing(x, keep), _standard(x, keep, masked), rtol=1e-4, atol=1e-5)
