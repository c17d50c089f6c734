"""Debug output: one folder per compiled graph, numbered files in the order things happened, each runnable Python."""

from __future__ import annotations

import itertools
import logging
import os
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..passes.report import GraphReport, Report
from .summary import Summary
from .timeline import svg

log = logging.getLogger(__name__)
_folders = itertools.count()

_HEADER = '''"""{title}. Runs on its own: python {file}"""
import torch
from math import inf, nan
from torch import device
import torch.fx._pytree as fx_pytree

{imports}

class Graph(torch.nn.Module):
    def __init__(self):
        super().__init__()
{attributes}
{code}

def example_inputs():
    """Random tensors with the shapes, strides and dtypes of the traced call."""
    return [
{inputs}
    ]


if __name__ == "__main__":
    torch.manual_seed(0)
    for value in torch.utils._pytree.tree_leaves(Graph()(*example_inputs())):
        print(tuple(value.shape) if isinstance(value, torch.Tensor) else value)
'''


@dataclass(eq=False)
class Dump:
    """Collects the stages of one graph's compilation; a no-op unless debug output was asked for."""

    folder: Path | None = None
    number: int = 0
    collect: bool = False
    sources: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, debug: bool | str | None, number: int) -> Dump:
        """Options beat ``LACONIC_DEBUG``; True (or ``LACONIC_DEBUG=1``) is ``./laconic-debug/<pid>-<n>``."""
        wanted: bool | str | None = debug if debug is not None else os.environ.get("LACONIC_DEBUG") or None
        if wanted in (None, False, "0"):
            return cls(None, number)
        if wanted is True or wanted == "1":
            return cls(Path("laconic-debug") / f"{os.getpid()}-{next(_folders)}", number)
        return cls(Path(str(wanted)), number)

    def graph(self, stage: str, module: GraphModule) -> None:
        """Record the graph as it is after ``stage``."""
        if self.folder is None and not self.collect:
            return
        name = f"graph-{self.number}/{len(self.sources):02d}-{stage}.py"
        self.sources[name] = runnable(module, f"graph {self.number} after {stage}", name)

    def finish(self, report: GraphReport) -> None:
        """Write the folder: graphs, report.json and report.txt."""
        if self.folder is None:
            return
        from .registry import reports_in

        report.folder = self.folder
        graphs = reports_in(self.folder, report)
        Report(graphs, sources=self.sources).save(self.folder)


def write_session(summary: Summary, reports: Iterable[GraphReport]) -> None:
    """Draw a session that ended into the debug folders of the graphs it ran, and bring their reports up to date."""
    from .registry import reports_in

    for folder in {report.folder: None for report in reports if report.folder is not None}:
        try:
            place = Report(reports_in(folder)).save(folder)
            number = sum(1 for _ in place.glob("session-*.svg"))
            (place / f"session-{number}.svg").write_text(svg(summary))
        except OSError:
            log.warning("the picture of a session could not be written to %s", folder, exc_info=True)


def runnable(module: GraphModule, title: str, file: str) -> str:
    """A graph as a Python file that runs by itself: class, example inputs, main. Values over 64 elements are random."""
    placeholders = module.graph.find_nodes(op="placeholder")
    dialect = any(getattr(node.target, "namespace", "") == "laconic" for node in module.graph.nodes)
    return _HEADER.format(
        title=title,
        file=file,
        imports="import laconic.passes  # registers the laconic:: operators\n" if dialect else "",
        attributes=textwrap.indent(_attributes(module), " " * 8),
        code=textwrap.indent(module.code.strip("\n"), " " * 4),
        inputs=textwrap.indent("\n".join(f"{_example(node)},  # {node.name}" for node in placeholders), " " * 8),
    )


def _attributes(module: GraphModule) -> str:
    lines = []
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        literal = (
            f"torch.tensor({value.detach().tolist()!r}, dtype={value.dtype})"
            if value.numel() <= 64 and not _is_fake(value)
            else _random(value)
        )
        lines.append(f"self.register_buffer({name!r}, {literal})" if "." not in name else f"# {name}: {literal}")
    for name, inner in module.named_children():
        lines.append(f"# {name} is an opaque region: {type(inner).__name__}")
    return "\n".join(lines) or "pass"


def _is_fake(value: Any) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(value, FakeTensor)


def _example(node: Node) -> str:
    value = node.meta.get("val", node.meta.get("example_value"))
    if isinstance(value, torch.Tensor):
        return _random(value)
    if isinstance(value, torch.SymInt | int):
        return repr(_hint(value))
    return "None"


def _random(value: torch.Tensor) -> str:
    size = tuple(_hint(length) for length in value.shape)
    stride = tuple(_hint(step) for step in value.stride())
    place = "" if value.device.type == "cpu" else f", device={str(value.device)!r}"
    if value.dtype.is_floating_point or value.dtype.is_complex:
        made = f"torch.randn({size}, dtype={value.dtype}{place})"
    elif value.dtype is torch.bool:
        made = f"torch.ones({size}, dtype=torch.bool{place})"
    else:
        made = f"torch.randint(0, 2, {size}, dtype={value.dtype}{place})"
    contiguous = torch.empty(size, device="meta").stride()
    if stride == contiguous:
        return made
    return f"torch.empty_strided({size}, {stride}, dtype={value.dtype}{place}).copy_({made})"


def _hint(size: Any) -> int:
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return int(hint) if hint is not None else 2
