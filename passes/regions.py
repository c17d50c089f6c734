"""Decorated regions: which operations ran inside which decorated function, method or module.

Entering a region annotates every operation traced inside it (``torch.fx.traceback.annotate``); the annotation arrives
in ``node.meta["custom"]`` in the backend, outer regions before inner ones. No module is replaced.
``annotate`` is not covered by torch's compatibility promise; docs/private_torch.md lists the versions checked.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.fx import Node
from torch.fx.traceback import annotate

from .base import Disable, Pass, UserError

Target = TypeVar("Target")
PREFIX = "laconic."
_numbers = itertools.count()


@dataclass(frozen=True, eq=False)
class Region:
    """One decorated object: the annotation ``key`` its operations carry, the pass, and what it is called."""

    key: str
    item: Pass | Disable
    name: str
    target: Any


REGIONS: dict[str, Region] = {}


def annotate_region(item: Pass | Disable, target: Target) -> Target:
    """Decorate a function, a method or an ``nn.Module`` class so that ``item`` reaches exactly what runs inside it.

    Raises:
        UserError: the target is something else (an instance, say: decorate its class or list the pass in options).
    """
    name = getattr(target, "__qualname__", repr(target))
    key = f"{PREFIX}{next(_numbers)}"
    if isinstance(target, type):
        if not issubclass(target, torch.nn.Module):
            raise UserError(f"{item!r} decorates functions, methods and nn.Module classes, not the class {name}")
        REGIONS[key] = Region(key, item, name, target)
        _annotate_forward(target, key, name)
        return target
    if not callable(target) or isinstance(target, torch.nn.Module):
        raise UserError(f"{item!r} decorates functions, methods and nn.Module classes, not {type(target).__name__}")
    wrapped = _annotated(target, key, name)
    REGIONS[key] = Region(key, item, name, wrapped)
    return wrapped  # type: ignore[return-value]


def _annotated(function: Callable[..., Any], key: str, name: str) -> Callable[..., Any]:
    inside: Any
    if getattr(function, "__code__", None) is not None and function.__code__.co_varnames[:1] == ("self",):
        # Dynamo calls a compiled module by the name of its argument: modules keep their paths only as ``self``.
        @functools.wraps(function)
        def inside(self: Any, *args: Any, **kwargs: Any) -> Any:
            with annotate({key: name}):
                return function(self, *args, **kwargs)
    else:

        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with annotate({key: name}):
                return function(*args, **kwargs)

    # Dynamo keeps its compiled code, and laconic its reports, by code object: no two regions share one.
    inside.__code__ = inside.__code__.replace(co_name=f"{inside.__code__.co_name}[{key}]")
    return inside


def _annotate_forward(owner: type[torch.nn.Module], key: str, name: str) -> None:
    forward: Callable[..., Any] | None = owner.__dict__.get("forward")
    if forward is None:
        # Inherited: the parent's own forward must stay as it is for the parent's other children.
        @functools.wraps(owner.forward)
        def inherited(self: Any, *args: Any, **kwargs: Any) -> Any:
            return super(owner, self).forward(*args, **kwargs)

        forward = inherited

    owner.forward = _annotated(forward, key, name)


def regions_of(node: Node) -> tuple[Region, ...]:
    """The regions a node was traced in, outermost first."""
    custom = node.meta.get("custom") or {}
    return tuple(REGIONS[key] for key in custom if key in REGIONS)


def decision(nodes: Iterable[Node], name: str) -> Pass | Disable | None:
    """What decorators say about pass ``name`` for a site made of ``nodes``; the innermost region holding all wins."""
    common: tuple[Region, ...] | None = None
    for node in nodes:
        here = regions_of(node)
        common = here if common is None else tuple(region for region in common if region in here)
        if not common:
            return None
    for region in reversed(common or ()):
        if region.item.name == name or (isinstance(region.item, Disable) and region.item.name is None):
            return region.item
    return None
