"""The report: what was found, what was rewritten, and why the rest was left alone. Plain data, no graph kept alive."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import sympy
import torch

from ..patterns.reasons import Reason
from ..patterns.sites import Site

SCHEMA = "laconic.report/1"


@dataclass(frozen=True)
class SiteRecord:
    """A site as the report shows it; ``flops`` and ``bytes`` are expressions with their value at the example shape."""

    id: str
    kind: str
    module: str | list[str]
    source: str
    form: str
    fields: dict[str, Any]
    flops: str
    bytes: str
    flops_value: int | None
    bytes_value: int | None

    @classmethod
    def of(cls, site: Site) -> SiteRecord:
        """The record of a detected site."""
        return cls(
            id=site.id,
            kind=site.kind,
            module=site.module,
            source=site.source,
            form=site.form,
            fields=site.fields(),
            flops=_spelled(site.flops),
            bytes=_spelled(site.bytes),
            flops_value=_evaluate(site.flops, tuple(site.dimensions.items())),
            bytes_value=_evaluate(site.bytes, tuple(site.dimensions.items())),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "module": self.module,
            "source": self.source,
            "form": self.form,
            "fields": self.fields,
            "flops": {"expression": self.flops, "value": self.flops_value},
            "bytes": {"expression": self.bytes, "value": self.bytes_value},
        }


@dataclass
class RewriteRecord:
    """One rewrite: ``status`` is ``applied`` or ``fell_back``; ``error`` is the measured relative L2, if measured."""

    pass_name: str
    site: str
    status: str
    fidelity: str
    op: str
    provider: str = ""
    error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "pass": self.pass_name,
            "site": self.site,
            "status": self.status,
            "fidelity": self.fidelity,
            "op": self.op,
            "provider": self.provider,
            "error": None if self.error is None else {"metric": "relative_l2", "value": self.error},
        }


@dataclass(frozen=True)
class RefusalRecord:
    """Something left alone: by which pass ("" for detection), at which site ("" for none), and why."""

    pass_name: str
    site: str
    code: str
    text: str

    def to_dict(self) -> dict[str, Any]:
        return {"pass": self.pass_name, "site": self.site, "code": self.code, "text": self.text}


class Account(Protocol):
    """What a session says it did: plain data, and a picture of characters."""

    def to_dict(self) -> dict[str, Any]: ...


@dataclass
class GraphReport:
    """The report of one compiled graph.

    ``seconds`` is laconic's own time by stage; ``conditioning`` names the inputs that feed only the conditioning path;
    ``pieces`` is how many compiled pieces a call runs and how many were compiled; ``session`` is the latest trajectory
    that came through the graph's cached regions, if any did; ``folder`` is where debug output is written, if anywhere.
    """

    id: int
    nodes_before: int
    nodes_after: int = 0
    device: str = ""
    sites: list[SiteRecord] = field(default_factory=list)
    rewrites: list[RewriteRecord] = field(default_factory=list)
    refusals: list[RefusalRecord] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    regions: set[str] = field(default_factory=set)
    conditioning: list[str] = field(default_factory=list)
    pieces: tuple[int, int] = (1, 1)
    session: Account | None = None
    folder: Path | None = None

    def refuse(self, reason: Reason, *, pass_name: str = "", site: str = "") -> None:
        """Record a refusal (once: a cached pass may repeat the same one on every call)."""
        record = RefusalRecord(pass_name, site, reason.code, reason.text)
        if record not in self.refusals:
            self.refusals.append(record)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "nodes_before": self.nodes_before,
            "nodes_after": self.nodes_after,
            "sites": [site.to_dict() for site in self.sites],
            "rewrites": [rewrite.to_dict() for rewrite in self.rewrites],
            "refusals": [refusal.to_dict() for refusal in self.refusals],
            "conditioning": self.conditioning,
            "seconds": self.seconds,
            "pieces": {"run": self.pieces[0], "compiled": self.pieces[1]},
            "session": None if self.session is None else self.session.to_dict(),
        }


@dataclass
class Report:
    """What laconic did to one model: one :class:`GraphReport` per compiled graph.

    ``print(report)`` shows it, :meth:`to_dict` gives schema ``laconic.report/1``, :meth:`save` writes both and,
    when the report was made by ``explain`` or in debug mode, the graphs.
    """

    graphs: list[GraphReport] = field(default_factory=list)
    extra_refusals: list[RefusalRecord] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    near_misses: list[str] = field(default_factory=list)

    @property
    def sites(self) -> list[SiteRecord]:
        """Every site found, over all graphs."""
        return [site for graph in self.graphs for site in graph.sites]

    @property
    def rewrites(self) -> list[RewriteRecord]:
        """Every rewrite planned, over all graphs."""
        return [rewrite for graph in self.graphs for rewrite in graph.rewrites]

    @property
    def refusals(self) -> list[RefusalRecord]:
        """Every refusal, over all graphs and beyond them."""
        return [refusal for graph in self.graphs for refusal in graph.refusals] + self.extra_refusals

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data that ``json`` can write."""
        return {
            "schema": SCHEMA,
            "torch": torch.__version__,
            "device": next((graph.device for graph in self.graphs if graph.device), "cpu"),
            "graphs": [graph.to_dict() for graph in self.graphs],
            "refusals": [refusal.to_dict() for refusal in self.extra_refusals],
        }

    def save(self, folder: str | Path) -> Path:
        """Write ``report.json``, ``report.txt`` and the graphs into ``folder`` (made if missing); returns it."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / "report.json").write_text(json.dumps(self.to_dict(), indent=1, default=str) + "\n")
        (place / "report.txt").write_text(str(self) + "\n")
        for name, text in self.sources.items():
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return place

    def __str__(self) -> str:
        if not self.graphs:
            return "laconic: nothing compiled yet"
        lines = [f"laconic: {len(self.graphs)} graph{'s' * (len(self.graphs) != 1)}, {_count(self.sites)}"]
        for graph in self.graphs:
            lines += _graph_lines(graph)
        lines += [f"  left alone  {_refusal_line(refusal)}" for refusal in self.extra_refusals]
        lines += self.near_misses
        return "\n".join(lines)


def _graph_lines(graph: GraphReport) -> list[str]:
    applied = [row for row in graph.rewrites if row.status == "applied"]
    fell_back = [row for row in graph.rewrites if row.status != "applied"]
    modules = {site.id: site.module for site in graph.sites}
    lines = [
        f"graph {graph.id}: {graph.nodes_before} -> {graph.nodes_after} nodes, {_count(graph.sites)}, "
        f"{len(applied)} rewritten, {len(graph.refusals)} left alone, {sum(graph.seconds.values()):.2f} s"
    ]
    for row in (*applied, *fell_back):
        error = f", error {row.error:.2e}" if row.error is not None else ""
        where = modules.get(row.site, "") or "(root)"
        provider = f" [{row.provider}]" if row.provider else ""
        lines.append(
            f"  {row.status:<11} {row.pass_name}: {row.site} {where} -> {row.op}{provider}, {row.fidelity}{error}"
        )
    # Equal refusals at many sites are one line: a person wants the reason, the JSON has every site.
    grouped = Counter((row.pass_name, row.code, row.text) for row in graph.refusals)
    for (pass_name, code, text), times in grouped.items():
        sites = [row.site for row in graph.refusals if (row.pass_name, row.code, row.text) == (pass_name, code, text)]
        where = f"{sites[0]}" + (f" and {times - 1} more" if times > 1 else "")
        lines.append(f"  left alone  {_refusal_line(RefusalRecord(pass_name, where, code, text))}")
    if graph.pieces[0] > 1:
        lines.append(f"  pieces      {graph.pieces[0]} run, {graph.pieces[1]} compiled")
    if graph.session is not None:
        lines += [f"  {line}" for line in str(graph.session).splitlines()]
    return lines


def _refusal_line(row: RefusalRecord) -> str:
    head = ": ".join(part for part in (row.pass_name, row.site) if part)
    return f"{head + ' ' if head else ''}({row.code}) {row.text}"


def _count(sites: Sequence[SiteRecord]) -> str:
    kinds = Counter(site.kind for site in sites)
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items()) or "no sites"


# Layers repeat, and with them what they cost: spelling and evaluating an expression anew takes longer than finding it.
@functools.lru_cache(maxsize=1024)
def _spelled(expression: sympy.Expr) -> str:
    return str(expression)


@functools.lru_cache(maxsize=1024)
def _evaluate(expression: sympy.Expr, dimensions: tuple[tuple[str, int], ...]) -> int | None:
    sizes = dict(dimensions)
    value = sympy.sympify(expression)
    value = value.subs({symbol: sizes[symbol.name] for symbol in value.free_symbols if symbol.name in sizes})
    return int(value) if value.is_number else None
