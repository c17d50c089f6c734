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
import inspect
import logging
import math
import re
import string
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from torch._inductor import async_compile, codecache
from torch._inductor.async_compile import AsyncCompile

from .link_stubs import link_against_stub

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
class _Later:
    """A kernel in the generated module that calls it, until it is compiled: the first call puts it in its place.

    Inductor may hand the same module out again before that, so it has to work without anybody waiting for it.
    """

    scope: dict[str, Any]
    name: str
    load: Load

    def get(self) -> Any:
        """Wait for the kernel, and let the module call it directly from now on."""
        kernel = self.scope[self.name] = self.load()
        return kernel

    def __call__(self, *args: Any) -> Any:
        return self.get()(*args)


@dataclass(eq=False)
class Units:
    """The kernels asked for in one ``with`` block, under one configuration of Inductor."""

    known: dict[_Kernel, Load] = field(default_factory=dict)
    begun: list[_Later] = field(default_factory=list)

    def wait(self) -> None:
        """Return when every kernel is compiled. Raises what Inductor raises for one that does not compile."""
        for kernel in self.begun:
            kernel.get()


_current: contextvars.ContextVar[Units | None] = contextvars.ContextVar("laconic_kernel_units", default=None)
_lock = threading.RLock()
_own_binding: Any = getattr(AsyncCompile, "cpp_pybinding", None)
_own_wait: Any = getattr(AsyncCompile, "wait", None)


def _known_form() -> bool:
    """Whether this torch has what is used here in the form it is used in; if not, Inductor is left to itself."""
    cache = getattr(codecache, "CppPythonBindingsCodeCache", None)
    names = ("get_compile_threads", "kernel_code_log")
    if cache is None or not all(hasattr(async_compile, name) for name in names):
        return False
    expected = {
        (AsyncCompile, "cpp_pybinding"): ("self", "argtypes", "source_code"),
        (AsyncCompile, "wait"): ("self", "scope"),
        (AsyncCompile, "submit"): ("task",),
    }
    for (owner, name), parameters in expected.items():
        if tuple(inspect.signature(getattr(owner, name, len)).parameters) != parameters:
            return False
    if "submit_fn" not in inspect.signature(getattr(cache, "load_async", len)).parameters:
        return False
    if "submit_fn" not in inspect.signature(getattr(cache, "load_pybinding_async", len)).parameters:
        return False
    template, call = getattr(cache, "suffix_template", ""), getattr(cache, "call_entry_function", "")
    fields = {"arg_len", "call_entry_func", "entry_func", "extra_parse_arg"}
    found = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    own = getattr(cache, "entry_function", "") == "kernel" and call.startswith("kernel({})")
    return own and found == fields and "PyInit_{entry_func}" in template


@contextlib.contextmanager
def kernel_units() -> Iterator[Units]:
    """Kernels asked for inside are compiled beside what goes on; whoever calls one, or waits for them all, gets them.

    A kernel that does not compile raises then, each time.
    """
    units = Units()
    if not _known_form():
        yield units
        return
    with _lock:
        token = _current.set(units)
        try:
            with (
                mock.patch.object(AsyncCompile, "cpp_pybinding", _asked),
                mock.patch.object(AsyncCompile, "wait", _wait),
            ):
                yield units
        finally:
            _current.reset(token)


def _asked(self: AsyncCompile, argtypes: list[str], source_code: str) -> Any:
    """In place of ``AsyncCompile.cpp_pybinding``: remember the kernel until all of its module are known."""
    if _current.get() is None or not _KERNEL.match(source_code) or len(re.findall(r"\bkernel\b", source_code)) != 1:
        return _own_binding(self, argtypes, source_code)
    async_compile.kernel_code_log.info("CPP+Bindings Kernel:\n%s", source_code)
    return _Kernel(tuple(argtypes), source_code)


def _wait(self: AsyncCompile, scope: dict[str, Any]) -> None:
    """In place of ``AsyncCompile.wait``: begin to compile what is missing, and wait for none of it."""
    units = _current.get()
    if units is not None:
        asked = {name: value for name, value in scope.items() if isinstance(value, _Kernel)}
        units.known |= _started([kernel for kernel in dict.fromkeys(asked.values()) if kernel not in units.known])
        for name, kernel in asked.items():
            scope[name] = _Later(scope, name, units.known[kernel])
            units.begun.append(scope[name])
    _own_wait(self, scope)


def _started(kernels: Sequence[_Kernel]) -> dict[_Kernel, Load]:
    """Begin to compile new kernels, in about as many files as there are compilers at work."""
    threads = async_compile.get_compile_threads()
    submit = functools.partial(_submitted, threads)
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


def _submitted(threads: int, task: Any) -> Any:
    """Hand a build to Inductor's compilers; without any, it is run by who asks for its result first."""
    link_against_stub(task)
    return AsyncCompile.submit(task) if threads > 1 else None


def _alone(kernel: _Kernel, submit: Any) -> Load:
    load: Load = codecache.CppPythonBindingsCodeCache.load_pybinding_async(
        kernel.arguments, kernel.source, submit_fn=submit
    )
    return load


def _together(unit: Sequence[_Kernel], submit: Any) -> dict[_Kernel, Load]:
    """Compile kernels as one file that holds a Python module for each."""
    failed: list[Exception] = []
    try:
        build = codecache.CppPythonBindingsCodeCache.load_async(_file(unit), submit_fn=submit)
    except Exception:
        log.debug("kernels cannot be put into one file", exc_info=True)
        return {kernel: _alone(kernel, submit) for kernel in unit}

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
    return "kernel" if index == 0 else f"kernel_{index}"


def _file(unit: Sequence[_Kernel]) -> str:
    """One C++ file: what kernels and bindings include, then each of them in a namespace of its own."""
    parts = [_one(kernel, _name(index)) for index, kernel in enumerate(unit)]
    head = dict.fromkeys(line.strip() for part in parts for line in _HOISTED.findall(part))
    spaces = [f"namespace unit_{index} {{\n{_HOISTED.sub('', part)}\n}}" for index, part in enumerate(parts)]
    return "\n".join([*sorted(head, key=lambda line: not line.startswith("#define")), *spaces])


def _one(kernel: _Kernel, name: str) -> str:
    """A kernel under another name, with Inductor's bindings for it."""
    cache = codecache.CppPythonBindingsCodeCache
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
    if name == _name(0):
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
