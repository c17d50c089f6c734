"""The walls of the house: who may import whom, where private torch is touched, what the wheel holds."""

from __future__ import annotations

import ast
import re
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


def test_no_model_library_class_or_parameter_is_named_in_patterns() -> None:
    # Patterns are found by data flow. If only one model's spelling works, it does not work.
    libraries = "diffusers transformers timm huggingface torchvision torchaudio"
    models = (
        "llama mistral mixtral gemma qwen phi bert roberta albert electra deberta gpt opt bloom falcon t5 bart pegasus "
        "whisper wav2vec hubert clip siglip llava vit deit beit swin convnext dinov2 mobilevit segformer resnet mamba "
        "rwkv griffin jamba zamba retnet xlstm deepseek olmoe dbrx flux pixart sana sdxl sd3 wan ltx mochi cogvideox "
        "unet hunyuan lumina dit mmdit repavit hiera mvit pvt xcit cait levit"
    )
    parameters = (
        "q_proj k_proj v_proj o_proj qkv_proj out_proj in_proj gate_proj up_proj down_proj gate_up_proj c_attn c_proj "
        "c_fc fc1 fc2 to_q to_k to_v to_out wi wo lm_head a_log dt_bias logit_scale relative_position_bias_table "
        "layer_norm input_layernorm self_attn cross_attn attn1 attn2 transformer_blocks"
    )
    operators = {"layer_norm"}  # also ATen's
    names = set(f"{libraries} {models} {parameters}".split()) - operators
    offences = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in _modules("patterns")
        for line in _code(path).splitlines()
        if names & set(re.findall(r"[a-z0-9_]+", line.lower()))
    ]
    assert not offences, offences


def _code(path: Path) -> str:
    """A file without comments and docstrings, which may cite where a method comes from."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        for statement in getattr(node, "body", None) if isinstance(getattr(node, "body", None), list) else []:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                statement.value = ast.Constant(None)
    return ast.unparse(tree)


def test_no_pattern_asks_for_the_name_of_a_module_or_parameter() -> None:
    """Where a node came from is for the report: only ``describe`` reads it, and the normal form hands it on.

    Detectors may compare paths and classes with each other (``running_modules``), never with a name.
    """
    asked = ("nn_module_stack", "named_parameters(", "named_modules(", "get_submodule")
    readers = {"describe.py", "functional.py", "normalize.py"}
    offences = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in _modules("patterns")
        if path.name not in readers
        for name in asked
        if name in _code(path)
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
