"""C++ kernels are linked against an empty stand-in for torch's libraries.

Inductor links every kernel against all of libtorch, which takes a quarter of its compile time: the linker reads some
hundred thousand symbols, of which a kernel needs none or a few (Sleef's vector functions). A shared object may leave
symbols open until it is loaded, and a process that loads a kernel has torch loaded. So the linker is given a library of
the same name with nothing in it; the kernel says that it needs ``libtorch_cpu.so``, as it did before.

Private torch modules are touched here on purpose; docs/private_torch.md lists them with the versions checked.
"""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch._inductor.runtime.cache_dir_utils import default_cache_dir

log = logging.getLogger(__name__)

_TORCH = ("-ltorch ", "-ltorch_cpu ", "-ltorch_python ")


def link_against_stub(task: Any) -> None:
    """Change the command of a kernel's build to read no library of torch; a build of another form is left alone.

    ``task`` is what Inductor hands to its compilers: a ``functools.partial`` whose last argument is the builders.
    """
    builders = task.args[-1] if isinstance(task, functools.partial) and task.args else ()
    for builder in builders if isinstance(builders, tuple) else ():
        libraries, compiler = getattr(builder, "_libraries_args", None), getattr(builder, "_compiler", None)
        if not isinstance(libraries, str) or not isinstance(compiler, str):
            continue
        if all(library in libraries for library in _TORCH) and (folder := _stub(compiler)) is not None:
            for library in _TORCH:
                libraries = libraries.replace(library, "")
            stub = f"-L{folder} -Wl,--push-state,--no-as-needed -ltorch_cpu -Wl,--pop-state"
            builder._libraries_args = f"{stub} {libraries}"


@functools.cache
def _stub(compiler: str) -> Path | None:
    """The folder with the empty library, made by the first who asks; None where that does not work."""
    if sys.platform != "linux":
        return None  # other linkers want every symbol resolved
    folder = Path(default_cache_dir()) / "laconic_link_stubs"
    library = folder / "libtorch_cpu.so"
    if library.exists():
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = os.path.join(scratch, library.name)
            options = ["-shared", "-nostdlib", f"-Wl,-soname,{library.name}", "-x", "c", os.devnull, "-o", made]
            subprocess.run([compiler, *options], check=True, capture_output=True, timeout=60)
            os.replace(made, library)  # whole or not at all, whoever else is making it
    except (OSError, subprocess.SubprocessError):
        log.debug("no stub to link against", exc_info=True)
        return None
    return folder
