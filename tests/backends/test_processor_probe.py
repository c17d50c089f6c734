"""What Inductor wants to know about the CPU is asked in the background, and never in the way."""

from __future__ import annotations

import threading

import pytest
import torch
from torch._inductor import cpu_vec_isa

from laconic.backends.inductor import ProcessorProbe


def test_asked_in_another_thread_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    go = threading.Event()

    def ask() -> None:
        go.wait(10)
        threads.append(threading.current_thread())

    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", ask)
    probe = ProcessorProbe([torch.ones(2), 3])
    assert not threads
    go.set()
    probe.wait()
    assert len(threads) == 1 and threads[0] is not threading.current_thread()


def test_a_failure_is_left_to_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("no compiler after all")

    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", fail)
    ProcessorProbe([torch.ones(2)]).wait()


def test_not_asked_without_a_compiler_or_off_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", lambda: asked.append(1))
    ProcessorProbe([torch.ones(2, device="meta")]).wait()
    monkeypatch.setattr("shutil.which", lambda name: None)
    ProcessorProbe([torch.ones(2)]).wait()
    assert not asked
