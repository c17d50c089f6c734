"""The walls of the house: who may import whom, where private torch is touched, what the wheel holds."""

from __future__ import annotations

import ast
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WINGS = ("patterns", "passes", "backends")


def _modules(wing: str) -> list[Path]:
    return sorted((ROOT / wing).rglob("*.py"))


def _imports(path: Path) -> list[str]:
    """Absolute dotted names imported anywhere in a file; relative imports as ``laconic.<wing>...``."""
    package = ["laconic", *path.relative_to(ROOT).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, node.module] if node.module else base)
            found += [stem, *(f"{stem}.{alias.name}" for alias in node.names)]
    return found


@pytest.mark.parametrize(
    ("wing", "forbidden"),
    [
        ("patterns", ("laconic.passes", "laconic.backends", "triton")),
        ("passes", ("laconic.backends", "triton")),
    ],
)
def test_imports_run_one_way(wing: str, forbidden: tuple[str, ...]) -> None:
    offences = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _modules(wing)
        for name in _imports(path)
        if any(name == bad or name.startswith(f"{bad}.") for bad in forbidden)
    ]
    assert not offences, offences


def test_only_kernels_import_triton() -> None:
    offences = [
        str(path.relative_to(ROOT))
        for path in _modules("backends")
        if "kernels" not in path.parts and any(name.split(".")[0] == "triton" for name in _imports(path))
    ]
    assert not offences, offences


def test_private_torch_is_touched_only_where_the_table_says() -> None:
    table = (ROOT / "docs" / "private_torch.md").read_text()
    offences = []
    for wing in WINGS:
        for path in _modules(wing):
            relative = str(path.relative_to(ROOT))
            for name in _imports(path):
                parts = name.split(".")
                private = parts[0] == "torch" and any(part.startswith("_") for part in parts[1:])
                if private and f"`{relative}`" not in table:
                    offences.append(f"{relative} imports {name}")
    assert not offences, f"add a row to docs/private_torch.md or use public API: {offences}"


def test_no_model_or_library_is_named_in_the_wings() -> None:
    # Patterns are found by data flow. If only one model's spelling works, it does not work.
    names = ("llama", "bert", "gpt", "flux", "pixart", "mamba", "vit_", "diffusers", "transformers.", "timm")
    offences = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in _modules("patterns")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if any(name in line.lower() for name in names)
    ]
    assert not offences, offences


def test_importing_laconic_is_light() -> None:
    code = "import sys, laconic; print([m for m in ('triton', 'networkx', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    import laconic

    for name in laconic.__all__:
        assert getattr(laconic, name) is not None
    with pytest.raises(AttributeError):
        laconic.no_such_name  # noqa: B018


def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    """Built from what git would archive, so a stale build folder cannot leak in; compared both ways."""
    archive = tmp_path / "source.tar"
    listed = subprocess.run(
        ["git", "ls-files", "--cached"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    source = tmp_path / "source"
    source.mkdir()
    with tarfile.open(archive, "w") as tar:
        for name in listed:
            if (ROOT / name).exists():
                tar.add(ROOT / name, arcname=name)
    with tarfile.open(archive) as tar:
        tar.extractall(source, filter="data")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(source)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive_file:
        held = {name for name in archive_file.namelist() if ".dist-info/" not in name}
        entry_points = next(n for n in archive_file.namelist() if n.endswith("entry_points.txt"))
        assert "laconic.backends.entry:laconic" in archive_file.read(entry_points).decode()
    wanted = {f"laconic/{name}" for name in ("__init__.py", "__main__.py", "py.typed")}
    for wing in WINGS:
        wanted |= {f"laconic/{name}" for name in listed if name.startswith(f"{wing}/") and name.endswith(".py")}
    assert held == wanted
