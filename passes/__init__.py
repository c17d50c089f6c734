"""What to do: sites become plans, plans become rewritten graphs. The order of the passes is this page."""

from __future__ import annotations

from collections.abc import Callable

from .base import FACTORIES, Disable, Factory, Pass, Policy, UserError, nearest, register
from .cache import cache
from .merge_tokens import merge_tokens
from .quantize import quantize
from .scan import scan, selective_scan
from .share_blocks import share_blocks
from .sparse_attention import sparse_attention
from .unroll_convolution import unroll_convolution

ORDER: list[str] = [
    "scan",  # collapses unrolled loops, so everything after it sees a small graph
    "selective_scan",  # recurrences that scan left, with what makes their operands and reads their states
    "unroll_convolution",  # short depthwise convolutions, which stand beside recurrences
    "merge_tokens",  # changes token counts: before attention and linears are specialised to them
    "sparse_attention",
    "quantize",  # linears that the passes above left or introduced
    "cache",  # cuts the finished graph into pieces
    "share_blocks",  # cuts what is left between, and inside, so that equal pieces are compiled once
]
"""The order in which passes see a graph, whatever the order in the user's list."""

DEFAULTS: tuple[Pass, ...] = (scan(), selective_scan(), unroll_convolution(), share_blocks())
"""On without being asked for: exact up to rounding, and faster wherever they apply."""


def disable(name: str | None = None, /) -> Disable:
    """Switch one pass off (all of them without a name): in ``options["passes"]``, or as a decorator.

    Raises:
        UserError: an unknown pass; the message names the nearest one.
    """
    if name is not None and name not in FACTORIES:
        raise UserError(f"laconic.disable: unknown pass {name!r}; {nearest(name, FACTORIES)}")
    return Disable(name)


def graph_pass(name: str, /, *, policy: str | None = None, before: str = "cache") -> Callable[[type[Policy]], Factory]:
    """Make a pass of one's own from a :class:`Policy` class: the decorated name becomes the verb.

    ``policy`` names the policy (by default the pass' own name, so the verb needs no argument); ``before`` is the pass
    it runs ahead of. The class is a frozen dataclass whose fields are the settings; see docs/adding_a_pass.md.

    Raises:
        UserError: the name is taken, ``before`` is not a pass, or the class is not a frozen dataclass Policy.
    """
    if name in FACTORIES:
        raise UserError(f"laconic.graph_pass: there is a pass {name!r} already")
    if before not in ORDER:
        raise UserError(f"laconic.graph_pass: before={before!r}; {nearest(before, ORDER)}")

    def make(kind: type[Policy]) -> Factory:
        parameters = getattr(kind, "__dataclass_params__", None)
        if not issubclass(kind, Policy) or parameters is None or not parameters.frozen:
            raise UserError(f"laconic.graph_pass({name!r}) decorates frozen dataclasses derived from laconic.Policy")
        factory = register(name, {policy or name: kind}, default=policy or name)
        ORDER.insert(ORDER.index(before), name)
        return factory

    return make


__all__ = [
    "DEFAULTS",
    "ORDER",
    "cache",
    "disable",
    "graph_pass",
    "merge_tokens",
    "quantize",
    "scan",
    "selective_scan",
    "share_blocks",
    "sparse_attention",
    "unroll_convolution",
]
