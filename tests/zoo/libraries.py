"""Every row of a library that detection was not made for; ``make outside`` measures them."""

from __future__ import annotations

from . import libraries_modal, libraries_options, libraries_recurrences, libraries_text, libraries_vision
from .table import Row

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        *libraries_vision.ROWS,
        *libraries_options.ROWS,
        *libraries_text.ROWS,
        *libraries_modal.ROWS,
        *libraries_recurrences.ROWS,
    )
}
