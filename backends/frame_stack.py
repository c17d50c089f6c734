"""A compile runs on one large piece of the interpreter's frame stack.

CPython keeps the frames of Python functions in chunks of 16 KiB. Where a call happens to cross from one chunk to the
next, the new chunk is mapped by the operating system, and unmapped when the call returns; a function called in a loop
just there costs several times what it costs elsewhere. Compilers are such loops, tens of frames deep, and were found to
take up to twice as long for no other reason than the depth at which the user's program called the model.

A frame that does not fit makes the interpreter take a chunk of twice its size, so below one frame that asks for much
stack (and never touches it) there is room for everything that is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

_SLOTS = (1 << 16) + 1
"""Values on the stack of the large frame: just over 512 KiB, so that the chunk has 1 MiB."""


def with_room(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Call ``function`` where no call below it crosses from one chunk of frames to another."""
    return function(*args, **kwargs)


with_room.__code__ = with_room.__code__.replace(co_stacksize=_SLOTS)
