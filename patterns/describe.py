"""What every site says about itself: module path, source line, structural fingerprint, named dimensions and costs."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import Node

# The root of a path as Dynamo writes it: a local or global variable, reached through closures or partials or not.
_ROOT = re.compile(r"^(?:[LG]\[[^\]]*\]|L__[A-Za-z0-9]+___|self\b)")
_NOT_A_MODULE = re.compile(r"\.(?:__closure__\[\d+\]\.cell_contents|__self__|__func__|_orig_mod)(?=\.|$)")
_DICTIONARY = re.compile(r"""(?:\.__dict__)?(?:\[['"]_modules['"]\]|\._modules)""")
_BY_KEY = re.compile(r"""\[['"]?([^'"\]]*)['"]?\]""")
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_OWN = str(Path(__file__).parent.parent / "backends")  # what is traced in place of a user's call is no user's code


def module_path(node: Node) -> str:
    """The dotted path, as in ``named_modules()``, of the innermost module ``node`` was executed in; "" at the root."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, _ = next(reversed(stack.values()))
    return dotted(path)


def running_modules(node: Node) -> dict[str, Any]:
    """The modules that were running when ``node`` was executed, outermost first: dotted path and class."""
    if node.op != "call_function":
        return {}
    return {dotted(path): kind for path, kind in (node.meta.get("nn_module_stack") or {}).values()}


@lru_cache(maxsize=65536)
def dotted(path: str) -> str:
    """A path as Dynamo spells it (``L['self'].layers.0``, ``L['self']._modules['0']``) as a plain dotted path."""
    path = _ROOT.sub("", path, count=1)
    path = _NOT_A_MODULE.sub("", path)
    path = _DICTIONARY.sub("", path)
    path = _BY_KEY.sub(lambda found: f".{found[1]}", path)
    return path.strip(".")


def module_of(nodes: Iterable[Node]) -> str:
    """The path of the innermost module that contains the execution of all of ``nodes``; "" is the root."""
    common: list[str] | None = None
    for node in nodes:
        if node.op != "call_function" or not node.meta.get("nn_module_stack"):
            continue
        parts = module_path(node).split(".")
        if common is None:
            common = parts
        else:
            length = 0
            for mine, theirs in zip(common, parts, strict=False):
                if mine != theirs:
                    break
                length += 1
            common = common[:length]
    return ".".join(common or ())


def source_of(node: Node) -> str:
    """``file:line`` of the innermost user frame that made ``node``; "" when unknown."""
    trace = node.meta.get("stack_trace")
    frames = _FRAME.findall(trace) if isinstance(trace, str) else []
    return next((f"{file}:{line}" for file, line in reversed(frames) if not file.startswith(_OWN)), "")


def source_line(node: Node) -> str:
    """The text of the line :func:`source_of` names, as it was when the model was traced; "" when unknown."""
    trace = node.meta.get("stack_trace")
    lines = trace.rstrip().splitlines() if isinstance(trace, str) else []
    frames = ((index, _FRAME.search(line)) for index, line in enumerate(lines))
    users = (index for index, frame in frames if frame is not None and not frame[1].startswith(_OWN))
    last = max(users, default=len(lines))
    return lines[last + 1].strip() if last + 1 < len(lines) else ""


def ordered(nodes: Iterable[Node]) -> list[Node]:
    """``nodes`` in graph order."""
    return sorted(nodes)


def outside_inputs(interior: Iterable[Node]) -> tuple[Node, ...]:
    """The nodes read by ``interior`` from outside of it, in the order they are first read."""
    interior = ordered(interior)
    inside = set(interior)
    return tuple(dict.fromkeys(read for node in interior for read in node.all_input_nodes if read not in inside))


def fingerprint(
    interior: Iterable[Node], inputs: Sequence[Node], outputs: Sequence[Node], *, layout: bool = True
) -> str:
    """A hash of a subgraph up to the identity of its inputs: operations, constants, shapes, strides and dtypes.

    Two layers of one model that differ only in their weights have equal fingerprints. Without ``layout`` strides do
    not count: the first block of a stack often reads a transposed value where the others do not.
    """
    number: dict[Node, str] = {node: f"in{index}" for index, node in enumerate(inputs)}
    digest = hashlib.sha256()
    for node in inputs:
        digest.update(f"{number[node]}:{_type_text(node, layout)}\n".encode())
    for index, node in enumerate(ordered(interior)):
        number[node] = str(index)
        text = f"{node.op} {node.target} {_argument_text((node.args, node.kwargs), number)} {_type_text(node, layout)}"
        if node.op == "get_attr":
            text = f"constant {_constant_text(node)}"
        digest.update(f"{index}: {text}\n".encode())
    digest.update(" ".join(number.get(node, "?") for node in outputs).encode())
    return digest.hexdigest()[:24]


def _argument_text(value: Any, number: dict[Node, str]) -> str:
    if isinstance(value, Node):
        return f"%{number.get(value, 'outside')}"
    if isinstance(value, list | tuple):
        return "(" + ",".join(_argument_text(item, number) for item in value) + ")"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}={_argument_text(item, number)}" for key, item in sorted(value.items())) + "}"
    if isinstance(value, slice):
        return f"slice{_argument_text((value.start, value.stop, value.step), number)}"
    return repr(value)


def _type_text(node: Node, layout: bool = True) -> str:
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return f"{value.dtype}{tuple(value.shape)}{_strides(value) if layout else ''}{value.device}"
    if isinstance(value, list | tuple):
        return str([f"{item.dtype}{tuple(item.shape)}" if isinstance(item, Tensor) else str(item) for item in value])
    return str(value)


def _strides(value: Tensor) -> tuple[Any, ...]:
    return tuple(value.stride()) if value.layout is torch.strided else ()


def _constant_text(node: Node) -> str:
    value = constant_tensor(node)
    if value is not None and value.numel() <= 64 and type(value) in (Tensor, torch.nn.Parameter):
        return f"{value.dtype}{tuple(value.shape)}{value.tolist()}"
    return f"{node.target} {_type_text(node)}"


def constant_tensor(node: Node) -> Tensor | None:
    """The tensor a ``get_attr`` node names in its graph's module; None for other nodes."""
    if node.op != "get_attr":
        return None
    owner: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        owner = getattr(owner, part, None)
    return owner if isinstance(owner, Tensor) else None


def size_hint(size: Any) -> int:
    """An example value of a size: the number itself, or for a SymInt the value it had when traced. Adds no guard."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return int(hint) if hint is not None else 0


def expression(size: Any) -> Any:
    """A size as an int, or as a sympy expression when it is symbolic. Adds no guard."""
    if isinstance(size, torch.SymInt):
        size = size.node.expr
    return int(size) if isinstance(size, sympy.Integer) else size


def same(left: Any, right: Any) -> bool:
    """True when two sizes are equal whatever the inputs. Adds no guard."""
    return bool(expression(left) == expression(right))


def element_count(value: Tensor) -> int:
    """How many elements ``value`` has at the example sizes. Adds no guard."""
    return math.prod(map(size_hint, value.shape))


def shape_of(node: Node) -> tuple[Any, ...]:
    """The sizes (ints and SymInts) of the tensor ``node`` computes."""
    return tuple(node.meta["val"].shape)


def element_bytes(node: Node) -> int:
    """Bytes of one element of the tensor ``node`` computes."""
    return int(node.meta["val"].element_size())


def named_dimensions(**sizes: Any) -> tuple[dict[str, sympy.Symbol], dict[str, int]]:
    """Symbols for named dimensions and their example values: ``named_dimensions(S=64, D=32)``."""
    symbols = {name: sympy.Symbol(name, integer=True, positive=True) for name in sizes}
    return symbols, {name: size_hint(size) for name, size in sizes.items()}


def evaluated(expression: sympy.Expr, dimensions: dict[str, int]) -> int:
    """The value of a cost at example sizes given by dimension name."""
    return _evaluated(expression, tuple(dimensions.items()))


@lru_cache(maxsize=4096)
def _evaluated(expression: sympy.Expr, dimensions: tuple[tuple[str, int], ...]) -> int:
    sizes = dict(dimensions)
    return int(expression.subs({symbol: sizes[symbol.name] for symbol in expression.free_symbols}))


def description(
    anchor: Node, interior: frozenset[Node], inputs: Sequence[Node], outputs: Sequence[Node]
) -> dict[str, Any]:
    """The fields ``inputs, outputs, interior, module, source, fingerprint`` of a site, ready for its constructor.

    ``anchor`` is the node that says where the site is (the softmax of an attention, the last linear of a
    feed-forward); ``module`` is the innermost module containing the whole interior.
    """
    return {
        "inputs": tuple(inputs),
        "outputs": tuple(outputs),
        "interior": interior,
        "module": module_of(interior),
        "source": source_of(anchor),
        "fingerprint": fingerprint(interior, inputs, outputs),
    }
