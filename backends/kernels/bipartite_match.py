"""Triton kernel of bipartite matching: a running maximum over tiles of destinations, never all similarities at once."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (the arguments of jitted functions are pointers and tiles, which have no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...passes.ops.tokens import bipartite_match
from ...patterns.reasons import Reason
from ..providers import provider
from .launch import Case, Device, Launch, ceil_div, device_of, no_triton_on, opaque, power_of_two, precision, upcast

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@triton.jit
def _features(pointers, mask, UPCAST: tl.constexpr):
    tile = tl.load(pointers, mask, other=0.0)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def bipartite_match_kernel(
    source, destination, score, index, batches, sources, destinations, depth, per_split,
    source_batch, source_token, source_inner, destination_batch, destination_token, destination_inner,
    ONE_CHUNK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # Each program has one tile of sources and, when destinations are split, its part of them: [split, batch, tile].
    tiles = tl.cdiv(sources, BLOCK_A)
    program = tl.program_id(0)
    batch = (program // tiles % batches).to(tl.int64)
    split = program // tiles // batches
    row = program % tiles * BLOCK_A + tl.arange(0, BLOCK_A)
    column = tl.arange(0, BLOCK_M)
    inner = tl.arange(0, BLOCK_C)
    row_inside = (row < sources)[:, None]
    left_tile = source + batch * source_batch + row.to(tl.int64)[:, None] * source_token
    destination += batch * destination_batch

    if ONE_CHUNK:
        left = _features(left_tile + inner[None, :] * source_inner, row_inside & (inner < depth)[None, :], UPCAST)
        squares = tl.sum(left.to(tl.float32) * left.to(tl.float32), 1)
    else:
        squares = tl.zeros([BLOCK_A], tl.float32)
        for chunk in range(0, depth, BLOCK_C):
            features = chunk + inner
            mask = row_inside & (features < depth)[None, :]
            piece = _features(left_tile + features[None, :] * source_inner, mask, UPCAST).to(tl.float32)
            squares += tl.sum(piece * piece, 1)

    best = tl.full([BLOCK_A], float("-inf"), tl.float32)
    where = tl.zeros([BLOCK_A], tl.int32)
    broken = tl.zeros([BLOCK_M], tl.int32)
    begin = split * per_split
    end = tl.minimum(begin + per_split, destinations)
    for start in range(begin, end, BLOCK_M):
        token = start + column
        column_inside = (token < end)[None, :]
        right_tile = destination + token.to(tl.int64)[None, :] * destination_token
        product = tl.zeros([BLOCK_A, BLOCK_M], tl.float32)
        norms = tl.zeros([BLOCK_M], tl.float32)
        if ONE_CHUNK:
            mask = (inner < depth)[:, None] & column_inside
            right = _features(right_tile + inner[:, None] * destination_inner, mask, UPCAST)
            product = tl.dot(left, right, product, input_precision=PRECISION)
            norms = tl.sum(right.to(tl.float32) * right.to(tl.float32), 0)
        else:
            for chunk in range(0, depth, BLOCK_C):
                features = chunk + inner
                mask = (features < depth)[:, None] & column_inside
                right = _features(right_tile + features[:, None] * destination_inner, mask, UPCAST)
                mask = row_inside & (features < depth)[None, :]
                piece = _features(left_tile + features[None, :] * source_inner, mask, UPCAST)
                product = tl.dot(piece, right, product, input_precision=PRECISION)
                norms += tl.sum(right.to(tl.float32) * right.to(tl.float32), 0)
        length = tl.maximum(tl.sqrt(norms), 1e-12)
        broken = tl.maximum(broken, (norms != norms).to(tl.int32))
        similar = tl.where(column_inside, product / length[None, :], float("-inf"))
        peak, place = tl.max(similar, 1, return_indices=True)
        better = peak > best
        best = tl.where(better, peak, best)
        where = tl.where(better, start + place, where)
    best = best / tl.maximum(tl.sqrt(squares), 1e-12)
    # Comparisons pass over NaN: one in a source, or in any destination, is put back so that it shows.
    best = tl.where((squares != squares) | (tl.max(broken, 0) > 0), float("nan"), best)
    target = (split.to(tl.int64) * batches + batch) * sources + row
    tl.store(score + target, best, row < sources)
    tl.store(index + target, where.to(tl.int64), row < sources)


def plan_bipartite_match(
    source: Tensor, destination: Tensor, device: Device, splits: int | None = None
) -> tuple[Launch, Tensor, Tensor]:
    """The launch and its results ``score`` and ``index``, both ``[splits, B, A]``; nothing may be empty.

    Destinations are split when the sources alone leave multiprocessors idle (``splits`` fixes into how many parts).
    """
    batches, sources, depth = source.shape
    destinations = destination.shape[1]
    chunk = power_of_two(depth, 16, 32 if source.dtype in (torch.float32, torch.float64) else 128)
    block_a = 64 if batches * ceil_div(sources, 64) >= device.processors else power_of_two(sources, 16, 32)
    block_m = power_of_two(destinations, 16, 64)
    programs = batches * ceil_div(sources, block_a)
    wanted = splits or max(1, min(8, 2 * device.processors // programs, destinations // (4 * block_m)))
    per_split = ceil_div(ceil_div(destinations, wanted), block_m) * block_m
    parts = ceil_div(destinations, per_split)
    score = source.new_empty((parts, batches, sources), dtype=torch.float32)
    index = source.new_empty((parts, batches, sources), dtype=torch.int64)
    arguments = {
        "source": source, "destination": destination, "score": score, "index": index,
        "batches": batches, "sources": sources, "destinations": destinations, "depth": depth, "per_split": per_split,
        "source_batch": source.stride(0), "source_token": source.stride(1), "source_inner": source.stride(2),
        "destination_batch": destination.stride(0), "destination_token": destination.stride(1),
        "destination_inner": destination.stride(2), "ONE_CHUNK": depth <= chunk,
        "PRECISION": precision(source.dtype, device), "UPCAST": upcast(source.dtype, device),
        "BLOCK_A": block_a, "BLOCK_M": block_m, "BLOCK_C": chunk,
    }  # fmt: skip
    return Launch(bipartite_match_kernel, programs * parts, arguments, 4, 2), score, index


def _shape(source: Tensor, destination: Tensor) -> tuple[Tensor, Tensor]:
    rows = source.shape[:-1]
    return source.new_empty(rows, dtype=torch.float32), source.new_empty(rows, dtype=torch.int64)


@opaque("bipartite_match", _shape)
def _bipartite_match(source: Tensor, destination: Tensor) -> tuple[Tensor, Tensor]:
    if not source.shape[0] * source.shape[1] * destination.shape[1]:
        return bipartite_match.body(source, destination)
    launch, score, index = plan_bipartite_match(source, destination, device_of(source))
    launch.run()
    if score.shape[0] == 1:
        return score[0], index[0]
    best, part = score.max(0)
    return best, index.gather(0, part.unsqueeze(0))[0]


def _supports(source: Tensor, destination: Tensor) -> Reason | None:
    if source.dtype not in DTYPES:
        return Reason("unsupported-dtype", f"the Triton match has no {source.dtype}")
    return no_triton_on(source)


@provider(bipartite_match, "triton", priority=100, supports=_supports)
def bipartite_match_in_triton(source: Tensor, destination: Tensor) -> tuple[Tensor, Tensor]:
    """Norms are computed beside the products; only the best similarity of each source leaves the registers."""
    return _bipartite_match(source, destination)


def _case(batch: int, sources: int, destinations: int, depth: int, dtype: torch.dtype) -> Case:
    def plan(device: Device) -> list[Launch]:
        tokens = torch.empty(batch, 2 * max(sources, destinations), depth, dtype=dtype, device="meta")
        return [plan_bipartite_match(tokens[:, ::2][:, :sources], tokens[:, 1::2][:, :destinations], device)[0]]

    return Case(f"[{batch}, {sources} x {destinations}, {depth}], {str(dtype).removeprefix('torch.')}", plan)


CASES = [
    _case(2, 2048, 2048, 64, torch.float16),
    _case(2, 2048, 2048, 640, torch.bfloat16),
    _case(8, 98, 98, 768, torch.float32),
    _case(1, 33, 17, 40, torch.float64),
]
