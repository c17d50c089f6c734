"""Whether Dynamo traces for this backend: what it is told to keep whole, or to know, changes nobody else's graphs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch._dynamo.eval_frame import innermost_backend
from torch._dynamo.symbolic_convert import InstructionTranslator

from .. import registry

_here = threading.local()


@contextlib.contextmanager
def for_this_backend() -> Iterator[None]:
    """Trace for this backend on this thread, where no backend is named to Dynamo."""
    before = getattr(_here, "wanted", False)
    _here.wanted = True
    try:
        yield
    finally:
        _here.wanted = before


def traces_for_this_backend() -> bool:
    """True while Dynamo traces a frame whose graphs this backend is to compile."""
    if getattr(_here, "wanted", False):
        return True
    return is_this_backend(InstructionTranslator.current_tx().output.compiler_fn)


def is_this_backend(given: Any) -> bool:
    """Whether what Dynamo was given to compile its graphs with is this backend."""
    compiler = innermost_backend(given) if given is not None else None
    return isinstance(compiler, torch._TorchCompileWrapper) and registry.is_laconic(compiler)
