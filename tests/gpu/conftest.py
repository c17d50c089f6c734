"""The GPU tests run from a checkout on machines where nothing can be installed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import _checkout  # noqa: F401
