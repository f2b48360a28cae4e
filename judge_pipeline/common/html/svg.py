"""SVG primitives of the charts: a plotting frame, axes with round ticks, markers, dashes and legends.

In: numbers in data units and plain text. Out: ``Markup``; text is escaped. Colours come from the page's style: the
classes ``s0`` to ``s5`` set a series' colour, everything else is drawn in ``currentColor`` or a named class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from judge_pipeline.common.html.page import join

Point = tuple[float, float]

COLOURS = 6
DASHES = ("none", "7 4", "2 4", "9 4 2 4", "4 2", "12 3")


@dataclass(frozen=True)
class Frame:
    """A plotting area of ``width`` × ``height`` viewBox units and the data ranges it shows."""

    x_range: Point
    y_range: Point
    width: float = 540.0
    height: float = 280.0
    left: float = 52.0
    right: float = 14.0
    top: float = 12.0
    bottom: float = 44.0

    def x(self, value: float) -> float:
        """Horizontal viewBox coordinate of a data value."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """Vertical viewBox coordinate of a data value; SVG counts downwards."""
        low, high = self.y_range
        return (
            self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)
        )


def axes(frame: Frame, x_label: str, y_label: str, *, horizontal: bool = True, count: int = 5) -> Markup:
    """Grid lines, tick labels and axis names; ``horizontal=False`` draws the grid of a bar chart."""
    floor, end = frame.height - frame.bottom, frame.width - frame.right
    parts = []
    for value in ticks(*frame.y_range, count=count) if horizontal else []:
        y = frame.y(value)
        parts.append(segment("grid", frame.left, y, end, y))
        parts.append(text_at(frame.left - 7, y + 4, _tick_label(value), "end"))
    for value in ticks(*frame.x_range, count=count):
        x = frame.x(value)
        if not horizontal:
            parts.append(segment("grid", x, frame.top, x, floor))
        parts.append(text_at(x, floor + 17, _tick_label(value), "middle"))
    if horizontal:
        parts.append(segment("axis", frame.left, floor, end, floor))
    parts.append(text_at((frame.left + end) / 2, frame.height - 6, x_label, "middle"))
    if y_label:
        middle = (frame.top + floor) / 2
        parts.append(
            Markup(
                '<text transform="translate(12 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>'
            ).format(middle, y_label)
        )
    return join(*parts)


def figure(
    frame: Frame, parts: Sequence[Markup], label: str, series: Mapping[str, object], shape: str, note: str
) -> Markup:
    """A drawing with its legend (``series`` names, ``shape`` ``line`` or ``dot``), its description and a note."""
    names = [*series]
    legend = Markup("")
    if len(names) > 1:
        items = [
            Markup('<li><svg viewBox="0 0 22 12" aria-hidden="true" class="s{}">{}</svg>{}</li>').format(
                index % COLOURS, _swatch(index, shape), name
            )
            for index, name in enumerate(names)
        ]
        legend = Markup('<ul class="legend">{}</ul>').format(join(*items))
    described = f"{label}: {', '.join(names)}" if names else label
    return Markup(
        '<figure>{}<svg viewBox="0 0 {:.0f} {:.0f}" style="max-width:{:.0f}px" role="img" aria-label="{}">{}</svg>{}</figure>'
    ).format(
        legend,
        frame.width,
        frame.height,
        frame.width * 1.15,
        described,
        join(*parts),
        nothing(note) if note else "",
    )


def nothing(text: str) -> Markup:
    """Where a chart would stand: why there is none."""
    return Markup('<p class="caption">{}</p>').format(text)


def marker(index: int, x: float, y: float, radius: float, tip: str) -> Markup:
    """A circle, square, triangle, diamond, cross or ring, by the series' number."""
    r = radius
    shapes = (
        f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}">',
        f'<path class="mark" d="M{x - r:.1f} {y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z">',
        f'<path class="mark" d="M{x:.1f} {y - r:.1f}l{r:.1f} {2 * r:.1f}h{-2 * r:.1f}z">',
        f'<path class="mark" d="M{x:.1f} {y - r:.1f}l{r:.1f} {r:.1f}l{-r:.1f} {r:.1f}l{-r:.1f} {-r:.1f}z">',
        f'<path class="stroke" d="M{x - r:.1f} {y - r:.1f}l{2 * r:.1f} {2 * r:.1f}m0 {-2 * r:.1f}l{-2 * r:.1f} {2 * r:.1f}">',
        f'<circle class="stroke" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}">',
    )
    shape = Markup(shapes[index % COLOURS])
    close = Markup("</circle>") if index % COLOURS in (0, 5) else Markup("</path>")
    return shape + (Markup("<title>{}</title>").format(tip) if tip else Markup("")) + close


def segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """A straight line; ``kind`` is its class in the style."""
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def text_at(x: float, y: float, text: str, anchor: str, kind: str = "") -> Markup:
    """Text at a point; ``anchor`` is ``start``, ``middle`` or ``end``."""
    style = Markup(' class="{}"').format(kind) if kind else ""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}"{}>{}</text>').format(
        x, y, anchor, style, text
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values inside ``[low, high]``, about ``count`` of them, at steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda size: abs(size - rough))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _swatch(index: int, shape: str) -> Markup:
    if shape == "dot":
        return marker(index, 11, 6, 4.2, "")
    dash = DASHES[index % COLOURS]
    return Markup('<path d="M1 6H21" class="stroke" stroke-width="2" stroke-dasharray="{}"/>').format(dash)


def _tick_label(value: float) -> str:
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.4f}".rstrip("0").rstrip(".")
