"""What the rows of libraries of sequence models share: inputs, usual sizes, and how a row is spelled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .table import Row, Value, ids, real

TOKENS: Mapping[str, Value] = {"0": ids(2, 16)}

STREAM: Mapping[str, Value] = {"0": real(2, 16, 48)}

_LM = {"num_tokens": 120, "dim": 48, "depth": 2, "heads": 4, "dim_head": 12}


def row(name: str, library: str, path: str, inputs: Mapping[str, Value], sizes: Mapping[str, Any], **facts: Any) -> Row:
    return Row(name.replace("_", "-"), "sequences", library, path, sizes, inputs, **facts)


def lm(library: str, path: str, more: Mapping[str, Any] | None = None, name: str = "", **facts: Any) -> Row:
    """A language model with the usual names of sizes; None takes one away."""
    sizes = {name: value for name, value in {**_LM, **(more or {})}.items() if value is not None}
    return row(f"{library}{name and '-'}{name}", library, path, facts.pop("inputs", TOKENS), sizes, **facts)


def layer(library: str, path: str, more: Mapping[str, Any], name: str = "", **facts: Any) -> Row:
    """One layer of a stream of width 48."""
    return row(
        f"{library}{name and '-'}{name}", library, path, facts.pop("inputs", STREAM), {"dim": 48, **more}, **facts
    )
