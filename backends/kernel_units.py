"""C++ kernels of one graph are compiled several to a file, while the next graph is lowered.

Inductor starts one C++ compiler for each kernel and waits for them before it goes on. Most of what such a compiler does
is the same for every kernel (instantiating the vector library and the bindings), so few files with several kernels each
are ready sooner than many files with one. And nobody needs a kernel before its first call.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.util
import logging
import math
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from torch._inductor import async_compile
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import CppPythonBindingsCodeCache, LambdaFuture

log = logging.getLogger(__name__)

USUAL = 4
"""Kernels in one file, where that keeps all compilers at work."""

LARGEST = 1 << 16
"""Characters of kernels in one file, about; compilers stop inlining in files that are too large."""

_KERNEL = re.compile(r'\s*(?:#include <[^>]*>\s+)+extern "C"\s+void\s+kernel\s*\(')
_HOISTED = re.compile(r"^[ \t]*(?:#include\b|#define PY_SSIZE_T_CLEAN\b).*$", re.MULTILINE)

Load = Callable[[], Any]


@dataclass(frozen=True)
class _Kernel:
    """One kernel as generated code asks for it: the C++ types of its arguments, and its source."""

    arguments: tuple[str, ...]
    source: str


@dataclass(eq=False)
class _Batch:
    """What is asked for in one ``with`` block, under one configuration of Inductor.

    ``known`` says how to get each kernel, ``waiting`` has the generated modules that kernels are still to be put into.
    """

    known: dict[_Kernel, Load] = field(default_factory=dict)
    waiting: list[tuple[AsyncCompile, dict[str, Any]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self) -> None:
        """Put every kernel into the module that asked for it."""
        with self.lock:
            while self.waiting:
                compiler, scope = self.waiting[-1]
                _own_wait(compiler, scope)
                self.waiting.pop()
            self.known.clear()


_current: contextvars.ContextVar[_Batch | None] = contextvars.ContextVar("laconic_kernel_units", default=None)
_lock = threading.RLock()
_own_binding = AsyncCompile.cpp_pybinding
_own_wait = AsyncCompile.wait


@contextlib.contextmanager
def kernel_units() -> Iterator[Callable[[], None]]:
    """Kernels asked for inside are compiled beside what goes on, until the function given is called.

    It puts the kernels in place, must be called before any code compiled inside runs, and may be called again and by
    several threads. It raises what Inductor raises for a kernel that does not compile.
    """
    batch = _Batch()
    with _lock:
        token = _current.set(batch)
        try:
            with (
                mock.patch.object(AsyncCompile, "cpp_pybinding", _asked),
                mock.patch.object(AsyncCompile, "wait", _wait),
            ):
                yield batch.wait
        finally:
            _current.reset(token)


def _asked(self: AsyncCompile, argtypes: list[str], source_code: str) -> Any:
    """In place of ``AsyncCompile.cpp_pybinding``: remember the kernel until all of its module are known."""
    if _current.get() is None or not _KERNEL.match(source_code) or len(re.findall(r"\bkernel\b", source_code)) != 1:
        return _own_binding(self, argtypes, source_code)
    async_compile.kernel_code_log.info("CPP+Bindings Kernel:\n%s", source_code)
    return _Kernel(tuple(argtypes), source_code)


def _wait(self: AsyncCompile, scope: dict[str, Any]) -> None:
    """In place of ``AsyncCompile.wait``: start what is missing, and put off waiting."""
    batch = _current.get()
    if batch is None:
        _own_wait(self, scope)
        return
    asked = {name: value for name, value in scope.items() if isinstance(value, _Kernel)}
    batch.known |= _started([kernel for kernel in dict.fromkeys(asked.values()) if kernel not in batch.known])
    threaded = async_compile.get_compile_threads() > 1
    for name, kernel in asked.items():
        scope[name] = LambdaFuture(batch.known[kernel]) if threaded else batch.known[kernel]()
    batch.waiting.append((self, scope))


def _started(kernels: Sequence[_Kernel]) -> dict[_Kernel, Load]:
    """Begin to compile new kernels, in about as many files as there are compilers at work."""
    threads = async_compile.get_compile_threads()
    submit = AsyncCompile.submit if threads > 1 else None
    size = sum(len(kernel.source) for kernel in kernels)
    count = max(1, min(threads, math.ceil(len(kernels) / USUAL)), math.ceil(size / LARGEST))
    units: list[list[_Kernel]] = [[] for _ in range(count)]
    # The longest first, each into the file that is shortest so far.
    for kernel in sorted(kernels, key=lambda kernel: -len(kernel.source)):
        min(units, key=lambda unit: sum(len(item.source) for item in unit)).append(kernel)
    started: dict[_Kernel, Load] = {}
    for unit in filter(None, units):
        started |= {unit[0]: _alone(unit[0], submit)} if len(unit) == 1 else _together(unit, submit)
    return started


def _alone(kernel: _Kernel, submit: Any) -> Load:
    load: Load = CppPythonBindingsCodeCache.load_pybinding_async(kernel.arguments, kernel.source, submit_fn=submit)
    return load


def _together(unit: Sequence[_Kernel], submit: Any) -> dict[_Kernel, Load]:
    """Compile kernels as one file that holds a Python module for each."""
    build = CppPythonBindingsCodeCache.load_async(_file(unit), submit_fn=submit)
    failed: list[Exception] = []

    def load(kernel: _Kernel, name: str) -> Any:
        if not failed:
            try:
                return getattr(_module(build(), name), name)
            except Exception as error:  # each alone then says what is wrong with it
                log.debug("kernels do not compile in one file", exc_info=True)
                failed.append(error)
        return _alone(kernel, None)()

    # Pieces that share a kernel each ask for it.
    return {kernel: functools.cache(functools.partial(load, kernel, _name(index))) for index, kernel in enumerate(unit)}


def _name(index: int) -> str:
    # The first one is what the code cache loads the file as.
    return CppPythonBindingsCodeCache.entry_function if index == 0 else f"kernel_{index}"


def _file(unit: Sequence[_Kernel]) -> str:
    """One C++ file: what kernels and bindings include, then each of them in a namespace of its own."""
    parts = [_one(kernel, _name(index)) for index, kernel in enumerate(unit)]
    head = dict.fromkeys(line.strip() for part in parts for line in _HOISTED.findall(part))
    spaces = [f"namespace unit_{index} {{\n{_HOISTED.sub('', part)}\n}}" for index, part in enumerate(parts)]
    return "\n".join([*sorted(head, key=lambda line: not line.startswith("#define")), *spaces])


def _one(kernel: _Kernel, name: str) -> str:
    """A kernel under another name, with Inductor's bindings for it."""
    cache = CppPythonBindingsCodeCache
    values = (f"parse_arg<{kind.replace('const ', '')}>(args, {place})" for place, kind in enumerate(kernel.arguments))
    bindings = cache.suffix_template.format(
        arg_len=len(kernel.arguments),
        call_entry_func=cache.call_entry_function.replace("kernel", name).format(", ".join(values)),
        entry_func=name,
        extra_parse_arg="",
    )
    return re.sub(r"\bkernel\b", name, kernel.source) + bindings


def _module(library: Any, name: str) -> Any:
    """The module called ``name`` in the file ``library`` was loaded from."""
    if name == CppPythonBindingsCodeCache.entry_function:
        return library
    full = f"{library.key}.{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, library.__file__)
        if spec is None or spec.loader is None:
            raise ImportError(f"{library.__file__} is no module")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[full] = module
    return sys.modules[full]
