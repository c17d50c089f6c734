"""Which compiled object a graph belongs to: reports and sessions find their graphs here.

Dynamo calls a backend without saying for whom. The wrapper ``torch.compile`` made is the caller's ``self``, and the
frame being compiled hangs from Dynamo's output graph further up the stack; both are read, neither is changed.
Two objects compiled with equal settings share compiled code, so the second one may own no graph of its own: its report
is then found by equal settings and the same code object.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

import torch

from ..passes.report import GraphReport


@dataclass(eq=False)
class Origin:
    """Who a graph was compiled for: the ``torch.compile`` wrapper, the frame's code, and the module (weakly) if any."""

    wrapper: Any = None
    code: CodeType | None = None
    module: weakref.ref[torch.nn.Module] | None = None


@dataclass(eq=False)
class Entry:
    """One compiled graph: its origin, its report and the graph sources when debug output was asked for."""

    origin: Origin
    report: GraphReport
    sources: dict[str, str] = field(default_factory=dict)


_lock = threading.Lock()
_entries: list[Entry] = []
_count = 0


def next_number() -> int:
    """A number for the next compiled graph of this process."""
    global _count
    with _lock:
        _count += 1
        return _count - 1


def current_origin() -> Origin:
    """The origin of the backend call in progress; empty outside one."""
    from torch._dynamo.output_graph import OutputGraph

    origin = Origin()
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if origin.wrapper is None and isinstance(owner, torch._TorchCompileWrapper):
            origin.wrapper = owner
        if isinstance(owner, OutputGraph):
            origin.code = owner.root_tx.f_code
            module = _module_of(owner.local_scope)
            if module is not None:
                origin.module = weakref.ref(module)
            break
        frame = frame.f_back  # type: ignore[assignment]
    return origin


def _module_of(scope: Mapping[str, Any]) -> torch.nn.Module | None:
    """The module whose frame has the variables ``scope``.

    Dynamo does not trace the frames of torch's own modules: it wraps their call in a function that closes over it.
    """
    owner = scope.get("self", scope.get("fn"))
    owner = getattr(owner, "__self__", owner)
    return owner if isinstance(owner, torch.nn.Module) else None


def commit(entry: Entry) -> None:
    """Keep the entry of a graph whose pieces have compiled. (Dynamo may call a backend twice for one frame.)"""
    with _lock:
        _entries.append(entry)


def wrapper_of(compiled: Any) -> Any:
    """The ``torch.compile`` wrapper inside what ``torch.compile`` returned, or None for anything else."""
    if isinstance(compiled, torch.nn.Module) and not isinstance(compiled, torch._dynamo.eval_frame.OptimizedModule):
        # A module compiled in place keeps its compiled call under a private name.
        compiled = compiled._compiled_call_impl
        if compiled is None:
            return None
    for candidate in _reachable(compiled):
        if isinstance(candidate, torch._TorchCompileWrapper):
            return candidate
    return None


def is_laconic(wrapper: Any) -> bool:
    """Whether a ``torch.compile`` wrapper calls this backend."""
    from .entry import Backend, laconic

    return wrapper is not None and (wrapper.compiler_fn is laconic or isinstance(wrapper.compiler_fn, Backend))


def entries_of(compiled: Any) -> list[Entry]:
    """The graphs compiled for ``compiled``, in order of compilation; empty before its first call."""
    wrapper = wrapper_of(compiled)
    with _lock:
        known = list(_entries)
    own = [entry for entry in known if entry.origin.wrapper is wrapper]
    if own:
        return own
    codes, original = codes_of(compiled), original_of(compiled)

    def shared(origin: Origin) -> bool:
        same = origin.module is not None and origin.module() is original
        return origin.wrapper == wrapper and (same or origin.code in codes)

    return [entry for entry in known if shared(entry.origin)]


def original_of(compiled: Any) -> Any:
    """The module or function that was compiled."""
    if isinstance(compiled, torch._dynamo.eval_frame.OptimizedModule):
        return compiled._orig_mod
    return getattr(compiled, "_torchdynamo_orig_callable", compiled)


def codes_of(compiled: Any) -> set[CodeType]:
    """The code objects that a compiled module or function may have been traced from."""
    original = original_of(compiled)
    if isinstance(original, torch.nn.Module):
        functions: list[Callable[..., Any]] = [type(module).forward for module in original.modules()]
    else:
        functions = [original]
    return {function.__code__ for function in functions if hasattr(function, "__code__")}


_LEADS = ("dynamo_ctx", "callback", "_torchdynamo_orig_backend", "_torchdynamo_orig_callable", "__wrapped__")


def _reachable(compiled: Any) -> list[Any]:
    """Objects a compiled callable leads to, breadth first: closures, partial state and Dynamo's context objects."""
    seen: set[int] = set()
    queue = [compiled]
    found: list[Any] = []
    while queue and len(found) < 200:
        item = queue.pop(0)
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        found.append(item)
        queue.extend(_attribute(item, name) for name in _LEADS)
        queue.extend(cell for cell in _closure(item) if not isinstance(cell, torch.nn.Module))
    return found


def _attribute(item: Any, name: str) -> Any:
    return item.__dict__.get(name) if hasattr(item, "__dict__") else None


def _closure(item: Any) -> list[Any]:
    values = []
    for cell in getattr(item, "__closure__", None) or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # an empty cell
            continue
    return values


_folders: dict[Path, list[GraphReport]] = {}


def reports_in(folder: Path, report: GraphReport | None = None) -> list[GraphReport]:
    """The reports written to one debug folder so far, a new one among them."""
    with _lock:
        rows = _folders.setdefault(folder, [])
        rows += [report] if report is not None else []
        return list(rows)
