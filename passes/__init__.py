"""What to do: sites become plans, plans become rewritten graphs. The order of the passes is this page."""

from __future__ import annotations

from .base import FACTORIES, Disable, Pass, UserError, nearest
import contextlib

with contextlib.suppress(ImportError):
    from .cache import cache
with contextlib.suppress(ImportError):
    from .merge_tokens import merge_tokens
with contextlib.suppress(ImportError):
    from .quantize import quantize
with contextlib.suppress(ImportError):
    from .scan import scan
with contextlib.suppress(ImportError):
    from .sparse_attention import sparse_attention

ORDER: tuple[str, ...] = (
    "scan",  # collapses unrolled loops, so everything after it sees a small graph
    "merge_tokens",  # changes token counts: before attention and linears are specialised to them
    "sparse_attention",
    "quantize",  # linears that the passes above left or introduced
    "cache",  # cuts the finished graph into pieces
)
"""The order in which passes see a graph, whatever the order in the user's list."""

DEFAULTS: tuple[Pass, ...] = (scan(),) if 'scan' in globals() else ()
"""On without being asked for: exact up to rounding, and faster wherever they apply."""


def disable(name: str | None = None, /) -> Disable:
    """Switch one pass off (all of them without a name): in ``options["passes"]``, or as a decorator.

    Raises:
        UserError: an unknown pass; the message names the nearest one.
    """
    if name is not None and name not in FACTORIES:
        raise UserError(f"laconic.disable: unknown pass {name!r}; {nearest(name, FACTORIES)}")
    return Disable(name)


__all__ = [
    "DEFAULTS",
    "ORDER",
    "cache",
    "disable",
    "merge_tokens",
    "quantize",
    "scan",
    "sparse_attention",
]
