"""Every row of a library that detection was not made for; ``make outside`` measures them."""

from __future__ import annotations

from . import (
    libraries_diffusion,
    libraries_images,
    libraries_multimodal,
    libraries_options,
    libraries_recurrences,
    libraries_recurrent,
    libraries_sound,
    libraries_text,
    libraries_vision,
)
from .table import Row

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        *libraries_vision.ROWS,
        *libraries_options.ROWS,
        *libraries_text.ROWS,
        *libraries_recurrent.ROWS,
        *libraries_recurrences.ROWS,
        *libraries_multimodal.ROWS,
        *libraries_images.ROWS,
        *libraries_diffusion.ROWS,
        *libraries_sound.ROWS,
    )
}
