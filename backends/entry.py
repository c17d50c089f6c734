"""The door: what ``torch.compile(model, backend="laconic")`` calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule

from ..passes.base import Disable, Pass, UserError
from ..passes.report import GraphReport
from . import dynamo, registry  # noqa: F401 - changes how Dynamo works for this backend
from .collector import old_objects_at_rest
from .debug import Dump
from .frame_stack import with_room
from .inductor import ProcessorProbe
from .kernels import register as register_kernels
from .options import Options
from .pipeline import rewrite
from .runner import build, compile_whole, real_inputs

OLDEST_TORCH = (2, 11)


def laconic(
    module: GraphModule, inputs: Sequence[Any], *, mode: str | None = None, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """The backend registered under the name ``laconic``.

    ``mode`` means what it means to Inductor. ``options`` may hold ``passes``, ``error_budget``, ``verify``, ``debug``,
    ``fuel`` and ``inductor`` (see :class:`Backend`).

    Raises:
        UserError: an unknown or ill-typed option (inside torch's ``BackendCompilerFailed`` when called by Dynamo).
    """
    return with_room(_compile, module, inputs, Options.parse(options, mode))


@dataclass(frozen=True)
class Backend:
    """The backend as an object: ``torch.compile(model, backend=laconic.Backend(passes=[...]))``.

    Checked when it is made, frozen, hashable and equal to another with equal settings, so compiled code is shared.

    Args:
        passes: passes (``laconic.quantize("int8")``) and ``laconic.disable(...)``, added to the exact defaults.
        error_budget: relative L2 error allowed at each site; a site over it falls back and the report says so.
        verify: ``first`` (prove each structure once), ``always`` or ``never`` (only structures proven before).
        debug: True or a folder: write numbered graphs and the report there.
        inductor: Inductor options, passed through.
        mode: as in ``torch.compile``.
        fuel: how many rewrites to apply (bisecting).

    Raises:
        UserError: an unknown or ill-typed setting, naming the nearest valid choice.
    """

    passes: Sequence[Pass | Disable] = ()
    error_budget: float | None = None
    verify: str = "first"
    debug: bool | str | None = field(default=None, compare=False)
    inductor: Any = None
    mode: str | None = None
    fuel: int | None = None

    def __post_init__(self) -> None:
        given = {
            "passes": self.passes,
            "error_budget": self.error_budget,
            "verify": self.verify,
            "debug": self.debug,
            "inductor": dict(self.inductor) if self.inductor else None,
            "fuel": self.fuel,
        }
        parsed = Options.parse(given, self.mode)
        object.__setattr__(self, "passes", parsed.passes)
        object.__setattr__(self, "inductor", tuple(sorted(dict(self.inductor or {}).items())))
        object.__setattr__(self, "_options", parsed)

    def __call__(self, module: GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        if kwargs:
            raise UserError(f"a laconic.Backend has its settings already; torch.compile also got {sorted(kwargs)}")
        options: Options = self._options  # type: ignore[attr-defined]
        return with_room(_compile, module, inputs, options)


def _compile(module: GraphModule, inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    _require_torch()
    register_kernels()
    number = registry.next_number()
    report = GraphReport(number, len(module.graph.nodes), device=_device(inputs))
    dump = Dump.of(options.debug, number)
    probe = ProcessorProbe(inputs)
    with old_objects_at_rest():
        rewritten = rewrite(module, inputs, options, report, dump)
        probe.wait()
        graph = rewritten.graph
        report.nodes_after = len((graph.module if graph is not None else module).graph.nodes)
        if graph is None:
            compiled = compile_whole(module, inputs, options)
        else:
            compiled = build(graph, real_inputs(graph, inputs), rewritten.cutting, options, report)
    # Only now: Dynamo may stop and restart inside the compiler, and would call us again for the same frame.
    registry.commit(registry.Entry(registry.current_origin(), report, dump.sources))
    dump.finish(report)
    return compiled


def _device(inputs: Sequence[Any]) -> str:
    devices = {str(value.device) for value in inputs if isinstance(value, torch.Tensor)}
    return ", ".join(sorted(devices)) or "cpu"


def _require_torch() -> None:
    found = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if found < OLDEST_TORCH:
        raise UserError(f"laconic needs torch >= {'.'.join(map(str, OLDEST_TORCH))}, found {torch.__version__}")
