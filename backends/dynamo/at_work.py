"""While Dynamo works on a frame for this backend, it has room on the frame stack and old objects are left in peace.

The backend gives itself the same (``backends/entry.py``): others may call it, and a Dynamo that has no such function.

Private torch modules are touched here on purpose; docs/private_torch.md lists them with the versions checked.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch._dynamo import convert_frame

from ..collector import old_objects_at_rest
from ..frame_stack import with_room
from .replaced import replace
from .tracing import is_this_backend

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _eased(compile_frame: Callable[_P, _R]) -> Callable[_P, _R] | None:
    parameters = list(inspect.signature(compile_frame).parameters)
    if "compiler_fn" not in parameters:
        return None
    place = parameters.index("compiler_fn")

    @functools.wraps(compile_frame)
    def _compile(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        compiler = args[place] if len(args) > place else kwargs.get("compiler_fn")
        if not is_this_backend(compiler):
            return compile_frame(*args, **kwargs)
        with old_objects_at_rest():
            return with_room(compile_frame, *args, **kwargs)

    return _compile


replace(convert_frame, "_compile", _eased)
