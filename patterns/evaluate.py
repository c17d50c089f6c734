"""Running pieces of the normal form on real tensors from inside a compile, where everything else is fake.

Private torch modules are touched here on purpose; docs/private_torch.md lists them with the versions checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate, map_arg
from torch.utils._python_dispatch import _disable_current_modes

from .describe import constant_tensor, element_count, ordered, size_hint
from .nodes import DROPOUTS, operation, tensor

# A constant larger than this is not worth computing to find out what it is.
CONSTANT_LIMIT = 1 << 24

CPU = torch.device("cpu")
_REAL = (torch.float16, torch.bfloat16, torch.float32)


@contextlib.contextmanager
def concretely() -> Iterator[None]:
    """Outside every fake, proxy and autocast mode, without gradients: plain tensors on the CPU."""
    with (
        _disable_current_modes(),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.device("cpu"),
    ):
        yield


def run(
    nodes: Iterable[Node],
    values: Mapping[Node, Any],
    arguments: Callable[[Node, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
    *,
    double: bool = False,
) -> dict[Node, Any]:
    """Interpret ``nodes`` (in graph order, closed under inputs given ``values``) on real tensors.

    Devices are replaced by the CPU, symbolic sizes by their example value and (``double``) real element types by
    float64; ``arguments`` may change the arguments of a node before it runs. Call it inside :func:`concretely`.
    """
    environment: dict[Node, Any] = dict(values)

    def plain(value: Any) -> Any:
        return torch.float64 if double and isinstance(value, torch.dtype) and value in _REAL else _on_cpu(value)

    def value_of(node: Node) -> Any:
        return environment[node]

    for node in nodes:
        if node in environment:
            continue
        if node.op == "get_attr":
            held = _held(node)
            environment[node] = held.double() if double and held.dtype in _REAL else held
            continue
        args: Any = map_arg(node.args, value_of)
        kwargs: Any = dict(map_arg(node.kwargs, value_of))
        if arguments is not None:
            args, kwargs = arguments(node, args, kwargs)
        target: Any = _IN_DOUBLE.get(node.target, node.target) if double else node.target
        made: Any = target(*map_aggregate(args, plain), **map_aggregate(kwargs, plain))
        # What is made from nothing (zeros, arange) comes in the default type.
        environment[node] = made.double() if double and isinstance(made, Tensor) and made.dtype in _REAL else made
    return environment


def without_dropout(
    node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Dropout cannot be compared; its probability is read from the arguments and not from numbers."""
    if operation(node) in DROPOUTS:
        return (args[0], 0.0, False), {}
    if "dropout_p" in kwargs:
        return args, {**kwargs, "dropout_p": 0.0}
    if operation(node) == "scaled_dot_product_attention" and len(args) > 4:
        return (*args[:4], 0.0, *args[5:]), kwargs
    return args, kwargs


def _grouped_mm(left: Tensor, right: Tensor, offs: Tensor | None = None, *unused: Any, **also: Any) -> Tensor:
    """Rows of ``left [rows, in]`` up to each offset times that offset's matrix of ``right [groups, in, out]``.

    Raises ValueError for the forms that group something else than rows.
    """
    if left.dim() != 2 or right.dim() != 3 or offs is None:
        raise ValueError("a grouped product of another form")
    ends = offs.tolist()
    made = [left[start:end] @ matrix for start, end, matrix in zip([0, *ends], ends, right, strict=False)]
    return torch.cat([*made, left.new_zeros(len(left) - ends[-1], right.shape[-1])])


# Operations that have no float64 kernel, as what they mean.
_IN_DOUBLE: dict[Any, Any] = {}
if hasattr(torch.ops.aten, "_grouped_mm"):
    _IN_DOUBLE[torch.ops.aten._grouped_mm.default] = _grouped_mm


def _held(node: Node) -> Any:
    value = constant_tensor(node)
    if value is None or value.is_meta or type(value) not in (Tensor, torch.nn.Parameter):
        raise ValueError(f"{node.name} names no real tensor")
    return value.detach().to(CPU)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return CPU
    if isinstance(value, torch.SymInt):
        return size_hint(value)
    return value


def before(outputs: Iterable[Node], stops: Iterable[Node]) -> list[Node]:
    """Every node ``outputs`` are computed from, down to and without ``stops`` and symbolic sizes, in graph order."""
    seen = set(stops)
    pending = [node for node in outputs if node not in seen]
    found = []
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        found.append(node)
        pending.extend(read for read in node.all_input_nodes if read not in seen)
    return ordered(found)


_KNOWN: WeakKeyDictionary[Node, Tensor] = WeakKeyDictionary()


def constant_value(node: Node) -> Tensor | None:
    """The value of a node that depends on no input (see ``Effects.constants``); None when it is too large."""
    fake = tensor(node)
    if fake is None or fake.numel() > CONSTANT_LIMIT:
        return None
    known = _KNOWN.get(node)
    if known is None:
        nodes = before([node], ())
        if any(made is not None and made.numel() > CONSTANT_LIMIT for made in map(tensor, nodes)):
            return None
        with concretely():
            try:
                known = run(nodes, {})[node]
            except Exception:
                return None  # an operation without a CPU kernel, or a tensor that is not real: simply not known
        _KNOWN[node] = known
    return known


def example_value(node: Node) -> Tensor | None:
    """The value at the example sizes of a node that depends on sizes but on no tensor; None when it is not known.

    Good for a proof, never for a rewrite: at other sizes it is another (:func:`constant_value` depends on none).
    """
    nodes = before([node], ())
    sizes = {read: size_hint(read.meta["val"]) for read in nodes if isinstance(read.meta.get("val"), torch.SymInt)}
    if not sizes:
        return constant_value(node)
    nodes = before([node], sizes)
    if any(element_count(made) > CONSTANT_LIMIT for made in map(tensor, nodes) if made is not None):
        return None
    with concretely():
        try:
            made: Tensor = run(nodes, sizes)[node]
        except Exception:
            return None  # an operation without a CPU kernel, or a tensor that comes in
    return made
