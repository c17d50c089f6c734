"""``make outside``: models of libraries that detection was not made for, and ``docs/outside.md`` written.

``python -m tests.zoo.libraries_report [names or libraries]`` measures some rows only and prints them without writing
the page. Rows whose library cannot be imported are skipped, and named.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from . import libraries, pages, sweep
from .measure import Result
from .table import Row, declare_torchvision_operators

PAGE = Path(__file__).resolve().parents[2] / "docs" / "outside.md"

_HEAD = """# Architectures outside the zoo

`make outside` writes this page. The first part holds models of libraries that detection was not made for and that none
of its tests use (`tests/zoo/libraries*.py`); the second the architectures of transformers, diffusers and timm that are
not in the zoo, built by one set of rules (`tests/zoo/sweep.py`). Everything is built tiny with random weights, and
counted as in `docs/zoo.md`: "found / expected" compares detection with what eager execution did. Every site is proven
by execution. The figures of the first contact are in `docs/detection.md`.
"""


def importable(library: str) -> bool:
    """False where the library, or something it needs, is not installed."""
    declare_torchvision_operators()
    try:
        importlib.import_module(library)
    except (ImportError, OSError):
        return False
    return True


def _measured(module: str, rows: Iterable[Row]) -> tuple[list[Result], dict[str, str]]:
    results: list[Result] = []
    failed: dict[str, str] = {}
    for row, result in pages.measured(module, [row.name for row in rows], compiled=False):
        if isinstance(result, str):
            failed[row.name] = result
            print(f"{row.name}: {result}", flush=True)
            continue
        results.append(result)
        print(pages.line(result, compiled=False), flush=True)
        for text in pages.differences([result], {}):
            print(f"    {text}", flush=True)
    return results, failed


def write(parts: Sequence[tuple[list[Result], dict[str, str]]], libraries: Iterable[str]) -> None:
    """The page of what came out of the rows of ``libraries``, and of the sweep."""
    versions = f"Versions: torch {importlib.metadata.version('torch')}, {_versions(sorted(libraries))}.\n"
    titles = ("# Other libraries\n", "# The rest of transformers, timm and diffusers\n")
    written = [_HEAD, versions]
    for title, (results, failed) in zip(titles, parts, strict=True):
        written.append(pages.page(title, results, failed, {}, compiled=False))
    PAGE.write_text("\n".join(written))


def main(arguments: list[str]) -> int:
    """Measure and print; write the page when everything was measured. 1 when a site is false or not proven."""
    present = {name: importable(name) for name in dict.fromkeys(row.library for row in libraries.ROWS.values())}
    for name in [name for name, there in present.items() if not there]:
        print(f"skipped: {name} cannot be imported", flush=True)
    chosen = set(arguments)
    parts = []
    for module in (libraries, sweep):
        rows = [row for row in module.ROWS.values() if present.get(row.library, True)]
        rows = [row for row in rows if not chosen or {row.name, row.library} & chosen]
        parts.append(_measured(module.__name__, rows))
    if not chosen:
        write(parts, [name for name, there in present.items() if there])
    wrong = [result.row.name for results, _ in parts for result in results if any(result.false.values())]
    wrong += [result.row.name for results, _ in parts for result in results if result.unproven]
    if wrong:
        print(f"sites that eager did not run, or without a proof: {', '.join(wrong)}", flush=True)
    return 1 if wrong else 0


def _versions(names: Iterable[str]) -> str:
    known = importlib.metadata.packages_distributions()
    return ", ".join(f"{name} {importlib.metadata.version(known.get(name, [name])[0])}" for name in names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
