"""C++ kernels compiled several to a file: each computes what it did alone, and what does not compile says so."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor import config
from torch._inductor.async_compile import AsyncCompile

from laconic.backends import kernel_units as units
from laconic.backends.collector import old_objects_at_rest

SOURCE = """
#include <cmath>
extern "C"  void  kernel(const float* in_ptr0, float* out_ptr0, const int64_t ks0)
{{
    for (int64_t i = 0; i < ks0; i++) out_ptr0[i] = {value};
}}
"""
ARGUMENTS = ["const float*", "float*", "const int64_t"]


def generated(*values: str) -> dict[str, Any]:
    """What the module that Inductor generates does when it is loaded: ask for kernels, then wait."""
    compiler = AsyncCompile()
    asked = {f"f{i}": compiler.cpp_pybinding(ARGUMENTS, SOURCE.format(value=text)) for i, text in enumerate(values)}
    compiler.wait(asked)
    return asked


def result(kernel: Callable[..., None]) -> torch.Tensor:
    out = torch.empty(3)
    kernel(torch.tensor([1.0, 2.0, 3.0]), out, 3)
    return out


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The C++ files that are built."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache as Cache

    built: list[str] = []
    original = Cache.load_async.__func__  # type: ignore[attr-defined]

    def load_async(cls: Any, code: str, *args: Any, **kwargs: Any) -> Any:
        built.append(code)
        return original(cls, code, *args, **kwargs)

    monkeypatch.setattr(Cache, "load_async", classmethod(load_async))
    return built


@pytest.mark.parametrize("threads", [1, 2])
def test_several_kernels_come_from_one_file(files: list[str], threads: int) -> None:
    values = ("in_ptr0[i] + 1", "in_ptr0[i] * 2", "std::sqrt(in_ptr0[i])", "in_ptr0[i] + 1")
    with config.patch(compile_threads=threads):
        with units.kernel_units() as ready:
            scope = generated(*values)
            other = generated(values[1], "-in_ptr0[i]")
        ready()
        ready()
    x = torch.tensor([1.0, 2.0, 3.0])
    for name, expected in zip(scope, (x + 1, x * 2, x.sqrt(), x + 1), strict=True):
        assert torch.equal(result(scope[name]), expected)
    assert torch.equal(result(other["f0"]), x * 2) and torch.equal(result(other["f1"]), -x)
    # A kernel asked for twice is compiled once; the second module brought one new kernel only.
    assert [code.count("PyMODINIT_FUNC") for code in files] == [3, 1]


def test_kernels_are_there_when_somebody_waits_and_not_before() -> None:
    with config.patch(compile_threads=2):
        with units.kernel_units() as ready:
            scope = generated("in_ptr0[i] + 4", "in_ptr0[i] + 5")
            assert not any(map(callable, scope.values()))
            # Another thread's compile is none of our business.
            thread = threading.Thread(target=lambda: scope.update(theirs=generated("in_ptr0[i] + 6")))
            thread.start()
            thread.join()
            assert callable(scope.pop("theirs")["f0"])
        assert AsyncCompile.wait is units._own_wait and AsyncCompile.cpp_pybinding is units._own_binding
        ready()
    assert torch.equal(result(scope["f1"]), torch.tensor([6.0, 7.0, 8.0]))


def test_what_does_not_compile_together_is_compiled_alone(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = units._file
    monkeypatch.setattr(units, "_file", lambda unit: "#error no\n" + original(unit))
    with units.kernel_units() as ready:
        scope = generated("in_ptr0[i] + 7", "in_ptr0[i] + 8")
    ready()
    assert torch.equal(result(scope["f0"]), torch.tensor([8.0, 9.0, 10.0]))
    assert torch.equal(result(scope["f1"]), torch.tensor([9.0, 10.0, 11.0])) and len(files) == 3


def test_a_kernel_that_does_not_compile_raises_each_time() -> None:
    with config.patch(compile_threads=2):
        with units.kernel_units() as ready:
            generated("in_ptr0[i] + 9", "nothing_of_that_name")
        for _ in range(2):
            with pytest.raises(Exception, match="nothing_of_that_name"):
                ready()


def test_long_kernels_go_to_files_of_their_own(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "LARGEST", 100)
    with units.kernel_units() as ready:
        generated(*(f"in_ptr0[i] + {value}" for value in (10, 11, 12)))
    ready()
    assert [code.count("PyMODINIT_FUNC") for code in files] == [1, 1, 1]


class Two(nn.Module):
    """Several kernels: two normalisations and an activation between products."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.last = nn.LayerNorm(24), nn.LayerNorm(48)
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.last(torch.nn.functional.gelu(self.up(self.norm(x)))))


def test_a_model_computes_what_it_does_without(files: list[str]) -> None:
    torch._dynamo.reset()
    model, x = Two(), torch.randn(2, 7, 24)
    with torch.no_grad():
        theirs = torch.compile(model)(x)
        alone = len(files)
        files.clear()
        torch._dynamo.reset()
        assert torch.equal(torch.compile(model, backend="laconic")(x), theirs)
    assert len(files) < alone and files[0].count("PyMODINIT_FUNC") == alone


def test_garbage_is_collected_while_old_objects_rest() -> None:
    class Loop:
        alive = 0

        def __init__(self) -> None:
            self.me = self
            Loop.alive += 1

        def __del__(self) -> None:
            Loop.alive -= 1

    frozen = gc.get_freeze_count()
    with old_objects_at_rest():
        Loop()
        gc.collect()
        assert Loop.alive == 0
        with old_objects_at_rest():
            pass
        assert gc.get_freeze_count() > frozen
    assert gc.get_freeze_count() == frozen
