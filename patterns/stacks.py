"""Stacks: equal blocks one after another, chosen from repeated segments and extended over what surrounds them."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from .alike import alike
from .describe import module_of
from .nodes import CASTS, COPIES, PERMUTES, RESHAPES, operation, tensor
from .segments import Run, Segment, runs, segment, type_of
from .streams import WIDEST, Place, Stream

# Segments without repetition are compared pairwise; beyond this many that would no longer be linear.
_PAIRED = 64
_WIDEST_PAIR = 12
# Ways to divide one run into blocks that are worked out in full.
_TRIED = 6

_PASSED = CASTS | COPIES | RESHAPES | PERMUTES | {"dropout"}


@dataclass(eq=False)
class Finder:
    """Looks for stacks along one stream of a graph.

    ``layers`` are the nodes computed by weighted layers and attentions: a block holds at least one. ``skips`` maps
    values kept for a long skip to the node that reads them then.
    """

    order: Sequence[Node]
    position: Mapping[Node, int]
    layers: set[Node]
    stream: Stream
    skips: Mapping[Node, Node]
    _names: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def stacks(self) -> list[list[Segment]]:
        """Stacks of at least two blocks. Single values are tried first, then wider places where those found nothing."""
        found: list[list[Segment]] = []
        gaps: list[tuple[Place | None, Place | None]] = [(None, None)]
        for width in range(1, WIDEST + 1):
            places = self.stream.places[width]
            positions = [place.position for place in places]
            wider: list[tuple[Place | None, Place | None]] = []
            for start, end in gaps:
                first = 0 if start is None else bisect_right(positions, start.position)
                last = len(places) if end is None else bisect_left(positions, end.position)
                inner = [item for item in (start, *places[first:last], end) if item is not None]
                segments = [
                    segment(self.order, self.stream.members, one, other) for one, other in itertools.pairwise(inner)
                ]
                chosen = self._repeated(segments)
                found += chosen
                wider += self._left(segments, chosen)
                if inner and start is None:
                    wider.append((None, inner[0]))
                if inner and end is None:
                    wider.append((inner[-1], None))
                if not inner:
                    wider.append((start, end))
            gaps = wider
        return found

    def _left(
        self, segments: Sequence[Segment], chosen: Sequence[Sequence[Segment]]
    ) -> list[tuple[Place | None, Place | None]]:
        """Segments outside every stack that hold at least two layers: there a wider place may show more."""
        covered = {node for stack in chosen for block in stack for node in block.nodes}
        return [
            (item.start, item.end)
            for item in segments
            if sum(node in self.layers for node in item.nodes) >= 2 and not covered.intersection(item.nodes)
        ]

    def _repeated(self, segments: Sequence[Segment]) -> list[list[Segment]]:
        names = [self._names.setdefault(item.structure, len(self._names)) for item in segments]
        heavy = [any(node in self.layers for node in item.nodes) for item in segments]
        found: list[list[Segment]] = []
        taken = [False] * len(segments)
        known: set[tuple[int, int]] = set()
        # The longest first; of equally long ones the shortest period.
        for run in sorted(runs(names), key=lambda item: (-item.length, item.period)):
            end = run.start + run.length
            if (run.start, end) in known or any(taken[run.start : end]) or not any(heavy[run.start : end]):
                continue
            known.add((run.start, end))
            stack = self._along(run, segments, heavy)
            if stack is not None:
                taken[run.start : end] = [True] * run.length
                found.append(stack)
        start = 0
        for index in range(len(segments) + 1):
            if index == len(segments) or taken[index]:
                pair = self._pair(segments[start:index], heavy[start:index])
                found += [pair] if pair is not None else []
                start = index + 1
        return found

    def _along(self, run: Run, segments: Sequence[Segment], heavy: Sequence[bool]) -> list[Segment] | None:
        """The blocks of a run: where in the period they begin, and whether light segments between them belong to them.

        As many blocks as possible; then those that lie deepest in the module tree, so that a block is what one module
        computes; then those that begin and end where long skips do; then those that leave nothing out. The first block
        counts although it may differ in what surrounds it, so choices with one block less are looked at as well.
        """
        options = self._options(run, segments, heavy)
        best: tuple[tuple[int, int, int, bool, int], list[Segment]] | None = None
        tried = 0
        for count, depth, cut, partial, offset, size in options:
            if best is not None and (count < options[0][0] - 1 or tried >= _TRIED):
                break
            first = run.start + offset
            starts = range(first, run.start + run.length - size + 1, run.period)
            second = self._joined(segments[starts[1] : starts[1] + size])
            if not self._is_block(second, segments[starts[1] : starts[1] + size]):
                continue
            tried += 1
            blocks = _equal([self._joined(segments[index : index + size]) for index in starts])
            if blocks is not None:
                blocks = self._extended(blocks)
                rank = (len(blocks), depth, cut, not partial, -offset)
                if best is None or rank > best[0]:
                    best = (rank, blocks)
        return best[1] if best is not None else None

    def _options(
        self, run: Run, segments: Sequence[Segment], heavy: Sequence[bool]
    ) -> list[tuple[int, int, int, bool, int, int]]:
        """``(blocks, depth, skips at borders, lighter than the period, offset, size)``, the most promising first."""
        period = run.period
        paths = [
            module_of(segments[run.start + index].nodes).split(".") for index in range(min(run.length, 2 * period))
        ]
        options = []
        for offset in range(period):
            weights = [index for index in range(period) if heavy[run.start + (offset + index) % period]]
            for size in {period, weights[-1] + 1} if weights else ():
                count = (run.length - offset - size) // period + 1
                if count >= 2:
                    starts = range(run.start + offset, run.start + run.length - size + 1, period)
                    cut = sum(self._at_a_skip(segments[index]) for index in starts)
                    depth = _common(paths[offset : offset + size])
                    options.append((count, depth, cut, size != period, offset, size))
        return sorted(options, key=lambda item: (-item[0], -item[1], -item[2], item[3:]))

    def _at_a_skip(self, item: Segment) -> bool:
        """True when a segment begins with a value kept for a long skip, or reads one first of all."""
        return any(value in self.skips for value in item.start.values) or any(
            node in self.skips.values() for node in item.nodes[:2]
        )

    def _joined(self, segments: Sequence[Segment]) -> Segment:
        return segment(self.order, self.stream.members, segments[0].start, segments[-1].end)

    def _is_block(self, block: Segment, parts: Sequence[Segment]) -> bool:
        """It returns the stream as it came, holds a layer, and adds something to the stream."""
        if not block.entries or sorted(map(str, map(type_of, block.entries))) != sorted(
            map(str, map(type_of, block.exits))
        ):
            return False
        if not any(node in self.layers for node in block.nodes):
            return False
        values = {value for part in parts for value in part.start.values}
        inside = set(block.nodes)
        return any(_adds(node, values, inside, self.layers) for node in block.nodes)

    def _extended(self, blocks: list[Segment]) -> list[Segment]:
        """Blocks before the first one that compute the same."""
        while len(blocks) > 1:
            roles = [_index(blocks[1].entries, node) for node in blocks[0].exits]
            if None in roles:
                break
            exits = [blocks[0].entries[role] for role in roles if role is not None]
            before = alike(blocks[0], exits, self.order, self.position)
            if before is None:
                break
            blocks = [before, *blocks]
        return blocks

    def _pair(self, segments: Sequence[Segment], heavy: Sequence[bool]) -> list[Segment] | None:
        """A stack whose only whole block among ``segments`` is its last one; the one before differs in its inputs."""
        if len(segments) > _PAIRED:
            return None
        for size in range(1, min(len(segments), _WIDEST_PAIR) + 1):
            for start in range(len(segments) - size + 1):
                parts = segments[start : start + size]
                if not any(heavy[start : start + size]) or not _same_width(parts[0].start, parts[-1].end):
                    continue
                block = self._joined(parts)
                if not self._is_block(block, parts):
                    continue
                for exits in itertools.permutations(block.entries):
                    if list(map(type_of, exits)) == list(map(type_of, block.exits)):
                        before = alike(block, exits, self.order, self.position)
                        if before is not None:
                            return self._extended([before, block])
        return None


def _common(paths: Sequence[Sequence[str]]) -> int:
    """How many leading parts all paths share."""
    return sum(1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False)))


def _equal(blocks: Sequence[Segment]) -> list[Segment] | None:
    """The longest stretch of blocks that are equal as wholes."""
    groups = [list(group) for _, group in itertools.groupby(blocks, key=lambda block: block.structure)]
    best = max(groups, key=len)
    return best if len(best) > 1 else None


def _same_width(start: Place, end: Place) -> bool:
    return sorted(str(type_of(node)) for node in start.values) == sorted(str(type_of(node)) for node in end.values)


def _index(items: Sequence[Node], wanted: Node) -> int | None:
    return next((index for index, item in enumerate(items) if item is wanted), None)


def _adds(node: Node, values: set[Node], inside: set[Node], layers: set[Node]) -> bool:
    """True when ``node`` adds something computed inside to a value of the stream, or to a projection of it."""
    if operation(node) not in ("add", "add_") or len(node.args) < 2:
        return False
    for one, other in (node.args[:2], node.args[1::-1]):
        if tensor(one) is None or tensor(other) is None or type_of(one) != type_of(node):  # type: ignore[arg-type]
            continue
        if other in inside and other not in values and _base(one, layers, values) in values:
            return True
    return False


def _base(node: Any, layers: set[Node], values: set[Node]) -> Node:
    """What ``node`` is a view of; behind one layer and one concatenation (a skip beside the stream), if there are."""
    projected = joined = False
    while node not in values:
        read = next((item for item in node.all_input_nodes), None)
        if read is None:
            break
        if operation(node) == "cat" and not joined:
            joined = True
            read = next((item for item in node.all_input_nodes if item in values), read)
        elif node in layers and not projected:
            projected = True
        elif operation(node) not in _PASSED:
            break
        node = read
    return node
