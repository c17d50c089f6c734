"""torchvision's wheel brings no CPU operators; its import needs their names. Declared once for every test process."""

from __future__ import annotations

from tests.models.timm_support import declare_torchvision_operators

declare_torchvision_operators()
