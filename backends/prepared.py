"""Tensors derived from parameters on the host (packed weights), kept while the parameters are unchanged.

Nothing about a parameter is fixed when compiling: Dynamo shares one graph between all instances of a class, and does
not compile again when weights change. So each call looks at the tensors that came in. A derived tensor is reused while
its source is the same object with the same memory, version and sampled content. The sample is needed because writing
through ``.data`` changes no version. It meets every row and every column; a write through ``.data`` that changes no
sampled element (a single one elsewhere, say) is the one kind of change that is not seen.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..passes.plan import Prepared

Derive = Callable[[Tensor], tuple[Tensor, ...]]

SMALL = 4096
"""Tensors of up to this many elements are compared whole."""

LINE = 16
"""Elements read side by side: float32 elements in a cache line."""


class PreparedInputs:
    """The prepared inputs of one compiled graph: call it with the graph's inputs, get the tensors to append.

    ``specs`` pairs the position of each source among the inputs with what to derive from it. Results of all specs
    follow each other in order. Sources are held weakly: derived tensors are freed with the parameter, or with the
    last compiled graph that uses them, and graphs with equal derivations of one parameter share them. Safe to call
    from several threads.
    """

    def __init__(self, specs: Sequence[tuple[int, Prepared]]) -> None:
        self._specs = [(position, item.key, item.derive) for position, item in specs]
        self._positions = [position for position, _, _ in self._specs]
        # One set of sources for each instance of the model that calls this graph, found by its first source.
        self._sets: dict[int, _Set] = {}
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[Any]) -> list[Tensor]:
        """The derived tensors for these inputs, made now if a source is new or has changed."""
        if not self._positions:
            return []
        sources = [inputs[position] for position in self._positions]
        with torch.no_grad():
            known = self._sets.get(id(sources[0]))
            if known is not None and known.holds(sources):
                return list(known.results)
            with self._lock, torch.inference_mode(False), torch.no_grad():
                return self._prepare(sources)

    def _prepare(self, sources: list[Tensor]) -> list[Tensor]:
        if any(type(source) not in _KEPT for source in sources):
            # Subclasses (fake and distributed tensors among them) are not looked into: derived anew each time.
            derived = [derive(source) for source, (_, _, derive) in zip(sources, self._specs, strict=True)]
            return [tensor for tensors in derived for tensor in tensors]
        rows = [_derived(source, key, derive) for source, (_, key, derive) in zip(sources, self._specs, strict=True)]
        first = id(sources[0])
        fresh = _Set(sources, rows, _forget(self._sets, first))
        self._sets[first] = fresh
        return list(fresh.results)


_KEPT = (torch.Tensor, torch.nn.Parameter)


class _Set:
    """The derived tensors of one set of sources, and all that is needed to see that the sources are unchanged."""

    def __init__(
        self, sources: Sequence[Tensor], rows: Sequence[_Derived], forget: Callable[[weakref.ref[Tensor]], None]
    ) -> None:
        self.rows = rows
        self.results = [tensor for row in rows for tensor in row.tensors]
        self.references = [weakref.ref(source, forget) for source in sources]
        self.states = [row.state for row in rows]
        # On CPU one comparison for each source: a longer one would wake the thread pool. Elsewhere every comparison
        # waits for the device, so there is one for all sources of a device.
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, source in enumerate(sources):
            if source.device.type != "cpu":
                groups.setdefault((source.device, source.dtype), []).append(index)
        self.alone = [(index, row.sample) for index, row in enumerate(rows) if row.sample.device.type == "cpu"]
        self.together = [(group, torch.cat([rows[index].sample for index in group])) for group in groups.values()]

    def holds(self, sources: Sequence[Tensor]) -> bool:
        for source, reference, state in zip(sources, self.references, self.states, strict=True):
            if reference() is not source or _state(source) != state:
                return False
        return all(_same(_sample(sources[index]), sample) for index, sample in self.alone) and all(
            _same(torch.cat([_sample(sources[index]) for index in group]), sample) for group, sample in self.together
        )


class _Derived:
    """What one derivation made of one tensor, in the state it then had."""

    def __init__(self, source: Tensor, derive: Derive) -> None:
        self.reference = weakref.ref(source)
        self.state = _state(source)
        # Sampled before deriving: a write by another thread in between is then seen at the next call.
        self.sample = _sample(source)
        self.tensors = tuple(derive(source))

    def holds(self, source: Tensor) -> bool:
        return self.reference() is source and self.state == _state(source) and _same(_sample(source), self.sample)


# Shared between graphs; an entry lives as long as some graph's _Set holds it.
_shared: weakref.WeakValueDictionary[tuple[int, str], _Derived] = weakref.WeakValueDictionary()


def _derived(source: Tensor, key: str, derive: Derive) -> _Derived:
    known = _shared.get((id(source), key))
    if known is None or not known.holds(source):
        known = _Derived(source, derive)
        _shared[id(source), key] = known
    return known


def _forget(sets: dict[int, _Set], first: int) -> Callable[[weakref.ref[Tensor]], None]:
    """A callback for a source that died: its set can never match again, so its tensors are let go."""

    def forget(reference: weakref.ref[Tensor]) -> None:
        known = sets.get(first)
        if known is not None and any(reference is mine for mine in known.references):
            sets.pop(first, None)

    return forget


def _state(source: Tensor) -> tuple[Any, ...]:
    """Where a tensor's elements are and how often they were written, as far as torch counts."""
    # Tensors made in inference mode count no versions; asking raises.
    version = None if source.is_inference() else source._version
    return (source.data_ptr(), version, source.shape, source.stride(), source.dtype)


def _sample(source: Tensor) -> Tensor:
    """Elements that together meet every row and every column of ``source``, in one dimension."""
    if source.numel() <= SMALL or source.dim() == 0:
        return source.flatten().clone()
    flat = source
    if not source.is_contiguous():
        if source.dim() != 2 or not source.t().is_contiguous():
            return source.flatten().clone()
        flat = source.t()
    return flat.view(-1).index_select(0, _index(flat.shape[0], flat.numel() // flat.shape[0], source.device))


@functools.lru_cache(maxsize=256)
def _index(rows: int, columns: int, device: torch.device) -> Tensor:
    """Where to look in a row-major matrix, touching as few cache lines as possible: they are what a look costs.

    Rows in pairs, where the end of one lies beside the start of the next; columns in runs of one line, each run in
    another row.
    """
    last = rows * columns - 1
    ends = torch.arange(1, rows + 1, 2) * columns - 1
    starts = (ends + 1).clamp(max=last)
    if rows % 2:
        starts = starts[:-1]
    column = torch.arange(columns)
    run = column // LINE
    runs = columns // LINE + 1
    across = (run * max(rows // runs, 1) + rows // (2 * runs)) % rows * columns + column
    places = torch.cat((ends, starts, across)).unique()
    return places.to(device=device, dtype=torch.int32 if last < 2**31 else torch.int64)


def _same(sample: Tensor, reference: Tensor) -> bool:
    """Equality, where NaN in one place equals itself. Shapes and types are equal already."""
    if torch.equal(sample, reference):
        return True
    return torch.equal(sample.nan_to_num(), reference.nan_to_num()) and torch.equal(sample.isnan(), reference.isnan())
