"""Every architecture of the zoo by name."""

from __future__ import annotations

from . import diffusion, further, outside, recurrent, sound, text, vision, written
from .table import Row

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        *text.ROWS,
        *recurrent.ROWS,
        *vision.ROWS,
        *sound.ROWS,
        *diffusion.ROWS,
        *further.ROWS,
        *outside.ROWS,
        *written.ROWS,
    )
}
