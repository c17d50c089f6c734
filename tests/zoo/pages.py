"""What the pages of architectures share: rows measured one process per core, and what came out as markdown."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

from .compiled import error_of
from .measure import KINDS, Result, measure
from .table import Row, declare_torchvision_operators


def measured(module: str, names: Sequence[str], compiled: bool = True) -> Iterable[tuple[Row, Result | str]]:
    """The rows ``names`` of ``module``, each in one of as many processes as there are cores, and what came out.

    A text says what went wrong. ``compiled`` also runs the rewritten model and puts every site to the proof.
    """
    declare_torchvision_operators()  # results name classes of libraries
    rows = importlib.import_module(module).ROWS
    processes = min(len(names), os.cpu_count() or 1) or 1
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        tasks = [(module, name, compiled) for name in names]
        for name, result in zip(names, pool.map(_measured, tasks), strict=True):
            yield rows[name], result if isinstance(result, str) else replace(result, row=rows[name])


def _measured(task: tuple[str, str, bool]) -> Result | str:
    """One row, in a process of its own kind: what can be handed over of its result, or what went wrong."""
    module, name, compiled = task
    warnings.filterwarnings("ignore")
    declare_torchvision_operators()
    row = importlib.import_module(module).ROWS[name]
    try:
        result = measure(row, "always" if compiled else "first")
        result.error = error_of(row) if compiled else 0.0
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    # Rows hold functions and sites hold nodes of graphs: neither leaves the process.
    return replace(result, row=None, sites=[])  # type: ignore[arg-type]


def versions(libraries: Collection[str]) -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)


def line(result: Result, compiled: bool = True) -> str:
    cells = [result.row.name, result.row.library, str(result.nodes), str(result.graphs)]
    for kind in KINDS:
        found, expected = result.found[kind], result.expected(kind)
        mark = " \\*" if result.missing[kind] or result.false[kind] else ""
        cells.append(f"{found} / {expected}{mark}" if found or expected else "")
    cells.append(f"{result.seconds:.2f}")
    if compiled:
        cells.append(f"{result.error:.0e}" if result.error else "0")
    return "| " + " | ".join(cells) + " |"


def totals(results: Sequence[Result]) -> list[str]:
    lines = ["| kind | expected | found | missing | false | recall |", "|---|---|---|---|---|---|"]
    for kind in KINDS:
        expected = sum(result.expected(kind) for result in results)
        missing = sum(result.missing[kind] for result in results)
        false = sum(result.false[kind] for result in results)
        found = sum(result.found[kind] for result in results)
        recall = f"{(expected - missing) / expected:.1%}" if expected else ""
        lines.append(f"| {kind} | {expected} | {found} | {missing} | {false} | {recall} |")
    return lines


def differences(results: Sequence[Result], known: Mapping[str, str]) -> list[str]:
    """One paragraph for each row that differs; ``known`` says why some do."""
    lines = []
    for result in results:
        if result.exact:
            continue
        what = [f"{number} {kind} not found" for kind, number in result.missing.items() if number]
        what += [f"{number} {kind} more than eager ran" for kind, number in result.false.items() if number]
        blocks = [*result.lost_blocks, *result.false_blocks]
        named = f" ({', '.join(f'`{block}`' for block in blocks)})" if blocks else ""
        lines.append(f"- **{result.row.name}**: {', '.join(what) or 'counts agree'}{named}.")
        if result.row.name in known:
            lines[-1] += f" {known[result.row.name]}"
        reasons = Counter(f"`{reason.code}`: {reason.text}" for reason in (*result.unproven, *result.given_up))
        if any(result.missing.values()):
            reasons.update(f"`{reason.code}`: {reason.text}" for reason in result.refusals)
        lines += [f"  - {text}" + (f" ({count} times)" if count > 1 else "") for text, count in reasons.items()]
    return lines


def page(
    head: str, results: Sequence[Result], failed: Mapping[str, str], known: Mapping[str, str], compiled: bool = True
) -> str:
    """The whole page as markdown: ``head``, totals, one table for each kind of architecture, what differs and why."""
    exact = sum(result.exact for result in results)
    lines = [head, "## Architectures", "", f"{len(results)} architectures, {exact} of them without any difference.", ""]
    lines += [*totals(results), ""]
    columns = ["architecture", "library", "nodes", "graphs", *KINDS, "seconds", *(["error"] if compiled else [])]
    for kind in dict.fromkeys(result.row.kind for result in results):
        lines += [f"### {kind.capitalize()}", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += [*(line(result, compiled) for result in results if result.row.kind == kind), ""]
    different = differences(results, known)
    if different:
        lines += ["## Where the counts differ (\\*)", "", *different, ""]
    if failed:
        lines += ["## Not run", "", *(f"- **{name}**: {text}" for name, text in failed.items()), ""]
    return "\n".join(lines)
