"""C++ kernels compiled several to a file: each computes what it did alone, and what does not compile says so."""

from __future__ import annotations

import functools
import gc
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor import config
from torch._inductor.async_compile import AsyncCompile

from laconic.backends import kernel_units as units
from laconic.backends.collector import old_objects_at_rest
from laconic.backends.inductor import compile_graph
from laconic.backends.options import Options
from tests.backends.test_pieces import captured

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

    @functools.wraps(original)
    def load_async(cls: Any, code: str, *args: Any, **kwargs: Any) -> Any:
        built.append(code)
        return original(cls, code, *args, **kwargs)

    monkeypatch.setattr(Cache, "load_async", classmethod(load_async))
    return built


@pytest.mark.parametrize("threads", [1, 2])
def test_several_kernels_come_from_one_file(files: list[str], threads: int) -> None:
    values = ("in_ptr0[i] + 1", "in_ptr0[i] * 2", "std::sqrt(in_ptr0[i])", "in_ptr0[i] + 1")
    with config.patch(compile_threads=threads):
        with units.kernel_units() as kernels:
            scope = generated(*values)
            other = generated(values[1], "-in_ptr0[i]")
        kernels.wait()
    x = torch.tensor([1.0, 2.0, 3.0])
    for name, expected in zip(scope, (x + 1, x * 2, x.sqrt(), x + 1), strict=True):
        assert torch.equal(result(scope[name]), expected)
    assert torch.equal(result(other["f0"]), x * 2) and torch.equal(result(other["f1"]), -x)
    # A kernel asked for twice is compiled once; the second module brought one new kernel only.
    assert [code.count("PyMODINIT_FUNC") for code in files] == [3, 1]


def test_kernels_are_there_when_somebody_calls_or_waits() -> None:
    with config.patch(compile_threads=2):
        with units.kernel_units() as kernels:
            scope = generated("in_ptr0[i] + 4", "in_ptr0[i] + 5")
            assert all(isinstance(kernel, units._Later) for kernel in scope.values())
            # Another thread's compile is none of our business.
            thread = threading.Thread(target=lambda: scope.update(theirs=generated("in_ptr0[i] + 6")))
            thread.start()
            thread.join()
            assert callable(scope.pop("theirs")["f0"])
        assert AsyncCompile.wait is units._own_wait and AsyncCompile.cpp_pybinding is units._own_binding
    # Whoever calls a kernel first waits for that one only.
    assert torch.equal(result(scope["f1"]), torch.tensor([6.0, 7.0, 8.0]))
    assert isinstance(scope["f0"], units._Later) and not isinstance(scope["f1"], units._Later)
    kernels.wait()
    assert torch.equal(result(scope["f0"]), torch.tensor([5.0, 6.0, 7.0]))
    assert not isinstance(scope["f0"], units._Later)


def test_what_does_not_compile_together_is_compiled_alone(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = units._file
    monkeypatch.setattr(units, "_file", lambda unit: "#error no\n" + original(unit))
    with units.kernel_units() as kernels:
        scope = generated("in_ptr0[i] + 7", "in_ptr0[i] + 8")
    kernels.wait()
    assert torch.equal(result(scope["f0"]), torch.tensor([8.0, 9.0, 10.0]))
    assert torch.equal(result(scope["f1"]), torch.tensor([9.0, 10.0, 11.0])) and len(files) == 3


def test_a_kernel_that_does_not_compile_raises_each_time() -> None:
    with config.patch(compile_threads=2):
        with units.kernel_units() as kernels:
            generated("in_ptr0[i] + 9", "nothing_of_that_name")
        for _ in range(2):
            with pytest.raises(Exception, match="nothing_of_that_name"):
                kernels.wait()


def test_long_kernels_go_to_files_of_their_own(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "LARGEST", 100)
    with units.kernel_units() as kernels:
        generated(*(f"in_ptr0[i] + {value}" for value in (10, 11, 12)))
    kernels.wait()
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


def test_the_same_module_handed_out_twice_before_anybody_calls_it() -> None:
    """A second compile of an equal graph gets the first one's module from Inductor's cache, its kernels pending."""
    graph, inputs = captured(Two().requires_grad_(False), torch.randn(2, 7, 24))
    made = []
    with config.patch(compile_threads=2):
        for _ in range(2):
            torch._dynamo.reset()
            with units.kernel_units():
                made.append(compile_graph(graph.module, inputs, Options.parse({}, None)))
    expected = graph.module(*inputs)[0]
    for run in reversed(made):
        torch.testing.assert_close(run(*inputs)[0], expected)


@pytest.mark.parametrize("missing", ["cpp_pybinding", "wait", "submit", "suffix_template", "load_async"])
def test_another_torch_is_left_to_itself(monkeypatch: pytest.MonkeyPatch, files: list[str], missing: str) -> None:
    from torch._inductor.codecache import CppPythonBindingsCodeCache as Cache

    if missing == "load_async":

        def load_async(cls: Any, code: str, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("not called in this form")

        monkeypatch.setattr(Cache, "load_async", classmethod(load_async))
    elif missing == "suffix_template":
        monkeypatch.setattr(Cache, missing, "{entry_func}")
    else:
        original = getattr(AsyncCompile, missing)
        monkeypatch.setattr(AsyncCompile, missing, lambda *args, **kwargs: original(*args, **kwargs))
    with units.kernel_units() as kernels:
        assert AsyncCompile.wait is not units._wait and AsyncCompile.cpp_pybinding is not units._asked
        if missing in ("cpp_pybinding", "wait", "submit"):
            scope = generated("in_ptr0[i] + 13", "in_ptr0[i] + 14")
            assert torch.equal(result(scope["f1"]), torch.tensor([15.0, 16.0, 17.0])) and len(files) == 2
    assert kernels.begun == []
    kernels.wait()


def test_kernels_that_cannot_be_put_into_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> str:
        raise KeyError("another template")

    monkeypatch.setattr(units, "_one", broken)
    with units.kernel_units() as kernels:
        scope = generated("in_ptr0[i] + 15", "in_ptr0[i] + 16")
    kernels.wait()
    assert torch.equal(result(scope["f0"]), torch.tensor([16.0, 17.0, 18.0]))


def test_gradients_and_a_plain_compile_in_another_thread() -> None:
    """Backward graphs are compiled later, outside; meanwhile another thread uses torch.compile without us."""
    torch._dynamo.reset()
    model, x = Two(), torch.randn(3, 5, 24)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    theirs: list[torch.Tensor] = []

    def plain() -> None:
        with torch.no_grad():
            theirs.append(torch.compile(lambda y: torch.softmax(y.sin() + 3, -1))(x))

    thread = threading.Thread(target=plain)
    thread.start()
    loss = torch.compile(model, backend="laconic")(x).square().sum()
    for mine, wanted in zip(torch.autograd.grad(loss, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-4)
    thread.join()
    torch.testing.assert_close(theirs[0], torch.softmax(x.sin() + 3, -1))


SECOND = """
import sys, torch
from torch import nn
from torch._inductor.cpp_builder import CppBuilder

built, build = [], CppBuilder.build
def counted(self):
    built.extend([self] * self.get_target_file_path().endswith(".so"))  # not the header's fingerprint
    return build(self)
CppBuilder.build = counted

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.LayerNorm(24), nn.LayerNorm(24)
        self.up = nn.Linear(24, 24)
    def forward(self, x):
        return torch.softmax(self.b(self.up(self.a(x) * float(sys.argv[1])).tanh()), -1)

torch.manual_seed(0)
model, x = Model().requires_grad_(False), torch.randn(2, 24)
result = torch.compile(model, backend="laconic")(x)
torch.testing.assert_close(result, model(x))
counters = torch._dynamo.utils.counters["inductor"]
print(counters["fxgraph_cache_hit"], counters["fxgraph_cache_miss"], len(built))
"""


def test_a_second_process_builds_nothing() -> None:
    number = str(random.SystemRandom().random())  # nobody compiled this before
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(units.__file__).parents[2]),
        "TORCHINDUCTOR_COMPILE_THREADS": "2",
    }
    outputs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", SECOND, number], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        outputs.append(done.stdout.split()[-3:])
    assert outputs[0][:2] == ["0", "1"] and outputs[0][2] != "0"
    assert outputs[1] == ["1", "0", "0"]
