"""A compile runs on a large piece of the frame stack."""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest
import torch

from laconic.backends import entry, frame_stack
from laconic.backends.dynamo import at_work
from laconic.backends.frame_stack import with_room


def test_it_calls_what_it_is_given() -> None:
    def function(*args: int, **kwargs: int) -> tuple[tuple[int, ...], dict[str, int]]:
        return args, kwargs

    assert with_room(function, 1, 2, three=3) == ((1, 2), {"three": 3})
    with pytest.raises(ZeroDivisionError):
        with_room(lambda: 1 // 0)


def test_what_is_below_has_room() -> None:
    def deep(count: int) -> int:
        return 0 if count == 0 else 1 + deep(count - 1)

    # More frames than fit into one chunk, and several rooms inside one another.
    assert with_room(deep, sys.getrecursionlimit() // 2) == sys.getrecursionlimit() // 2
    assert with_room(with_room, with_room, deep, 5) == 5


def test_compiles_run_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def recorded(function: Any, *args: Any) -> Any:
        called.append(function.__name__)
        return with_room(function, *args)

    monkeypatch.setattr(entry, "with_room", recorded)
    torch._dynamo.reset()
    torch.compile(lambda x: x + 1, backend="laconic")(torch.ones(2))
    assert called == ["_compile"]
    assert with_room.__code__.co_stacksize == frame_stack._SLOTS


def test_dynamo_has_room_for_this_backend_only(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def recorded(function: Any, *args: Any, **kwargs: Any) -> Any:
        given.append(function.__module__)
        assert gc.get_freeze_count()
        return with_room(function, *args, **kwargs)

    monkeypatch.setattr(at_work, "with_room", recorded)
    for backend, expected in (("eager", []), ("laconic", ["torch._dynamo.convert_frame"])):
        given.clear()
        torch._dynamo.reset()
        result = torch.compile(lambda x: x * 2, backend=backend)(torch.ones(2))
        assert torch.equal(result, torch.full((2,), 2.0)) and given == expected
    assert not gc.get_freeze_count()
