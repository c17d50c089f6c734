"""Regional compilation: equal blocks of a stack are compiled as one block, which then runs for each of them.

The graph is cut at block boundaries that detection proved equal; weights and all else a block reads are inputs of the
compiled piece. What is computed does not change, nor does what Dynamo sees. Cold compile time no longer grows with
depth.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from ..patterns.describe import evaluated, size_hint
from ..patterns.nodes import tensor
from ..patterns.reasons import Reason
from ..patterns.segments import runs
from ..patterns.sites import Block
from .base import PlanContext, Policy, positive, register
from .cached_regions import between, stacks
from .plan import Cut, Fidelity, Plan

CALL_SECONDS = 12e-6
"""What one more call of a compiled piece costs on the host."""

CPU_RATE = 1e11
"""Floating-point operations per second and thread that no CPU piece is assumed to be slower to use up than."""

CUDA_RATE = 2e14

CUDA_CALL_SECONDS = 1e-4


@dataclass(frozen=True)
class ShareBlocks(Policy):
    """Compile each distinct block once and call it for every layer of its stack.

    Blocks too small to be called one by one are taken several at a time; where even that is too little, nothing is
    cut.

    Args:
        overhead: the share of a stack's run time that calling its pieces may cost, by estimate.

    Raises:
        ValueError, TypeError: a setting outside its range or of the wrong type.
    """

    overhead: float = 0.01

    kinds = (Block,)
    fidelity = Fidelity.REORDERED
    gradient = True

    def __post_init__(self) -> None:
        positive("overhead", self.overhead, kind=float)

    def plan(self, context: PlanContext) -> Plan:
        """Where to cut, or why a stack is compiled as part of the whole."""
        plan = Plan()
        order = list(context.graph.module.graph.nodes)
        position = {node: index for index, node in enumerate(order)}
        for stack in stacks(context.targets):
            groups = self._groups(stack)
            if isinstance(groups, Reason):
                plan.refusals.append((stack[0], groups))
                continue
            for group in groups:
                plan.cuts.append(Cut(nodes=between(group, order, position), policy=self, site=group[0]))
        return plan

    def _groups(self, stack: Sequence[Block]) -> list[Sequence[Block]] | Reason:
        """What to call at a time: single blocks of a kind that repeats, or several where one is too little work."""
        size = self._blocks_at_a_time(stack)
        if isinstance(size, Reason):
            return size
        if size == 1:
            number = Counter(block.variant for block in stack)
            groups: list[Sequence[Block]] = [[block] for block in stack if number[block.variant] > 1]
        else:
            groups = _repeated(stack, size)
        text = f"{len(stack)} blocks, but no {'two' if size == 1 else f'groups of {size}'} of them are equal"
        return groups or Reason("not-faster", text)

    def _blocks_at_a_time(self, stack: Sequence[Block]) -> int | Reason:
        """As few as keep the overhead small, so that at least two groups are equal."""
        wanted = call_seconds(stack[0]) / self.overhead if self.overhead else math.inf
        seconds = min(map(block_seconds, stack))
        size = math.ceil(wanted / seconds) if wanted < math.inf and seconds > 0 else len(stack)
        if len(stack) >= 2 * size:
            return size
        text = (
            f"{len(stack)} blocks of about {seconds * 1e6:.0f} us each are too little work to be called one by one"
            f" (overhead={self.overhead:g})"
        )
        return Reason("not-faster", text)


def block_seconds(block: Block) -> float:
    """A low estimate of a block's run time on its device, from its multiplications."""
    work = evaluated(block.flops, block.dimensions) + sum(map(_dialect_work, block.interior))
    return work / (CUDA_RATE if _on_gpu(block) else CPU_RATE * torch.get_num_threads())


def call_seconds(block: Block) -> float:
    """What a call of a piece may cost before it shows: on a GPU the host must stay ahead of it."""
    return CUDA_CALL_SECONDS if _on_gpu(block) else CALL_SECONDS


def _on_gpu(block: Block) -> bool:
    value = tensor(block.exits[0])
    return value is not None and value.device.type != "cpu"


def _dialect_work(node: Node) -> int:
    """Multiplications of our own operators, which replace layers that had sites: as of a product over the last axis."""
    made, read = node.meta.get("val"), node.args[0] if node.args else None
    if getattr(node.target, "namespace", None) != "laconic" or not isinstance(made, Tensor):
        return 0
    source = tensor(read)
    if source is None or source.dim() == 0:
        return 0
    return 2 * math.prod(map(size_hint, made.shape)) * size_hint(source.shape[-1])


def _repeated(stack: Sequence[Block], size: int) -> list[Sequence[Block]]:
    """Equal groups of at least ``size`` neighbours, whole periods each, from the longest stretch that repeats."""
    best: list[Sequence[Block]] = []
    for run in runs([block.variant for block in stack]):
        length = math.ceil(size / run.period) * run.period
        # What is left over at the front stays in the piece before.
        groups = [
            stack[start : start + length]
            for start in range(run.start + run.length % length, run.start + run.length, length)
        ]
        if len(groups) > 1 and sum(map(len, groups)) > sum(map(len, best)):
            best = groups
    return best


share_blocks = register("share_blocks", {"equal": ShareBlocks}, default="equal")
