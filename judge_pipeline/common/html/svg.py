"""The parts of a chart: elements, a plotting frame, axes with round ticks, markers, dashes and legends.

In: numbers in data units and plain text. Out: ``Markup``; text is escaped. Colours come from the page's style: the
classes ``s0`` to ``s5`` set a series' colour, everything else is drawn in ``currentColor`` or a named class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from judge_pipeline.common.html.page import caption, join

Point = tuple[float, float]

COLOURS = 6
DASHES = ("none", "7 4", "2 4", "9 4 2 4", "4 2", "12 3")
_MARKS = (
    "circle",
    "M{left} {top}h{w}v{w}h-{w}z",
    "M{x} {top}l{r} {w}h-{w}z",
    "M{x} {top}l{r} {r}l-{r} {r}l-{r} -{r}z",
    "M{left} {top}l{w} {w}m0 -{w}l-{w} {w}",
    "circle",
)
"""Circle, square, triangle, diamond, cross, ring: the first four are filled."""


def element(tag: str, *content: Markup | str, **attributes: object) -> Markup:
    """An SVG or HTML element. Coordinates are written to a tenth; ``class_`` is ``class``, ``text_anchor`` with a dash."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(f"{value:.1f}" if isinstance(value, float) else value)}"'
        for name, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(tag, Markup(named), Markup("").join(content))


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

    @property
    def floor(self) -> float:
        """Vertical coordinate of the horizontal axis."""
        return self.height - self.bottom

    def x(self, value: float) -> float:
        """Horizontal viewBox coordinate of a data value."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """Vertical viewBox coordinate of a data value; SVG counts downwards."""
        low, high = self.y_range
        return self.floor - (value - low) / (high - low) * (self.floor - self.top)

    def svg(self, label: str, *content: Markup, **attributes: object) -> Markup:
        """The drawing; ``label`` is what a screen reader says."""
        box = f"0 0 {self.width:.0f} {self.height:.0f}"
        return element("svg", *content, viewBox=box, role="img", aria_label=label, **attributes)


def axes(frame: Frame, x_label: str, y_label: str, *, horizontal: bool = True, count: int = 5) -> Markup:
    """Grid lines, tick labels and axis names; ``horizontal=False`` draws the grid of a bar chart."""
    end = frame.width - frame.right
    parts = []
    for value in ticks(*frame.y_range, count=count) if horizontal else []:
        y = frame.y(value)
        parts.append(segment("grid", frame.left, y, end, y))
        parts.append(text_at(frame.left - 7, y + 4, _tick_label(value), "end"))
    for value in ticks(*frame.x_range, count=count):
        x = frame.x(value)
        if not horizontal:
            parts.append(segment("grid", x, frame.top, x, frame.floor))
        parts.append(text_at(x, frame.floor + 17, _tick_label(value), "middle"))
    if horizontal:
        parts.append(segment("axis", frame.left, frame.floor, end, frame.floor))
    parts.append(text_at((frame.left + end) / 2, frame.height - 6, x_label, "middle"))
    if y_label:
        turned = f"translate(12 {(frame.top + frame.floor) / 2:.1f}) rotate(-90)"
        parts.append(element("text", y_label, transform=turned, text_anchor="middle"))
    return join(*parts)


def figure(
    frame: Frame,
    parts: Sequence[Markup],
    label: str,
    names: Sequence[str] = (),
    shape: str = "",
    note: str = "",
) -> Markup:
    """A drawing with the legend of its series (``shape`` is ``line`` or ``dot``), its description and a note."""
    legend = []
    for index, name in enumerate(names if len(names) > 1 else ()):
        if shape == "dot":
            swatch = marker(index, 11, 6, 4.2)
        else:
            dashes = {"stroke_width": 2, "stroke_dasharray": DASHES[index % COLOURS]}
            swatch = element("path", d="M1 6H21", class_="stroke", **dashes)
        colour = f"s{index % COLOURS}"
        icon = element("svg", swatch, viewBox="0 0 22 12", aria_hidden="true", class_=colour)
        legend.append(element("li", icon, name))
    described = f"{label}: {', '.join(names)}" if names else label
    drawing = frame.svg(described, *parts, style=f"max-width:{frame.width * 1.15:.0f}px")
    shown = [element("ul", *legend, class_="legend")] if legend else []
    return element("figure", *shown, drawing, caption(note) if note else "")


def marker(index: int, x: float, y: float, radius: float, tip: str = "") -> Markup:
    """A circle, square, triangle, diamond, cross or ring, by the series' number; ``tip`` is said under the pointer."""
    kind = index % COLOURS
    content = [element("title", tip)] if tip else []
    style = "mark" if kind < 4 else "stroke"
    if _MARKS[kind] == "circle":
        return element("circle", *content, class_=style, cx=float(x), cy=float(y), r=radius)
    sizes = {"x": x, "left": x - radius, "top": y - radius, "r": radius, "w": 2 * radius}
    path = _MARKS[kind].format(**{name: f"{size:.1f}" for name, size in sizes.items()})
    return element("path", *content, class_=style, d=path)


def segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """A straight line; ``kind`` is its class in the style."""
    return element("line", class_=kind, x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2))


def text_at(x: float, y: float, text: str, anchor: str, **attributes: str) -> Markup:
    """Text at a point; ``anchor`` is ``start``, ``middle`` or ``end``."""
    return element("text", text, x=float(x), y=float(y), text_anchor=anchor, **attributes)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values inside ``[low, high]``, about ``count`` of them, at steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda size: abs(size - rough))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _tick_label(value: float) -> str:
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.4f}".rstrip("0").rstrip(".")
