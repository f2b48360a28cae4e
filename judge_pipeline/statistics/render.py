"""Agreement tables for people: plain text for the terminal, Markdown for a page, sections for `report.html`.

In: the dictionaries of `compare`. Out: strings and `Section`s; no figure is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from judge_pipeline.common.html.charts import bars, line, table
from judge_pipeline.common.html.page import Section, join, prose
from judge_pipeline.statistics.agreement import PROMPT_METRICS
from judge_pipeline.statistics.compare import PREFERENCES

HEADS = {
    "spearman": "Spearman",
    "kendall": "Kendall τ-b",
    "pairs": "pairs",
    "best_of_n": "best of N",
    "worst_of_n": "worst of N",
    "same_pair": "same pair",
    "pair_direction": "pair direction",
    "regret": "regret",
}
Figure = dict[str, Any]


def interval(figure: Figure | None, digits: int = 3) -> str:
    """`0.612 [0.540, 0.681]`; `–` where there is no figure."""
    if not figure or figure.get("value") is None:
        return "–"
    text = f"{figure['value']:.{digits}f}"
    if figure.get("low") is None or figure.get("high") is None:
        return text
    return f"{text} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def interval_cell(figure: Figure | None) -> Markup:
    """The same for a page: the figure, and its interval small below it."""
    if not figure or figure.get("value") is None:
        return Markup("–")
    value = Markup("{:.2f}").format(figure["value"])
    if figure.get("low") is None or figure.get("high") is None:
        return value
    span = Markup('<br><small style="white-space:nowrap">{:.2f} to {:.2f}</small>')
    return value + span.format(figure["low"], figure["high"])


def _metrics(result: dict[str, Any]) -> list[str]:
    return [name for name in HEADS if any(name in row["within"] for row in result["rows"])]


def result_rows(
    result: dict[str, Any], cell: Callable[[Figure | None], str] = interval
) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of one target's table, a row a scorer; `cell` writes a figure."""
    metrics = _metrics(result)
    over_set = any("over_set" in row for row in result["rows"])
    heads = ["scored by", "kind", *(HEADS[name] for name in metrics)]
    heads += ["Spearman, whole set", "MAE"] if over_set else []
    heads += ["ahead in pairs"]
    lines = []
    for row in result["rows"]:
        cells = [row["name"], row["kind"], *(cell(row["within"].get(name)) for name in metrics)]
        if over_set:
            over = row.get("over_set", {})
            cells += [cell(over.get("spearman")), cell(over.get("mae"))]
        lines.append([*cells, cell(row["ahead"].get("pairs"))])
    return heads, lines


def caption(result: dict[str, Any]) -> str:
    """What the table of one target is computed from."""
    if result["target"] == PREFERENCES:
        return f"{result['pairs']} pairs that people decided, {result['documents']} documents"
    counted = next((row["within"]["spearman"]["count"] for row in result["rows"] if "ties" in row), 0)
    ties = next((row["ties"] for row in result["rows"] if "ties" in row), None)
    text = f"{result['answers']} answers, {result['documents']} documents, {counted} prompts with an order"
    if ties:
        text += f"; of {ties['pairs']} pairs within a prompt {ties['target_ties']} are tied in the target"
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
    """One target as text: the figures that fit a terminal (the rest is in the files)."""
    metrics = [name for name in ("spearman", "pairs", "best_of_n", "regret") if name in _metrics(result)]
    heads = ["scored by", *(HEADS[name] for name in metrics)]
    rows = [
        [row["name"], *(interval(row["within"].get(name), 2) for name in metrics)] for row in result["rows"]
    ]
    return f"{result['target']}: {caption(result)}\n{aligned(heads, rows)}"


def markdown_table(result: dict[str, Any]) -> str:
    """One target as Markdown, with its caption."""
    heads, rows = result_rows(result)
    return f"**{result['target']}** ({caption(result)})\n\n{markdown(heads, rows)}"


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
    metric = "pairs" if result["target"] == PREFERENCES else "spearman"
    heads, rows = result_rows(result, interval_cell)
    parts: list[Markup | str] = [
        _chart(result, metric),
        table(heads, rows, sortable=False, caption=caption(result)),
    ]
    if result["by_group"]:
        parts.append(_part_table(result["by_group"], "data set", metric))
    if result["by_length"]:
        parts.append(_part_table(result["by_length"], f"length ({result['length_unit']})", metric))
    parts += [_calibration(row) for row in result["rows"] if row.get("calibration", {}).get("bins")]
    return Section(result["target"].capitalize(), join(*parts), anchor=f"target-{result['target']}")


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
    rows = [[HEADS[name], meaning] for name, meaning in PROMPT_METRICS.items()]
    rows.append(
        ["ahead in pairs", "the model's share of decided pairs minus this row's, on the same documents"]
    )
    text = (
        "Intervals are 95% percentile intervals over resampled documents. A prompt counts where the target "
        "tells at least two of its answers apart."
    )
    return Section(
        "How to read this", join(prose(text), table(["figure", "meaning"], rows, sortable=False)), "legend"
    )
