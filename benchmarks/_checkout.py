"""Import ``laconic`` and ``tests`` from the checkout this file lies in, installed or not, whatever its name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def use_checkout() -> None:
    """Make ``import laconic`` mean this checkout. The repository root is the package: no search path says so."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    if "laconic" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "laconic", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no package in {ROOT}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["laconic"] = module
    spec.loader.exec_module(module)


use_checkout()
