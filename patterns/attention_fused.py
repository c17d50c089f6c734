"""``aten.scaled_dot_product_attention`` as the parts of an attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.fx import Node

from .attention_site import Parts
from .axes import Atom, Layout
from .describe import expression, same
from .nodes import argument, scalar
from .operands import climb, descend
from .product import Refused
from .sites import Bias


def fused(node: Node) -> Parts:
    """``aten.scaled_dot_product_attention``: the same fields, read from its arguments. Raises Refused."""
    query, key, value = (argument(node, name) for name in ("query", "key", "value"))
    shapes = [item.meta["val"].shape for item in (query, key, value)]
    if min(map(len, shapes)) < 2 or any(expression(size) == 0 for shape in shapes for size in shape):
        raise Refused("unsupported-shape", "an operand has no elements or too few axes", node)
    rows, inner = (Atom(size, rigid=True) for size in shapes[0][-2:])
    columns, channels = Atom(shapes[1][-2], rigid=True), Atom(shapes[2][-1], rigid=True)
    batch = [Atom(size) for size in node.meta["val"].shape[:-2]]
    if argument(node, "enable_gqa") is True and not same(shapes[0][-3], shapes[1][-3]):
        kept = expression(shapes[1][-3])
        if not isinstance(kept, int) or not isinstance(batch[-1].size, int) or batch[-1].size % kept:
            raise Refused("unsupported-shape", "the number of query heads per key head is not a constant", node)
        batch[-1].parts = (Atom(kept), Atom(batch[-1].size // kept))

    def layout(shape: Sequence[object], *last: Atom) -> Layout:
        axes: list[tuple[Atom, ...]] = []
        for atom, size in zip(batch[len(batch) - len(shape) + 2 :], shape[:-2], strict=True):
            if same(size, atom.size):
                axes.append((atom,))
            else:
                axes.append(atom.parts[:1] if atom.parts and not same(size, 1) else ())
        return (*axes, *((atom,) for atom in last))

    if max(map(len, shapes)) > len(batch) + 2:
        raise Refused("unsupported-shape", "an operand has more axes than the output", node)
    scale = argument(node, "scale")
    if scale is None and isinstance(inner.size, int):
        scale = 1.0 / math.sqrt(inner.size)
    dropout = scalar(argument(node, "dropout_p"))
    if scalar(scale) is None or dropout is None:
        raise Refused("unsupported-op", "the scale or the dropout probability is not a constant", node)
    scores_layout = (*((atom,) for atom in batch), (rows,), (columns,))
    biases: list[tuple[Bias, Layout]] = []
    mask = argument(node, "attn_mask")
    if mask is not None:
        kind = "boolean" if str(mask.meta["val"].dtype) == "torch.bool" else "additive"
        biases.append((Bias(kind, mask), scores_layout))
    if argument(node, "is_causal") is True:
        biases.append((Bias("causal", None, "causal"), scores_layout))
    return Parts(
        anchor=node,
        form="sdpa",
        batch=tuple(batch),
        rows=rows,
        columns=columns,
        inner=inner,
        channels=channels,
        query=climb(query, layout(shapes[0], rows, inner)),
        key=climb(key, layout(shapes[1], columns, inner)),
        value=climb(value, layout(shapes[2], columns, channels), scaled=False),
        output=descend(node, (*((atom,) for atom in batch), (rows,), (channels,))),
        scale=float(scalar(scale) or 0.0),
        biases=biases,
        layouts={},
        dropout=dropout,
        hidden_rows="zero",
    )
