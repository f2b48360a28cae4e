"""`report.html`, Markdown and terminal text of `reward-model evaluate`.

In: the plain data of `fidelity.evaluate_scores`, and the columns behind it for the scatter plots. Out: text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from judge_pipeline.common.html.charts import histogram, scatter, stat_tiles, table
from judge_pipeline.common.html.page import Section, join, prose, render_page
from judge_pipeline.statistics import render as render
from judge_pipeline.statistics.table import Floats


def head_rows(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Which output follows which dimension."""
    targets = list(dict.fromkeys(name for row in found["heads"].values() for name in row))
    rows = [
        [output, *(render.interval(row.get(target), 2) for target in targets)]
        for output, row in found["heads"].items()
    ]
    return ["output \\ target", *targets], rows


def vote_lines(found: Mapping[str, Any]) -> list[str]:
    """The judge's agreement with itself."""
    return [
        f"judge's votes on {name}: one vote against the others Spearman {render.interval(own['spearman'], 2)}, "
        f"pairs {render.interval(own['pairs'], 2)}, spread {own['spread']:.2f} points"
        for name, own in found["votes"].items()
    ]


def terminal_report(found: Mapping[str, Any]) -> str:
    """The tables that fit a terminal."""
    parts = [f"note: {note}" for note in found["notes"]]
    parts += [render.terminal_table(result) for result in found["results"]]
    if found["heads"]:
        parts.append(
            "within-prompt Spearman of each output with each target\n" + render.aligned(*head_rows(found))
        )
    return "\n\n".join([*parts, *vote_lines(found)])


def markdown_report(found: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    parts = [render.markdown_table(result) for result in found["results"]]
    if found["heads"]:
        parts.append(
            "**Which output follows which dimension** (within-prompt Spearman)\n\n"
            + render.markdown(*head_rows(found))
        )
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
    notes = [prose(note) for note in found["notes"]]
    sections = [Section("What was compared", join(stat_tiles(tiles), *notes), "overview")]
    for result in found["results"]:
        section = render.target_section(result)
        extra = _plots(result["target"], targets, predicted)
        sections.append(
            Section(section.heading, join(section.html, extra), section.anchor, section.intro)
            if extra
            else section
        )
    if found["heads"]:
        heads, rows = head_rows(found)
        sections.append(
            Section(
                "Which output follows which dimension",
                table(heads, rows, sortable=False, caption="Within-prompt Spearman"),
                "heads",
                "The diagonal should stand out: an output that follows another dimension better has not learnt its own.",
            )
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
