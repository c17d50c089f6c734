"""What the pages say is there is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import laconic
from laconic.passes import ORDER
from laconic.patterns.reasons import CODES
from tests.zoo.report import known_exceptions

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]


def anchors(page: Path) -> set[str]:
    """Named anchors and those a heading makes."""
    text = page.read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.name if page.parent == ROOT else page.parent.name + "/" + page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    for path in re.findall(
        r"`((?:docs|benchmarks|examples|tests|patterns|passes|backends)/[\w/]+\.(?:md|py))`", page.read_text()
    ):
        if not (ROOT / path).exists():
            broken.append(path)
    assert not broken


def test_every_code_of_a_refusal_is_explained() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", (ROOT / "docs" / "debugging.md").read_text(), re.MULTILINE)
    assert dict(rows) == CODES


def test_every_pass_has_its_place_on_the_page() -> None:
    page = ROOT / "docs" / "passes.md"
    own = [verb for verb in ORDER if verb in laconic.__all__]  # other tests register passes of their own
    assert set(own) <= anchors(page)
    readme = (ROOT / "README.md").read_text()
    assert [verb for verb in own if f"`{verb}(" not in readme] == []


def test_every_exception_of_the_zoo_is_explained() -> None:
    assert known_exceptions() in (ROOT / "docs" / "detection.md").read_text()
