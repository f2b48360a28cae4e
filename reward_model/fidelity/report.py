"""`report.html`, Markdown and terminal text of `reward-model evaluate`.

In: the plain data of `fidelity.evaluate_scores`, and the columns behind it for the scatter plots. Out: text.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from judge_pipeline.common.html.charts import histogram, scatter, stat_tiles, table
from judge_pipeline.common.html.page import Section, join, prose, render_page
from judge_pipeline.statistics import render as render
from judge_pipeline.statistics.table import Floats
from reward_model.fidelity.controls import OTHER, WITHHELD

Table = tuple[list[str], list[list[str]]]
"""Heads and rows."""


def head_rows(found: Mapping[str, Any]) -> Table:
    """Which output follows which dimension: Spearman within prompts, and each output's own partial correlation."""
    targets = list(dict.fromkeys(name for row in found["heads"].values() for name in row))
    partial = found["separation"].get("partial", {})
    rows = [
        [
            output,
            *(_value((row.get(target) or {}).get("value")) for target in targets),
            *([render.interval(partial.get(output), 2)] if partial else []),
        ]
        for output, row in found["heads"].items()
    ]
    return ["output \\ target", *targets, *(["own, others given"] if partial else [])], rows


def separation_rows(found: Mapping[str, Any]) -> Table:
    """Are four scores four? The correlation of every two outputs beside that of their targets."""
    kinds = [(kind, side) for kind in ("within", "overall") for side in ("outputs", "targets")]
    parts = found["separation"]
    rows = [
        [" – ".join(pair["outputs"]), *(_value(pair[kind][side]) for kind, side in kinds)]
        for pair in parts["pairs"]
    ]
    rows.append(["mean", *(_value(parts["mean"][kind][side]) for kind, side in kinds)])
    return ["", "outputs", "targets", "outputs, overall", "targets, overall"], rows


def all_results(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables of all targets, answers made worse on purpose last."""
    return [*found["results"], *found.get("changed", [])]


def document_rows(found: Mapping[str, Any]) -> Table:
    """What the document adds: the model's figure, and how far it is ahead of each control."""
    there = {row["name"] for result in all_results(found) for row in result["rows"]}
    names = [name for name in (WITHHELD, OTHER) if name in there]
    rows = []
    for result in all_results(found):
        by_name = {row["name"]: row for row in result["rows"]}
        own = next((row for row in result["rows"] if row["kind"] == "model"), None)
        if own is None or not names:
            continue
        metric = "spearman" if "spearman" in own["within"] else "pairs"
        gains = [by_name.get(name, {}).get("ahead", {}).get(metric) for name in names]
        figure = f"{_value(own['within'][metric]['value'])} {render.HEADS[metric]}"
        rows.append([result["target"], figure, *(render.interval(gain, 2, "+") for gain in gains)])
    return ["", "model", *(f"minus {name}" for name in names)], rows


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def overview_tables(found: Mapping[str, Any]) -> list[tuple[str, str, Table]]:
    """(heading, explanation, table) of what concerns several targets at once."""
    tables = []
    documents = document_rows(found)
    if documents[1]:
        tables.append(
            (
                "What the document adds",
                "The same model scores the same answers without their document, and with another one in its place; "
                "the differences are paired over documents. What is not above zero, the model does not know from "
                "the document.",
                documents,
            )
        )
    if found["separation"]:
        tables.append(
            (
                "Are four scores four?",
                "Correlation of outputs beside that of their targets, within prompts (values minus their prompt's "
                "mean) and over all answers.",
                separation_rows(found),
            )
        )
    if found["heads"]:
        tables.append(
            (
                "Which output follows which dimension",
                "Spearman within prompts; the diagonal should stand out. Last, the partial correlation of an output "
                "with its own target, the other targets given.",
                head_rows(found),
            )
        )
    return tables


def vote_lines(found: Mapping[str, Any]) -> list[str]:
    """The judge's agreement with itself."""
    return [
        f"judge's votes on {name}: one vote against the others Spearman {render.interval(own['spearman'], 2)}, "
        f"pairs {render.interval(own['pairs'], 2)}, spread {own['spread']:.2f} points"
        for name, own in found["votes"].items()
    ]


def terminal_report(found: Mapping[str, Any]) -> str:
    """The tables that fit a terminal."""
    parts = [textwrap.fill(f"note: {note}", render.WIDTH) for note in found["notes"]]
    parts += [render.terminal_table(result) for result in all_results(found)]
    parts += [f"{heading}\n{render.aligned(*cells)}" for heading, _, cells in overview_tables(found)]
    parts += [textwrap.fill(f"! {remark}", render.WIDTH) for remark in found["remarks"]]
    return "\n\n".join([*parts, *vote_lines(found)])


def markdown_report(found: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    lines = [f"- {line}" for line in (*found["remarks"], *found["notes"])]
    parts = ["\n".join(lines)] if lines else []
    parts += [
        f"**{heading}** {text}\n\n{render.markdown(*cells)}"
        for heading, text, cells in overview_tables(found)
    ]
    parts += [render.markdown_table(result) for result in all_results(found)]
    return "\n\n".join(parts) + "\n"


def fidelity_page(
    found: Mapping[str, Any], targets: Mapping[str, Floats], predicted: Mapping[str, Floats], title: str
) -> str:
    """The self-contained report."""
    tiles = [
        ("prompts", found["prompts"], ""),
        ("answers", found["answers"], ""),
        ("documents", found["documents"], "intervals resample these"),
    ]
    notes = [prose(note) for note in [*found["remarks"], *found["notes"]]]
    sections = [Section("What was compared", join(stat_tiles(tiles), *notes), "overview")]
    sections += [
        Section(heading, table(*cells, sortable=False), heading.split()[0].lower(), text)
        for heading, text, cells in overview_tables(found)
    ]
    for result in all_results(found):
        section = render.target_section(result)
        extra = _plots(result["target"], targets, predicted)
        sections.append(
            Section(section.heading, join(section.html, extra), section.anchor, section.intro)
            if extra
            else section
        )
    lines = vote_lines(found)
    if lines:
        sections.append(
            Section(
                "The judge's own agreement",
                join(*map(prose, lines)),
                "votes",
                "A model cannot repeat a judge much better than the judge repeats itself.",
            )
        )
    sections.append(render.legend_section())
    return render_page(title, "reward-model evaluate", sections)


def _plots(target: str, targets: Mapping[str, Floats], predicted: Mapping[str, Floats]) -> Markup | None:
    if target not in targets or target not in predicted:
        return None
    wanted, given = targets[target], predicted[target]
    known = np.isfinite(wanted) & np.isfinite(given)
    if not known.any():
        return None
    pairs = list(zip(given[known].tolist(), wanted[known].tolist(), strict=True))
    return join(
        scatter({target: pairs}, "model, points", "target, points", diagonal=True),
        histogram({"target": wanted[known].tolist(), "model": given[known].tolist()}, 20, "points"),
    )
