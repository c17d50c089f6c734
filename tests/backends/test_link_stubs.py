"""Kernels linked against an empty library: what they call is found when they are loaded."""

from __future__ import annotations

import ctypes
import functools
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._inductor import config
from torch._inductor.codecache import CppCodeCache

from laconic.backends import kernel_units, link_stubs
from laconic.backends.inductor import compile_graph
from laconic.backends.options import Options
from tests.backends.test_pieces import captured

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other linkers want every symbol resolved")

LIBRARIES = "-ltorch -ltorch_cpu -ltorch_python -lgomp "


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands by which C++ is built."""
    from torch._inductor import cpp_builder

    seen: list[str] = []
    build = cpp_builder.CppBuilder.build

    def recorded(self: Any) -> None:
        seen.append(self.get_command_line())
        build(self)

    monkeypatch.setattr(cpp_builder.CppBuilder, "build", recorded)
    return seen


@pytest.mark.parametrize("threads", [1, 2])
def test_a_kernel_that_calls_torch_works(commands: list[str], threads: int) -> None:
    # Both functions are Sleef's, which libtorch_cpu exports.
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.expm1(torch.erf(x) * (2.5 + threads))

    x = torch.linspace(-2, 2, 4096)
    graph = captured(model, x)[0]
    with config.patch(compile_threads=threads, force_disable_caches=True):
        with kernel_units.kernel_units() as kernels:
            compiled = compile_graph(graph.module, [x], Options())
        kernels.wait()
    torch.testing.assert_close(compiled(x)[0], model(x))
    (command,) = (command for command in commands if "main.cpp" in command)
    assert "laconic_link_stubs" in command and "-ltorch_python" not in command
    library = command.split(" -o ")[1].split()[0]
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu.so" in needed and "libtorch_python" not in needed


def task(**fields: Any) -> functools.partial[None]:
    return functools.partial(print, "lock", (SimpleNamespace(**fields),))


def test_builds_of_another_form_are_left_alone() -> None:
    builders: list[dict[str, Any]] = [
        {"_libraries_args": None, "_compiler": "g++"},
        {"_libraries_args": LIBRARIES},
        {"_libraries_args": "-ltorch -lc10 ", "_compiler": "g++"},
    ]
    for fields in builders:
        build = task(**fields)
        link_stubs.link_against_stub(build)
        assert vars(build.args[-1][0]) == fields
    for other in (print, functools.partial(print), functools.partial(print, "lock", object())):
        link_stubs.link_against_stub(other)


def test_no_stub_where_it_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(link_stubs, "default_cache_dir", lambda: str(tmp_path))
    assert link_stubs._stub.__wrapped__("no-such-compiler") is None
    build = task(_libraries_args=LIBRARIES, _compiler="no-such-compiler")
    link_stubs.link_against_stub(build)
    assert build.args[-1][0]._libraries_args == LIBRARIES
    folder = link_stubs._stub.__wrapped__("g++")
    assert folder is not None and [path.name for path in folder.iterdir()] == ["libtorch_cpu.so"]


def test_other_code_is_linked_as_inductor_does(commands: list[str]) -> None:
    source = f'extern "C" double laconic_other() {{ return {math.pi!r}; }}'
    library = CppCodeCache.load(source)
    library.laconic_other.restype = ctypes.c_double
    assert library.laconic_other() == math.pi
    assert all("laconic_link_stubs" not in command for command in commands)
