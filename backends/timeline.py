"""The picture of a session: what was computed and reused, what decided, and the memory held. Plain SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from .summary import Call, Summary

CELL, ROW, GRAPH, LABEL, TOP = 12, 14, 30, 220, 44
COMPUTED, REUSED, LINE, MEMORY, TEXT = "#3b5b92", "#c9d6ec", "#c0392b", "#7f9f7f", "#222"


def svg(summary: Summary) -> str:
    """The session as one SVG document, drawn to be read at its own size.

    A row of cells for each region and stream (dark: computed, light: reused, none: not reached), under it the numbers
    that decided, from zero to the largest, and at the bottom the bytes of state after each step.
    """
    rows: dict[tuple[str, int], list[Call]] = {}
    for call in summary.calls:
        rows.setdefault((call.region, call.stream), []).append(call)
    steps = max((call.step for call in summary.calls), default=summary.steps - 1) + 1
    shapes: list[str] = []
    y = TOP
    for (region, stream), calls in rows.items():
        shapes += _cells(region if summary.calls_per_step == 1 else f"{region} stream {stream}", calls, y)
        y += ROW + 4
        numbers = {call.step: call.indicator for call in calls if call.indicator is not None}
        top = max((value for value in numbers.values() if math.isfinite(value)), default=0.0)
        if top > 0:
            shapes += _curve(numbers.items(), top, y, LINE, f"up to {top:.3g}")
            y += GRAPH + 8
    if summary.peak_bytes:
        held = sorted(summary.bytes_held.items())
        shapes += _curve(held, summary.peak_bytes, y, MEMORY, f"state, up to {summary.peak_bytes / 2**20:.3g} MiB")
        y += GRAPH + 8
    ticks = [
        _text(LABEL + (step + 0.5) * CELL, TOP - 6, str(step), "middle")
        for step in range(0, steps, 5 if steps <= 60 else 10 * math.ceil(steps / 300))
    ]
    head = str(summary).splitlines()[0]
    width, height = max(LABEL + steps * CELL + 20, LABEL + 7 * len(head)), y + 6
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="10">',
            f"<title>{escape(head)}</title>",
            f'<rect width="{width}" height="{height}" fill="white"/>',
            _text(8, 18, head),
            *ticks,
            *shapes,
            "</svg>\n",
        ]
    )


def _cells(label: str, calls: Sequence[Call], y: int) -> list[str]:
    shapes = [_text(LABEL - 8, y + ROW - 3, label, "end")]
    for call in calls:
        what = "reused" if call.reused else "computed"
        number = "" if call.indicator is None else f", indicator {call.indicator:.4g}"
        shapes.append(
            f'<rect x="{LABEL + call.step * CELL}" y="{y}" width="{CELL - 1}" height="{ROW}" '
            f'fill="{REUSED if call.reused else COMPUTED}">'
            f"<title>{escape(label)}, step {call.step}: {what}{number}</title></rect>"
        )
    return shapes


def _curve(points: Iterable[tuple[int, float]], top: float, y: int, color: str, label: str) -> list[str]:
    placed = [
        f"{LABEL + (step + 0.5) * CELL:.1f},{y + GRAPH - GRAPH * min(max(value / top, 0.0), 1.0):.1f}"
        for step, value in points
        if math.isfinite(value)
    ]
    return [
        _text(LABEL - 8, y + GRAPH - 3, label, "end"),
        f'<polyline points="{" ".join(placed)}" fill="none" stroke="{color}"/>',
    ]


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{TEXT}">{escape(text)}</text>'
