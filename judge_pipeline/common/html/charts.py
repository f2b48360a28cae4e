"""Charts, tables and figures as safe HTML: plain SVG, coloured by the style's variables, right in light and dark.

In: numbers and text. Out: ``Markup`` to put into a :class:`judge_pipeline.common.html.page.Section`. All text is escaped; what
is not finite is left out and said so. Series are told apart by colour and by marker or dash, never by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from judge_pipeline.common.html.page import format_value, join
from judge_pipeline.common.html.svg import (
    COLOURS,
    DASHES,
    Frame,
    Point,
    axes,
    figure,
    marker,
    nothing,
    segment,
    text_at,
)

MAX_POINTS = 3000
"""Points drawn per series. More would only make the file heavy; what is left out is named under the chart."""


def histogram(
    series: Mapping[str, Sequence[float]], bins: int | Sequence[float], x_label: str, *, percent: bool = False
) -> Markup:
    """One small panel a series, all with the same bins and the same vertical scale, so that shapes compare.

    ``bins`` is a number of equal bins over the common range, or the edges (ascending). ``percent`` shows shares of a
    series instead of counts, for series of unequal size. Each panel names its count and mean.
    """
    finite = {name: _finite_values(values) for name, values in series.items()}
    everything = np.concatenate([*finite.values(), np.empty(0)])
    if not everything.size:
        return nothing("No values to show.")
    edges = _equal_bins(everything, bins) if isinstance(bins, int) else np.asarray(bins, dtype=float)
    counts = {name: np.histogram(values, bins=edges)[0].astype(float) for name, values in finite.items()}
    if percent:
        counts = {name: count / max(1.0, count.sum()) * 100 for name, count in counts.items()}
    # Four at least: an axis of counts has no use for ticks between whole numbers.
    top = max(4.0, *(float(count.max()) for count in counts.values()))
    figures = [
        _panel(name, finite[name], counts[name], edges, top, index, x_label, percent)
        for index, name in enumerate(series)
    ]
    return Markup('<div class="panels">{}</div>').format(join(*figures))


def line(series: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> Markup:
    """Curves through points ``(x, y)``, each series in the order of its ``x``."""
    clean = {name: sorted(_finite_points(points)) for name, points in series.items()}
    clean = {name: points for name, points in clean.items() if points}
    if not clean:
        return nothing("No values to show.")
    shown = {name: _thin(points) for name, points in clean.items()}
    frame = Frame(*_ranges(clean.values()))
    parts = [axes(frame, x_label, y_label)]
    for index, (name, points) in enumerate(shown.items()):
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        curve = '<polyline class="curve" stroke="currentColor" stroke-dasharray="{}" points="{}"/>'
        parts.append(Markup(f'<g class="s{index % COLOURS}">{curve}').format(DASHES[index % COLOURS], path))
        if len(points) <= 60:
            parts += [marker(0, frame.x(x), frame.y(y), 2.6, _tip(name, x, y)) for x, y in points]
        parts.append(Markup("</g>"))
    return figure(frame, parts, f"{y_label} against {x_label}", shown, "line", _dropped(series, clean, shown))


def scatter(
    series: Mapping[str, Sequence[Point]], x_label: str, y_label: str, diagonal: bool = False
) -> Markup:
    """Points ``(x, y)``; ``diagonal`` draws the line x = y and gives both axes the same range."""
    clean = {name: _finite_points(points) for name, points in series.items()}
    clean = {name: points for name, points in clean.items() if points}
    if not clean:
        return nothing("No values to show.")
    shown = {name: _thin(points) for name, points in clean.items()}
    x_range, y_range = _ranges(clean.values())
    if diagonal:
        x_range = y_range = (min(x_range[0], y_range[0]), max(x_range[1], y_range[1]))
    frame = Frame(x_range, y_range, height=400.0 if diagonal else 300.0, width=440.0 if diagonal else 540.0)
    parts = [axes(frame, x_label, y_label)]
    if diagonal:
        (low, high) = x_range
        parts.append(segment("reference", frame.x(low), frame.y(low), frame.x(high), frame.y(high)))
    for index, (name, points) in enumerate(shown.items()):
        marks = [marker(index, frame.x(x), frame.y(y), 3.6, _tip(name, x, y)) for x, y in points]
        parts.append(Markup('<g class="s{} dot">{}</g>').format(index % COLOURS, join(*marks)))
    return figure(frame, parts, f"{y_label} against {x_label}", shown, "dot", _dropped(series, clean, shown))


def bars(values: Mapping[str, float], x_label: str, intervals: Mapping[str, Point] | None = None) -> Markup:
    """Horizontal bars from zero, with the value at the end and an optional interval ``(low, high)`` as a whisker."""
    finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
    if not finite:
        return nothing("No values to show.")
    spans = {name: span for name, span in (intervals or {}).items() if name in finite and _is_finite(span)}
    low = min(0.0, *finite.values(), *(span[0] for span in spans.values()))
    high = max(0.0, *finite.values(), *(span[1] for span in spans.values()))
    low, high = (low, high) if high > low else (0.0, 1.0)
    # A character of the 12 px font is about 6.6 units wide; names longer than 34 characters are cut with a mark.
    left = 24 + 6.6 * min(34, max(len(name) for name in finite))
    step, bottom = 30.0, 44.0
    height = 12 + step * len(finite) + bottom
    frame = Frame((low, high), (0.0, 1.0), width=640.0, height=height, left=left, right=64.0, bottom=bottom)
    parts = [axes(frame, x_label, "", horizontal=False)]
    for index, (name, value) in enumerate(finite.items()):
        middle = 12 + step * (index + 0.5)
        parts.append(_bar_row(frame, name, value, spans.get(name), middle))
    parts.append(segment("axis", frame.x(0), 12, frame.x(0), height - bottom))
    return figure(frame, parts, x_label, {}, "bar", "")


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    sortable: bool = True,
    align: Sequence[str] | None = None,
    caption: str = "",
) -> Markup:
    """A table. Numbers are formatted for reading and sort by their value; ``Markup`` cells stay HTML.

    ``align`` is ``left`` or ``right`` for each column; without it a column of numbers stands right and all others left.
    """
    body = [[*row] for row in rows]
    for row in body:
        if len(row) != len(headers):
            raise ValueError(
                f"a row has {len(row)} cells where the table has {len(headers)} columns: {row!r}"
            )
    sides = [*align] if align else [_side([row[column] for row in body]) for column in range(len(headers))]
    if len(sides) != len(headers) or not {*sides} <= {"left", "right"}:
        raise ValueError(f"align is left or right for each of the {len(headers)} columns, not {sides!r}")
    label = Markup('<button type="button">{}</button>') if sortable and len(body) > 1 else Markup("{}")
    heads = Markup("").join(
        Markup('<th scope="col" class="{}">{}</th>').format(side, label.format(header))
        for side, header in zip(sides, headers, strict=True)
    )
    lines = Markup("\n").join(
        Markup("<tr>{}</tr>").format(Markup("").join(map(_cell, row, sides))) for row in body
    )
    attribute = Markup(" data-sortable") if sortable and len(body) > 1 else Markup("")
    title = Markup('<p class="caption">{}</p>').format(caption) if caption else Markup("")
    return Markup(
        '<div class="table" tabindex="0" role="region" aria-label="{}"><table{}>'
        "<thead><tr>{}</tr></thead><tbody>\n{}\n</tbody></table></div>{}"
    ).format(caption or "Table", attribute, heads, lines, title)


def stat_tiles(tiles: Sequence[tuple[str, object, str]]) -> Markup:
    """Large figures in a row: ``(label, value, note)``; numbers are formatted for reading."""
    cells = [
        Markup('<div><dt>{}</dt><dd class="value">{}</dd>{}</div>').format(
            label, format_value(value), Markup('<dd class="note">{}</dd>').format(note) if note else ""
        )
        for label, value, note in tiles
    ]
    return Markup('<dl class="tiles">{}</dl>').format(join(*cells))


def _panel(
    name: str,
    values: np.ndarray,
    counts: np.ndarray,
    edges: np.ndarray,
    top: float,
    index: int,
    x_label: str,
    percent: bool,
) -> Markup:
    frame = Frame(
        (float(edges[0]), float(edges[-1])), (0.0, top), 256.0, 150.0, left=36.0, right=8.0, top=8.0
    )
    parts = [axes(frame, x_label, "", count=4)]
    unit = "%" if percent else ""
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        if not count:
            continue
        x, width = frame.x(low) + 0.75, max(1.0, frame.x(high) - frame.x(low) - 1.5)
        y = min(frame.y(count), frame.height - frame.bottom - 1)
        tip = f"{format_value(float(low))} to {format_value(float(high))}: {format_value(float(count))}{unit}"
        parts.append(
            Markup(
                '<rect class="fill" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="1"><title>{}</title></rect>'
            ).format(x, y, width, frame.height - frame.bottom - y, tip)
        )
    if values.size:
        mean = frame.x(float(values.mean()))
        parts.append(segment("reference", mean, frame.top, mean, frame.height - frame.bottom))
    note = f"n {values.size:,} · mean {values.mean():.2f}" if values.size else "no values"
    label = f"Distribution of {name}: {note}"
    svg = Markup('<svg viewBox="0 0 256 150" role="img" aria-label="{}" class="s{}">{}</svg>')
    return Markup("<figure><figcaption>{}<span>{}</span></figcaption>{}</figure>").format(
        name, note, svg.format(label, index % COLOURS, join(*parts))
    )


def _equal_bins(values: np.ndarray, count: int) -> np.ndarray:
    """Edges of equal bins over the values; wide enough that neighbouring edges are different numbers."""
    low, high = float(values.min()), float(values.max())
    margin = 0.5 if low == high else 0.0
    least = 1e-9 * max(abs(low), abs(high))
    return np.linspace(low - max(margin, least), high + max(margin, least), count + 1)


def _bar_row(frame: Frame, name: str, value: float, span: Point | None, middle: float) -> Markup:
    start, end = sorted((frame.x(0), frame.x(value)))
    shown = name if len(name) <= 34 else name[:33] + "…"
    parts = [
        text_at(frame.left - 10, middle + 4, shown, "end", "strong"),
        Markup(
            '<rect class="s0 fill" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="16" rx="2"><title>{}: {}</title></rect>'
        ).format(start, middle - 8, max(1.0, end - start), name, format_value(value)),
    ]
    label_x = end
    if span:
        low, high = frame.x(span[0]), frame.x(span[1])
        label_x = max(end, high)
        parts.append(segment("whisker", low, middle, high, middle))
        parts += [segment("whisker", x, middle - 4, x, middle + 4) for x in (low, high)]
    parts.append(text_at(label_x + 7, middle + 4, format_value(value), "start"))
    return join(*parts)


def _cell(value: object, side: str) -> Markup:
    if isinstance(value, int | float) and not isinstance(value, bool):
        key = repr(value) if math.isfinite(value) else ""
        return Markup('<td class="{}" data-sort="{}">{}</td>').format(side, key, format_value(value))
    if value is None:
        return Markup('<td class="{}" data-sort="">–</td>').format(side)
    return Markup('<td class="{}">{}</td>').format(
        side, value if isinstance(value, Markup) else format_value(value)
    )


def _side(column: Sequence[object]) -> str:
    values = [value for value in column if value is not None]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return "right" if values and numeric else "left"


def _tip(name: str, x: float, y: float) -> str:
    return f"{name}: {format_value(float(x))}, {format_value(float(y))}"


def _finite_values(values: Iterable[float | None]) -> np.ndarray:
    array = np.array([math.nan if value is None else value for value in values], dtype=float)
    return array[np.isfinite(array)]


def _is_finite(point: Point) -> bool:
    return all(value is not None and math.isfinite(value) for value in point)


def _finite_points(points: Iterable[Point]) -> list[Point]:
    return [(float(x), float(y)) for x, y in points if _is_finite((x, y))]


def _thin(points: list[Point]) -> list[Point]:
    """Every k-th point, so that at most ``MAX_POINTS`` remain; the last one is kept."""
    if len(points) <= MAX_POINTS:
        return points
    step = math.ceil(len(points) / (MAX_POINTS - 1))
    return [*points[:-1:step], points[-1]]


def _dropped(
    given: Mapping[str, Sequence[Point]], clean: Mapping[str, list[Point]], shown: Mapping[str, list[Point]]
) -> str:
    total = sum(len(points) for points in given.values())
    finite = sum(len(points) for points in clean.values())
    drawn = sum(len(points) for points in shown.values())
    notes = []
    if drawn < finite:
        notes.append(f"{drawn:,} of {finite:,} points are drawn.")
    if finite < total:
        notes.append(f"{total - finite:,} points have no finite value and are left out.")
    return " ".join(notes)


def _ranges(groups: Iterable[list[Point]]) -> tuple[Point, Point]:
    """The x and y range of all points, with a little air above and below; never empty."""
    array = np.array([point for points in groups for point in points])
    low, high = array.min(axis=0), array.max(axis=0)
    return _padded(float(low[0]), float(high[0]), 0.02), _padded(float(low[1]), float(high[1]), 0.06)


def _padded(low: float, high: float, share: float) -> Point:
    if high == low:
        margin = abs(low) * 0.1 or 1.0
        return low - margin, high + margin
    margin = (high - low) * share
    return low - margin, high + margin
