"""`report.html` and the terminal text of `judge-pipeline evaluate`.

In: the plain data of `run.evaluate_human`. Out: an HTML page and text; nothing is computed here.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from judge_pipeline.common.html.charts import interval_bars, stat_tiles, table
from judge_pipeline.common.html.page import Section, code_block, join, prose, render_page
from judge_pipeline.evaluation.several import RAW_AND_CHANCE
from judge_pipeline.statistics import render


def terminal_report(found: dict[str, Any]) -> str:
    """Every table that fits a terminal."""
    parts = [f"note: {note}" for note in found["notes"]]
    parts += [render.terminal_table(result) for result in found["results"]]
    for part, dimension in found["dimensions"].items():
        grid = render.aligned(*_leave_one_out_rows(dimension))
        by = f"{dimension['pairs']} pairs by {found['pairs_from']}"
        parts.append(f"what each dimension adds ({part}, {by})\n{grid}")
        if (fitted := dimension["weights"]) is None:
            parts.append(f"{part}: too few decided pairs to fit weights (at least {dimension['min_pairs']})")
        else:
            grid = render.aligned(*_fitted_rows(fitted))
            hand_on = f"hand them on: {fitted['flag']}"
            parts.append(f"weights fitted to people's choices ({part})\n{grid}\n{hand_on}")
    for name, between in found["between"].items():
        parts.append(_between_text(name, between))
    parts += _rater_lines(found["raters"]) + _judge_lines(found.get("judge_baselines", {}))
    return "\n\n".join(parts)


def _leave_one_out_rows(dimension: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [row["reward"], render.interval(row["accuracy"]), render.interval(row["loss"])]
        for row in dimension["leave_one_out"]
    ]
    return ["reward of", "accuracy", "all dimensions minus this"], rows


def _fitted_rows(fitted: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [row["weights"], render.interval(row["accuracy"]), render.interval(row["gain"])]
        for row in fitted["held_out"]
    ]
    return ["weights", "accuracy on other documents", "gain over equal"], rows


BETWEEN_HEADS = ["judges", "pairs", "Somers' D", "best of N", "best over chance", "Cohen's κ"]


def _between_rows(between: dict[str, Any], cell: render.Cell) -> list[list[str]]:
    figures = (*RAW_AND_CHANCE, "kappa")
    return [
        [" – ".join(row["judges"]), *(cell(row[name], "") for name in figures)] for row in between["pairs"]
    ]


def _alpha(between: dict[str, Any]) -> str:
    return f"Krippendorff's α over all judges {render.interval(between['alpha'], 2)}"


def _between_text(name: str, between: dict[str, Any]) -> str:
    rows = _between_rows(between, lambda figure, _: render.value(figure))
    return f"judges among themselves on {name}: {_alpha(between)}\n{render.aligned(BETWEEN_HEADS, rows)}"


def _between_section(found: dict[str, Any]) -> Section:
    parts: list[Markup | str] = []
    for name, between in found.items():
        rows = _between_rows(between, render.interval_cell)
        parts += [
            prose(f"{name}: {_alpha(between)}."),
            table(BETWEEN_HEADS, rows, sortable=False, caption=name),
        ]
    intro = "Raw agreement beside the same with chance taken off; the first judge of each two is the target."
    return Section("Judges among themselves", join(*parts), "between", intro)


def _rater_lines(raters: dict[str, Any]) -> list[str]:
    lines = []
    for source, agreements in raters.items():
        for name, found in agreements.items():
            if "agreement" in found:
                text = f"two judgements of one pair agree: {render.interval(found['agreement'], 2)}"
            else:
                text = (
                    f"one rating against the others: Spearman {render.interval(found['spearman'], 2)}, "
                    f"pairs {render.interval(found['pairs'], 2)}, spread {found['spread']:.2f} points"
                )
            lines.append(f"{source} on {name}: {text}")
    return lines


def _judge_lines(summary: dict[str, Any]) -> list[str]:
    lines = []
    for name, found in summary.items():
        kind, _, judge = name.partition(" ")
        if kind == "pairwise":
            first = found["first_place"]
            lines.append(
                f"pairwise judge{judge and ' ' + judge}: {found['judged']} of {found['pairs']} pairs judged, {found['failed']} failed; "
                f"{found['inconsistent']} turned round with the order, {found['undecided']} undecided in all"
                + ("" if first is None else f"; the first place won {first:.0%}")
            )
        elif kind == "holistic":
            reasons = ", ".join(f"{count} {reason}" for reason, count in found["reasons"].items())
            lines.append(
                f"holistic judge{judge and ' ' + judge}: {found['answers']} answers, {found['failed']} without a score"
                + (f" ({reasons})" if reasons else "")
            )
    if "cost" in summary:
        lines.append(f"cost of this run: {summary['cost']:.4f}")
    return lines


def _dimension_section(part: str, dimension: dict[str, Any], source: str) -> Section:
    heads, rows = _leave_one_out_rows(dimension)
    figures = {row["reward"]: row["accuracy"] for row in dimension["leave_one_out"]}
    parts: list[Markup | str] = [
        interval_bars(figures, "share of decided pairs ordered as people order them"),
        table(heads, rows, sortable=False),
    ]
    if (fitted := dimension["weights"]) is None:
        parts.append(prose(f"No weights fitted: that takes at least {dimension['min_pairs']} decided pairs."))
    else:
        heads, rows = _fitted_rows(fitted)
        weights = [
            [name, weight, fitted["free_coefficients"][name]] for name, weight in fitted["weights"].items()
        ]
        columns = ["dimension", "weight (non-negative, mean 1)", "coefficient of the free fit"]
        parts += [
            table(columns, weights, caption=f"Fitted to {fitted['pairs']} pairs"),
            table(heads, rows, sortable=False, caption=f"{fitted['folds']} folds, split by document"),
            code_block(fitted["flag"]),
        ]
    title = "What each dimension adds" + ("" if part == "all" else f": {part}")
    return Section(title, join(*parts), f"dimensions-{part}", f"{dimension['pairs']} pairs, from {source}.")


def evaluation_page(found: dict[str, Any], name: str) -> str:
    """The self-contained report."""
    tiles = [
        ("prompts", found["prompts"], ""),
        ("answers", found["answers"], ""),
        ("documents", found["documents"], "intervals resample these"),
    ]
    overview = [stat_tiles(tiles), *(prose(note) for note in found["notes"])]
    sections = [Section("What was compared", join(*overview), "overview")]
    sections += [render.target_section(result) for result in found["results"]]
    sections += [
        _dimension_section(part, dimension, found["pairs_from"])
        for part, dimension in found["dimensions"].items()
    ]
    if found["between"]:
        sections.append(_between_section(found["between"]))
    if lines := _rater_lines(found["raters"]):
        intro = (
            "Nothing can agree with a mean of ratings much better than the ratings agree among themselves."
        )
        sections.append(Section("Agreement among raters", join(*map(prose, lines)), "raters", intro))
    if asked := _judge_lines(found.get("judge_baselines", {})):
        intro = "Both read the whole document; the pairwise judge sees each pair in both orders."
        sections.append(Section("Judge baselines", join(*map(prose, asked)), "judge-baselines", intro))
    sections.append(render.legend_section())
    return render_page(f"Agreement with people: {name}", "judge-pipeline evaluate", sections)
