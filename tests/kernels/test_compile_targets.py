"""Every kernel compiles for every target, without a GPU; nothing spills on NVIDIA, and shared memory fits."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")

from laconic.backends.kernels import FAMILIES, launch, resources
from laconic.backends.kernels.launch import TARGETS, Case

FIRST = {family: next(case for name, case in resources.cases() if name == family) for family in FAMILIES}


def _matrix() -> list[tuple[str, Case, str]]:
    """The first case of each module on every target; the others (odd sizes, other types) on one target in turn."""
    rows = []
    for number, (family, case) in enumerate(resources.cases()):
        several = case is FIRST[family] or "spans" in case.label or "lists" in case.label or number == 0
        targets = list(TARGETS) if several else [list(TARGETS)[number % 3]]
        rows += [(family, case, target) for target in targets]
    return rows


@pytest.mark.parametrize(
    ("case", "target"),
    [pytest.param(case, target, id=f"{family}-{case.label}-{target}") for family, case, target in _matrix()],
)
def test_compiles(case: Case, target: str) -> None:
    if target in case.unsupported:
        pytest.skip(f"{target}: {case.unsupported[target]}")
    for found in resources.compiled(case, target):
        assert found.shared_memory <= TARGETS[target].shared_memory, found
        assert 0 < found.registers <= 512, found
        if target.startswith("sm_"):
            assert found.spills == 0, found


def test_every_jitted_kernel_has_a_case() -> None:
    planned = {item.name for _, case in resources.cases() for item in case.plan(TARGETS["sm_90"])}
    folder = Path(launch.__file__).parent
    defined = {
        line.split("(")[0].removeprefix("def ")
        for path in folder.glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def ") and line.split("(")[0].endswith("_kernel")
    }
    assert planned == defined


def test_the_documented_table_names_every_case() -> None:
    text = (folder_of_repository() / "docs" / "kernels.md").read_text()
    missing = [case.label for _, case in resources.cases() if case.label not in text]
    assert not missing, "run python -m laconic.backends.kernels.resources"


def folder_of_repository() -> Path:
    return Path(__file__).resolve().parents[2]


def test_a_launch_is_specialised_as_triton_would() -> None:
    (item,) = FIRST["int8_linear"].plan(TARGETS["sm_90"])
    item.arguments["rows"], item.arguments["columns"], item.arguments["depth"] = 1, 2**33, 48
    signature, constants, attributes = resources.specialised(item)
    positions = {name: position for position, name in enumerate(signature)}
    assert (signature["x"], signature["out"]) == ("*i8", "*bf16")
    assert signature["rows"] == "constexpr" and constants["rows"] == 1
    assert signature["columns"] == "i64" and (positions["depth"],) in attributes
