"""``make zoo``: every architecture, every site proven, and ``docs/zoo.md`` written.

``python -m tests.zoo.report [names or kinds]`` measures some rows only and prints them without writing the page.
"""

from __future__ import annotations

import sys
from pathlib import Path

from . import pages
from .exceptions import EXCEPTIONS
from .measure import Result
from .rows import ROWS

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


def known_exceptions() -> str:
    """The section of ``docs/detection.md`` that says which architectures differ, and why."""
    rows = (f"- {name}: {reason}" for name, reason in sorted(EXCEPTIONS.items()))
    return "\n".join([_EXCEPTIONS, "", *rows, ""])


def main(arguments: list[str]) -> int:
    """Measure and print; write the page when everything was measured. 1 when something unexplained differs."""
    chosen = [row for row in ROWS.values() if not arguments or {row.name, row.kind, row.library} & set(arguments)]
    results: list[Result] = []
    failed: dict[str, str] = {}
    for row, result in pages.measured("tests.zoo.rows", [row.name for row in chosen]):
        if isinstance(result, str):
            failed[row.name] = result
            print(f"{row.name}: {result}", flush=True)
            continue
        results.append(result)
        print(pages.line(result), flush=True)
        for text in pages.differences([result], EXCEPTIONS):
            print(f"    {text}", flush=True)
    if not arguments:
        versions = pages.versions(("torch", "transformers", "diffusers", "timm"))
        PAGE.write_text(pages.page(f"{_HEAD}\nVersions: {versions}.\n", results, failed, EXCEPTIONS))
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
