"""Providers: the ways to compute a ``laconic::`` operator. Chosen per call by priority, refused with reasons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ..passes.dialect import OPERATORS, Operator
from ..patterns.reasons import Reason


@dataclass(frozen=True, eq=False)
class Provider:
    """One implementation. ``supports(*args)`` has the operator's signature and returns None or why not.

    ``function`` has the operator's signature too. It is traced, so it is plain torch, or calls opaque registered ops.
    """

    name: str
    operator: str
    function: Callable[..., Any]
    supports: Callable[..., Reason | None]
    priority: int


PROVIDERS: dict[str, list[Provider]] = {}


def provider(
    operator: Operator, name: str, *, priority: int, supports: Callable[..., Reason | None]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as an implementation of ``operator``; the highest supported ``priority`` wins.

    The operator's body is always there as ``inductor`` with priority 0. ``supports`` looks at what the arguments are
    (device, dtype, shape), never at policy.
    """

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        rows = PROVIDERS.setdefault(operator.name, [])
        if any(row.name == name for row in rows):
            raise ValueError(f"{operator.qualified_name} already has a provider {name!r}")
        rows.append(Provider(name, operator.name, function, supports, priority))
        rows.sort(key=lambda row: -row.priority)
        return function

    return add


def choose(operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Provider, list[Reason]]:
    """The provider for these (fake or real) arguments, and why the ones before it were passed over."""
    passed_over: list[Reason] = []
    for row in PROVIDERS.get(operator.name, ()):
        reason = row.supports(*args, **kwargs)
        if reason is None:
            return row, passed_over
        passed_over.append(reason)
    return Provider("inductor", operator.name, operator.body, lambda *a, **k: None, 0), passed_over


def _fake_value(operand: Node) -> Any:
    # Dynamo's graphs and the normal form keep it under different names.
    return operand.meta.get("val", operand.meta.get("example_value"))


def chosen(module: GraphModule) -> dict[Node, Provider]:
    """The provider that every ``laconic::`` node of a graph will be lowered to, judged on its fake values."""
    rows = {}
    for node in module.graph.nodes:
        name = getattr(node.target, "_opname", None)
        if getattr(node.target, "namespace", None) == "laconic" and name in OPERATORS:
            args, kwargs = map_arg((node.args, node.kwargs), _fake_value)
            rows[node] = choose(OPERATORS[name], args, kwargs)[0]
    return rows


class DecompositionTable(dict[Any, Callable[..., Any]]):
    """A table that Inductor's cache key passes over: our functions cannot be pickled, and a key without them is right.

    What they compute is in the key already: the digest of our sources and the chosen providers (:mod:`.fingerprint`).
    """

    def __reduce_ex__(self, protocol: Any) -> tuple[type[dict[Any, Any]], tuple[()]]:
        return dict, ()


def decompositions(base: Mapping[Any, Callable[..., Any]]) -> DecompositionTable:
    """``base``, with every ``laconic::`` operator replaced by its chosen provider, forward and backward."""

    def lower(op: Operator) -> Callable[..., Any]:
        def lowered(*args: Any, **kwargs: Any) -> Any:
            return choose(op, args, kwargs)[0].function(*args, **kwargs)

        return lowered

    return DecompositionTable({**base, **{op.overload: lower(op) for op in OPERATORS.values()}})
