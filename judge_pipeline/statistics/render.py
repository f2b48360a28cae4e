"""Agreement tables for people: plain text for the terminal, Markdown for a page, sections for `report.html`.

In: the dictionaries of `compare`. Out: strings and `Section`s; no figure is computed here. A target has several narrow
tables, each with a row a scorer, so that none is wider than a terminal of `WIDTH` columns.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from judge_pipeline.common.html.charts import bars, line, table
from judge_pipeline.common.html.page import Section, join, prose
from judge_pipeline.statistics.agreement import POINT_METRICS, PROMPT_METRICS, SET_METRICS
from judge_pipeline.statistics.bootstrap import FEW_DOCUMENTS, MIN_DOCUMENTS
from judge_pipeline.statistics.compare import PREFERENCES

WIDTH = 100
HEADS = {
    "spearman": "Spearman",
    "kendall": "Kendall τ-b",
    "pairs": "pairs",
    "somers_d": "Somers' D",
    "best_of_n": "best of N",
    "best_above_chance": "best over chance",
    "kappa_within": "κ in points",
    "worst_of_n": "worst of N",
    "same_pair": "same pair",
    "pair_direction": "pair direction",
    "regret": "regret",
    "mae": "MAE",
    "kappa": "Cohen's κ",
    "alpha": "Krippendorff's α",
}
Figure = dict[str, Any]
AHEAD = "model minus this row"
CHANCE = "within prompts, chance taken off"
PAIRED = "judge minus judge, on the same answers"
TABLES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("within prompts", "within", ("spearman", "pairs", "best_of_n")),
    (CHANCE, "within", ("somers_d", "best_above_chance", "kappa_within")),
    (f"{AHEAD}, on the same answers", "ahead", ("spearman", "pairs")),
    (PAIRED, "paired", ("spearman", "pairs")),
    ("within prompts, more", "within", ("kendall", "regret")),
    ("best and worst", "within", ("worst_of_n", "same_pair", "pair_direction")),
    ("order over the whole set", "over_set", ("spearman", "kendall")),
    ("points over the whole set", "over_set", ("mae", "kappa", "alpha")),
)
"""Caption, part of a row, figures."""
SHORT = 4
"""Tables that a terminal shows; the rest is in the files."""


def value(figure: Figure | None, digits: int = 2, sign: str = "") -> str:
    """A figure without its interval: `0.61`, or `–`."""
    found = (figure or {}).get("value")
    return "–" if found is None else f"{found:{sign}.{digits}f}"


def interval(figure: Figure | None, digits: int = 3, sign: str = "") -> str:
    """`0.612 [0.540, 0.681]`; `0.612 [–]` without an interval, `–` without a figure; `sign="+"` for differences."""
    text = value(figure, digits, sign)
    if not figure or text == "–":
        return text
    if figure.get("low") is None or figure.get("high") is None:
        return f"{text} [–]"
    return f"{text} [{figure['low']:{sign}.{digits}f}, {figure['high']:{sign}.{digits}f}]"


def interval_cell(figure: Figure | None, sign: str = "") -> Markup:
    """The same for a page: the figure, and its interval small below it."""
    if not figure or figure.get("value") is None:
        return Markup("–")
    value = Markup(f"{figure['value']:{sign}.2f}")
    if figure.get("low") is None or figure.get("high") is None:
        return value + Markup("<br><small>–</small>")
    span = Markup('<br><small style="white-space:nowrap">{:.2f} to {:.2f}</small>')
    return value + span.format(figure["low"], figure["high"])


Rows = list[list[str]]
Cell = Callable[[Figure | None, str], str]
"""Writes a figure; the sign is "+" for differences."""


def short_interval(figure: Figure | None, sign: str = "") -> str:
    """`interval` with two digits, as tables have it."""
    return interval(figure, 2, sign)


def result_tables(
    result: dict[str, Any], cell: Cell, wanted: int | None = None
) -> list[tuple[str, list[str], Rows]]:
    """(caption, heads, rows) of one target's tables, the first `wanted` of `TABLES`; `cell` writes a figure.

    A table holds the figures that some row has, and the rows that have one of them.
    """
    found = []
    for title, part, metrics in TABLES[:wanted]:
        listed = result["paired"] if part == "paired" else result["rows"]
        shown = [name for name in metrics if any(name in row.get(part, {}) for row in listed)]
        rows = [row for row in listed if any(name in row.get(part, {}) for name in shown)]
        if rows:
            sign = "+" if part in ("ahead", "paired") else ""
            cells = [[row["name"], *(cell(row[part].get(name), sign) for name in shown)] for row in rows]
            found.append((title, ["scored by", *(HEADS[name] for name in shown)], cells))
    return found


def few_documents(documents: int) -> str | None:
    """What to say of intervals over so few documents; None where they are enough."""
    if documents >= FEW_DOCUMENTS:
        return None
    return (
        f"{documents} documents are few: intervals over them are too narrow, and below {MIN_DOCUMENTS} documents "
        "there is none"
    )


def caption(result: dict[str, Any]) -> str:
    """What the table of one target is computed from."""
    if "pairs" in result:
        what = " that people decided" if result["target"] == PREFERENCES else ""
        return f"{result['pairs']} pairs{what}, {result['documents']} documents"
    counted = next((row["within"]["spearman"]["count"] for row in result["rows"] if "ties" in row), 0)
    ties = next((row["ties"] for row in result["rows"] if "ties" in row), None)
    text = f"{result['answers']} answers, {result['documents']} documents, {counted} prompts with an order"
    if ties:
        text += f"; of {ties['pairs']} pairs within a prompt {ties['target_ties']} are tied in the target"
    ceiling = (result.get("spearman_ceiling") or {}).get("value")
    if ceiling is not None and ceiling < 0.995:
        text += f", which keeps Spearman at {ceiling:.2f} or below"
    return text


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain-text table, first column left, the others right."""
    widths = [max(len(line[column]) for line in [heads, *rows]) for column in range(len(heads))]

    def fit(cells: Sequence[str]) -> str:
        first, *rest = cells
        padded = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        return "  ".join([first.ljust(widths[0]), *padded]).rstrip()

    return "\n".join([fit(heads), "  ".join("-" * width for width in widths), *(fit(row) for row in rows)])


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def terminal_table(result: dict[str, Any]) -> str:
    """One target as text: the tables that fit a terminal (the rest is in the files)."""
    parts = [*textwrap.wrap(f"{result['target']}: {caption(result)}", WIDTH)]
    for number, (title, heads, rows) in enumerate(result_tables(result, short_interval, SHORT)):
        parts += [title, aligned(heads, rows)] if number else [aligned(heads, rows)]
    return "\n".join(parts)


def markdown_table(result: dict[str, Any]) -> str:
    """One target as Markdown, with its captions."""
    parts = [f"**{result['target']}** ({caption(result)})"]
    for title, heads, rows in result_tables(result, short_interval):
        parts += [f"{result['target']}, {title}:", markdown(heads, rows)]
    return "\n\n".join(parts)


def _part_table(parts: dict[str, Any], first: str, metric: str) -> Markup:
    names = list(dict.fromkeys(name for figures in parts.values() for name in figures))
    rows = [
        [part, *(interval_cell(figures.get(name, {}).get(metric)) for name in names)]
        for part, figures in parts.items()
    ]
    return table([first, *names], rows, sortable=False, caption=f"{HEADS[metric]}, by {first}")


def _chart(result: dict[str, Any], metric: str) -> Markup:
    figures = {row["name"]: row["within"].get(metric) for row in result["rows"]}
    known = {name: figure for name, figure in figures.items() if figure and figure["value"] is not None}
    spans = {
        name: (figure["low"], figure["high"]) for name, figure in known.items() if figure["low"] is not None
    }
    return bars({name: figure["value"] for name, figure in known.items()}, PROMPT_METRICS[metric], spans)


def target_section(result: dict[str, Any]) -> Section:
    """One target as a section of a report: chart, table, parts, calibration."""
    metric = "pairs" if "pairs" in result else "spearman"
    parts: list[Markup | str] = [_chart(result, metric), prose(caption(result))]
    parts += [
        table(heads, rows, sortable=False, caption=title.capitalize())
        for title, heads, rows in result_tables(result, interval_cell)
    ]
    if result["by_group"]:
        parts.append(_part_table(result["by_group"], "data set", metric))
    if result["by_length"]:
        parts.append(_part_table(result["by_length"], f"length ({result['length_unit']})", metric))
    parts += [_calibration(row) for row in result["rows"] if row.get("calibration", {}).get("bins")]
    return Section(
        result["target"].capitalize(), join(*parts), anchor=f"target-{result['target'].replace(' ', '-')}"
    )


def _calibration(row: dict[str, Any]) -> Markup:
    found = row["calibration"]
    points = [(item["predicted"], item["target"]) for item in found["bins"]]
    ends = [min(min(point) for point in points), max(max(point) for point in points)]
    chart = line(
        {row["name"]: points, "perfect": [(end, end) for end in ends]},
        "mean predicted points",
        "mean target points",
    )
    text = (
        f"Calibration of {row['name']}: slope {found['slope']:.2f}, intercept {found['intercept']:.2f}, "
        f"expected error {found['expected_error']:.2f} points."
    )
    return join(prose(text), chart)


def legend_section() -> Section:
    """What the columns mean."""
    rows = [[HEADS[name], meaning] for name, meaning in {**PROMPT_METRICS, **POINT_METRICS}.items()]
    rows += [[f"{HEADS[name]}, whole set", meaning] for name, meaning in SET_METRICS.items()]
    rows += [[name, "paired: the same answers, the same resamples of documents"] for name in (AHEAD, PAIRED)]
    text = (
        "Intervals are 95% percentile intervals over resampled documents; there is none below "
        f"{MIN_DOCUMENTS} documents. A prompt counts where the target tells at least two of its answers apart."
    )
    return Section(
        "How to read this", join(prose(text), table(["figure", "meaning"], rows, sortable=False)), "legend"
    )
