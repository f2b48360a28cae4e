"""The first screen of a quickstart's report: what the model learnt from the judge, and how anybody can tell.

In: a `Run`. Out: page sections. Every figure is of documents that the fit behind it had not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from judge_pipeline.common.formatting import format_seconds
from judge_pipeline.common.html.charts import scatter, stat_tiles, table
from judge_pipeline.common.html.page import Section, caption, details, join, notice, prose
from judge_pipeline.statistics.render import target_section
from reward_model.fidelity.controls import WITHHELD
from reward_model.fidelity.fidelity import MODEL
from reward_model.fidelity.free_baselines import STACK
from scripts.demo.run import Run

Figure = Mapping[str, Any]
NONE: Figure = {"value": None, "low": None, "high": None}


def rows_by_name(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The rows of a table of the evaluation."""
    return {row["name"]: row for row in result["rows"]}


def pairs_of(result: Mapping[str, Any], name: str) -> Figure:
    """Share of pairs in order of one row."""
    row = rows_by_name(result).get(name)
    return (row["within"].get("pairs") if row else None) or NONE


def best_baseline(result: Mapping[str, Any]) -> tuple[str, Figure]:
    """The free baseline that orders most pairs right; the ridge of all of them learns from labels and is left out."""
    found = [
        (row["name"], row["within"].get("pairs") or NONE)
        for row in result["rows"]
        if row["kind"] == "baseline" and row["name"] != STACK
    ]
    known = [(name, figure) for name, figure in found if figure["value"] is not None]
    return max(known, key=lambda pair: pair[1]["value"], default=("", NONE))


def percent(figure: Figure, interval: bool = False) -> str:
    """A share, with its interval where it has one."""
    if figure["value"] is None:
        return "–"
    inside = "" if not interval or figure["low"] is None else f" [{figure['low']:.0%}, {figure['high']:.0%}]"
    return f"{figure['value']:.0%}{inside}"


def ahead_of_withheld(result: Mapping[str, Any]) -> Figure:
    """Pairs the model orders right beyond its control without the document."""
    row = rows_by_name(result).get(WITHHELD)
    return (row["ahead"].get("pairs") if row else None) or NONE


def judge_cost(run: Run) -> dict[str, float]:
    """Calls and tokens that a label took, mean over the labels that were learnt from."""
    usages = [label.usage for label in run.taught.values() if label.usage is not None]
    if not usages:
        return {}
    tokens = [usage.input_tokens + usage.output_tokens for usage in usages]
    return {"calls": float(np.mean([usage.calls for usage in usages])), "tokens": float(np.mean(tokens))}


def proof(run: Run) -> Section:
    """The claim, what it costs, and the figures behind it."""
    results = {result["target"]: result for result in run.fidelity.get("results", [])}
    heading, anchor = "What it learnt", "proof"
    if "reward" not in results:
        return Section(heading, caption("The reward model has not been measured here."), anchor)
    parts: list[Markup] = [Markup('<p class="claim">{}</p>').format(claim(run, results["reward"]))]
    parts += [stat_tiles(tiles(run, results["reward"])), figures_table(run, results), *document_words(run)]
    intro = "The judge's scores are in points; a pair counts where the judge scores two answers apart."
    return Section(heading, join(*parts), anchor, intro)


def claim(run: Run, reward: Mapping[str, Any]) -> str:
    """One sentence."""
    who, teacher = run.model_name, "a capable judge" if run.recorded else "your judge"
    name, baseline = best_baseline(reward)
    return (
        f"{who} learnt from {len(run.taught):,} answers that {teacher} labelled, and reads a document once for all its "
        f"answers. On {reward['documents']} documents that the fit had not read it puts {percent(pairs_of(reward, MODEL))} "
        f"of answers in the judge's order; the best rule that needs no label ({name}) {percent(baseline)}; chance is 50%."
    )


def tiles(run: Run, reward: Mapping[str, Any]) -> list[tuple[str, object, str]]:
    """Cost beside cost, and the agreement."""
    cost, usage = judge_cost(run), run.shown_usage
    seconds, answers = usage.get("seconds"), usage.get("responses")
    each = seconds / answers if seconds and answers else None
    figure = pairs_of(reward, MODEL)
    return [
        (
            "Judge, an answer",
            f"{cost['calls']:.1f} calls" if cost else None,
            f"{cost['tokens']:,.0f} tokens" if cost else "",
        ),
        ("Model, an answer", "0 calls", f"{each:.1f} s on this machine, offline" if each else ""),
        ("Pairs as the judge has them", percent(figure), percent(figure, True).removeprefix(percent(figure))),
        ("Documents held out", reward["documents"], "by folds: each was left out once"),
        (
            "All stages",
            format_seconds(sum(run.seconds.values())) if run.seconds else None,
            "after installation",
        ),
    ]


def figures_table(run: Run, results: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Pairs in order: each output, the reward, and answers in which a fact was changed."""
    rows: list[list[object]] = []
    for name, result in {
        **results,
        **{item["target"]: item for item in run.fidelity.get("changed", [])},
    }.items():
        rule, baseline = best_baseline(result)
        known = f"{result['pairs']} pairs" if "pairs" in result else f"{result['answers']} answers"
        label = Markup("<strong>{}</strong>").format(name) if "pairs" in result else name
        rows.append(
            [
                label,
                percent(pairs_of(result, MODEL), True),
                percent(pairs_of(result, WITHHELD)),
                f"{percent(baseline)} {rule}",
                f"{known}, {result['documents']} documents",
            ]
        )
    heads = ["pairs in order", "reward model", "fitted without documents", "best free rule", "measured on"]
    return table(heads, rows, sortable=False, align=["left", "right", "right", "left", "left"])


def document_words(run: Run) -> list[Markup]:
    """Whether the model needs the document, in plain words."""
    parts = []
    for result in run.fidelity.get("changed", []):
        own, blind, gain = pairs_of(result, MODEL), pairs_of(result, WITHHELD), ahead_of_withheld(result)
        shown = gain["low"] is not None and gain["low"] > 0
        what = (
            "In an answer a name, a date or a figure was changed, or a sentence denied: the document shows that it is wrong "
            "now. "
            f"The model puts the changed answer below the original in {percent(own, True)} of {result['pairs']} pairs, and a "
            f"model fitted without documents in {percent(blind)}."
        )
        verdict = (
            " So the model reads what the document says."
            if shown
            else " So it is not shown that the model reads what the document says."
        )
        parts.append(notice(what + verdict, "note" if shown else "warning"))
    same = [name for name in ("faithfulness", "completeness") if _needs_no_document(run, name)]
    if same:
        parts.append(
            prose(
                f"For {' and '.join(same)} of the judged answers themselves the document adds nothing that shows here: the "
                "six kinds of invented answers are told apart by how they are written. Answers of your own models may not be."
            )
        )
    worse = [
        item["target"]
        for item in run.fidelity.get("results", [])
        if (high := ahead_of_withheld(item)["high"]) is not None and high < 0
    ]
    if worse:
        parts.append(
            prose(
                f"On {' and '.join(worse)} the model that was fitted without documents is even ahead: what it takes to tell a "
                "changed fact costs something where style tells enough."
            )
        )
    return parts


def _needs_no_document(run: Run, name: str) -> bool:
    result = next((item for item in run.fidelity.get("results", []) if item["target"] == name), None)
    gain = ahead_of_withheld(result) if result else NONE
    return gain["low"] is not None and gain["low"] <= 0


def agreement(run: Run) -> Section:
    """Every figure of the evaluation, and judge against model answer by answer."""
    heading, anchor = "Reward model against judge", "agreement"
    both = [key for key in run.taught if key in run.folded]
    if not both:
        return Section(heading, caption("No answer outside training was scored by both."), anchor)
    points: dict[str, list[tuple[float, float]]] = {}
    for key in both:
        for name, value in run.taught[key].scores.items():
            if value is not None and name in run.folded[key]:
                points.setdefault(name, []).append((value, run.folded[key][name]))
    parts: list[Markup | str] = [scatter(points, "judge", "reward model", diagonal=True)]
    documents = len({key[0] for key in both})
    parts.append(
        caption(f"{len(both)} answers over {documents} documents, each scored by a fit that had not read it.")
    )
    parts += [_together(run.fidelity)]
    parts += [details(f"All figures: {row['target']}", target_section(row).html) for row in results_of(run)]
    if (run.folder / "fidelity" / "report.html").is_file():
        parts.append(Markup('<p><a href="fidelity/report.html">The whole evaluation</a></p>'))
    return Section(heading, join(*parts), anchor, "On the dashed line both say the same.")


def results_of(run: Run) -> Sequence[dict[str, Any]]:
    """The tables of the evaluation, those of changed answers last."""
    return [*run.fidelity.get("results", []), *run.fidelity.get("changed", [])]


def _together(fidelity: Mapping[str, Any]) -> Markup | str:
    within = (fidelity.get("separation") or {}).get("mean", {}).get("within", {})
    if within.get("outputs") is None or within.get("targets") is None:
        return ""
    return prose(
        f"Are four scores four? Within a prompt two outputs correlate at {within['outputs']:.2f} on average, two of the "
        f"judge's scores at {within['targets']:.2f}."
    )
