"""``make zoo``: every architecture, every site proven, and ``docs/zoo.md`` written.

``python -m tests.zoo.report [names or kinds]`` measures some rows only and prints them without writing the page.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from .compiled import error_of
from .exceptions import EXCEPTIONS
from .measure import KINDS, Result, measure
from .rows import ROWS
from .table import declare_torchvision_operators

PAGE = Path(__file__).resolve().parents[2] / "docs" / "zoo.md"

LARGEST_ERROR = 1e-5

DETECTION = PAGE.parent / "detection.md"
_EXCEPTIONS = """## Known exceptions

Architectures of the zoo on which detection and eager execution differ (`tests/zoo/exceptions.py`). `docs/zoo.md` has
the counts and what the report says about each. A row that differs without a reason fails `make zoo`, which writes this
list."""

_HEAD = """# The model zoo

`make zoo` writes this page. Each architecture is built tiny from its configuration (random weights, nothing
downloaded), run eagerly once, captured by `torch.compile`, brought to normal form, and searched; every site is then
proven by execution (`verify="always"`). "Found / expected" compares detection with what *eager execution* did: the
rules by which that is counted are at the head of `tests/zoo/eager.py` and share no code with detection. Time is that
of detection alone, in seconds, on the machine that wrote this page. "Error" is the largest relative L2 error of any
output when the model is then compiled with the passes that are on by default (`tests/zoo/compiled.py`).
"""


def _line(result: Result) -> str:
    cells = [result.row.name, result.row.library, str(result.nodes), str(result.graphs)]
    for kind in KINDS:
        found, expected = result.found[kind], result.expected(kind)
        mark = " \\*" if result.missing[kind] or result.false[kind] else ""
        cells.append(f"{found} / {expected}{mark}" if found or expected else "")
    return "| " + " | ".join([*cells, f"{result.seconds:.2f}", f"{result.error:.0e}" if result.error else "0"]) + " |"


def _totals(results: list[Result]) -> list[str]:
    lines = ["| kind | expected | found | missing | false | recall |", "|---|---|---|---|---|---|"]
    for kind in KINDS:
        expected = sum(result.expected(kind) for result in results)
        missing = sum(result.missing[kind] for result in results)
        false = sum(result.false[kind] for result in results)
        found = sum(result.found[kind] for result in results)
        recall = f"{(expected - missing) / expected:.1%}" if expected else ""
        lines.append(f"| {kind} | {expected} | {found} | {missing} | {false} | {recall} |")
    return lines


def _differences(results: list[Result]) -> list[str]:
    lines = []
    for result in results:
        if result.exact:
            continue
        what = [f"{number} {kind} not found" for kind, number in result.missing.items() if number]
        what += [f"{number} {kind} more than eager ran" for kind, number in result.false.items() if number]
        blocks = [*result.lost_blocks, *result.false_blocks]
        named = f" ({', '.join(f'`{block}`' for block in blocks)})" if blocks else ""
        lines.append(f"- **{result.row.name}**: {', '.join(what) or 'counts agree'}{named}.")
        if result.row.name in EXCEPTIONS:
            lines[-1] += f" {EXCEPTIONS[result.row.name]}"
        reasons = Counter(f"`{reason.code}`: {reason.text}" for reason in (*result.unproven, *result.given_up))
        if any(result.missing.values()):
            reasons.update(f"`{reason.code}`: {reason.text}" for reason in result.refusals)
        lines += [f"  - {text}" + (f" ({count} times)" if count > 1 else "") for text, count in reasons.items()]
    return lines


def page(results: list[Result], failed: dict[str, str]) -> str:
    """The whole page as markdown."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "diffusers", "timm")
    )
    lines = [_HEAD, f"Versions: {versions}.", ""]
    exact = sum(result.exact for result in results)
    lines += ["## Architectures", "", f"{len(results)} architectures, {exact} of them without any difference.", ""]
    lines += [*_totals(results), ""]
    for kind in dict.fromkeys(result.row.kind for result in results):
        lines += [f"### {kind.capitalize()}", ""]
        lines += ["| architecture | library | nodes | graphs | " + " | ".join(KINDS) + " | seconds | error |"]
        lines += ["|---" * (6 + len(KINDS)) + "|"]
        lines += [*(_line(result) for result in results if result.row.kind == kind), ""]
    differences = _differences(results)
    if differences:
        lines += ["## Where the counts differ (\\*)", "", *differences, ""]
    if failed:
        lines += ["## Not run", "", *(f"- **{name}**: {text}" for name, text in failed.items()), ""]
    return "\n".join(lines)


def known_exceptions() -> str:
    """The section of ``docs/detection.md`` that says which architectures differ, and why."""
    rows = (f"- {name}: {reason}" for name, reason in sorted(EXCEPTIONS.items()))
    return "\n".join([_EXCEPTIONS, "", *rows, ""])


def _measured(name: str) -> Result | str:
    """One row, in a process of its own kind: what can be handed over of its result, or what went wrong."""
    warnings.filterwarnings("ignore")
    declare_torchvision_operators()
    row = ROWS[name]
    try:
        result = measure(row, "always")
        result.error = error_of(row)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    # Rows hold functions and sites hold nodes of graphs: neither leaves the process.
    return replace(result, row=None, sites=[])  # type: ignore[arg-type]


def main(arguments: list[str]) -> int:
    """Measure and print; write the page when everything was measured. 1 when something unexplained differs."""
    declare_torchvision_operators()  # results name classes of libraries
    chosen = [row for row in ROWS.values() if not arguments or {row.name, row.kind, row.library} & set(arguments)]
    results: list[Result] = []
    failed: dict[str, str] = {}
    processes = min(len(chosen), os.cpu_count() or 1) or 1
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for row, result in zip(chosen, pool.map(_measured, [row.name for row in chosen]), strict=True):
            if isinstance(result, str):
                failed[row.name] = result
                print(f"{row.name}: {result}", flush=True)
                continue
            results.append(replace(result, row=row))
            print(_line(results[-1]), flush=True)
            for text in [] if results[-1].exact else _differences(results[-1:]):
                print(f"    {text}", flush=True)
    if not arguments:
        PAGE.write_text(page(results, failed))
        before, _, after = DETECTION.read_text().partition("## Known exceptions")
        DETECTION.write_text(f"{before}{known_exceptions()}\n{after[after.index('## ') :]}")
    unexplained = [result.row.name for result in results if not result.exact and result.row.name not in EXCEPTIONS]
    wrong = [result.row.name for result in results if not result.error <= LARGEST_ERROR]
    for names, what in ((unexplained, "differ without an explanation"), (wrong, "compute something else")):
        if names:
            print(f"{what}: {', '.join(names)}", flush=True)
    return 1 if failed or unexplained or wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
