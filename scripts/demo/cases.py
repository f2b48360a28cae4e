"""The part of a quickstart's report that shows single cases: one prompt, its answers, their statements, and a pair.

In: a `Run`. Out: page sections.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from judge_pipeline.common.html.charts import histogram, table
from judge_pipeline.common.html.page import Section, Templates, caption, code_block, columns, details, join
from scripts.demo.run import Run, chosen_prompt, dimension_names

LONG = Markup('<span class="long">{}</span>')
TEMPLATES = Templates(Path(__file__).parent / "templates")

GLYPHS = {"full": ("●", "supported"), "partial": ("◐", "partly supported"), "none": ("○", "not supported")}


def example(run: Run) -> Section:
    """One prompt with its answers: the labelled one whose answers' rewards differ most."""
    prompt = chosen_prompt(run)
    if prompt is None:
        return Section("One prompt", caption("There are no answers here yet."), "prompt")
    names = dimension_names(run)
    rows: list[list[object]] = []
    for response in prompt.responses:
        label, scored = run.labels.get((prompt.id, response.id)), run.scored.get((prompt.id, response.id), {})
        text = LONG.format(response.text)
        if label is not None:
            rows.append([text, "judge", *(label.scores.get(name) for name in names), label.reward])
        if scored or label is None:
            rows.append([text, "reward model", *(scored.get(name) for name in names), scored.get("reward")])
    sides = ["left", "left", *["right"] * (len(names) + 1)]
    grid = table(["answer", "scored by", *names, "reward"], rows, align=sides)
    size = f"The whole document, {len(prompt.context):,} characters"
    parts = join(Markup("<h3>{}</h3>").format(prompt.query), details(size, code_block(prompt.context)), grid)
    return Section("One prompt and its answers", parts, "prompt")


def statements(run: Run) -> Section:
    """The statements of one answer of that prompt, each with its best evidence, out of the document."""
    prompt = chosen_prompt(run)
    heading, anchor = "Statements and their evidence", "statements"
    best: list[dict[str, Any]] = []
    for response in prompt.responses if prompt else ():
        label = run.labels.get((prompt.id, response.id)) if prompt else None
        found = (label.evidence.get("faithfulness") or {}).get("statements") or [] if label else []
        best = max(best, found, key=len)
    if prompt is None or not best:
        return Section(heading, caption("No answer of this prompt has statements with evidence."), anchor)
    shown = [statement_view(item, prompt.context) for item in best]
    parts = [TEMPLATES.render("statements.html.j2", statements=shown)]
    if (run.folder / "labels" / "report.html").is_file():
        parts.append(Markup('<p><a href="labels/report.html">Every answer with all its evidence</a></p>'))
    intro = "From one answer of the prompt above: what it states, the judge's verdict, and the passages it was shown."
    return Section(heading, join(*parts), anchor, intro)


def statement_view(item: dict[str, Any], context: str) -> dict[str, Any]:
    """A statement for the template, with its two closest passages and a little of what stands around them."""
    kind = item.get("verdict")
    glyph, verdict = GLYPHS.get(str(kind), ("?", f"no verdict: {item.get('failure') or 'unknown'}"))
    passages = []
    for span in (item.get("spans") or [])[:2]:
        start, end = span["start"], span["end"]
        before = " ".join(context[max(0, start - 80) : start].split())
        after = " ".join(context[end : end + 80].split())
        around = {"before": f"…{before} " if before else "", "after": f" {after}…" if after else ""}
        passages.append({**around, "text": context[start:end], "start": f"{start:,}", "end": f"{end:,}"})
    shown = {"kind": kind if kind in GLYPHS else "unknown", "glyph": glyph, "verdict": verdict}
    texts = {name: item.get(name, "") for name in ("text", "analysis")}
    return {**shown, **texts, "passages": passages}


def pairs(run: Run) -> Section:
    """The preference pairs: margins, and the one with the widest."""
    if not run.pairs:
        return Section("Pairs", caption("No pairs have been made here."), "pairs")
    rewards = [(row.get("chosen_reward"), row.get("rejected_reward")) for row in run.pairs]
    margins = [better - worse for better, worse in rewards if better is not None and worse is not None]
    gaps = [(better or 0) - (worse or 0) for better, worse in rewards]
    widest = run.pairs[gaps.index(max(gaps))]
    texts = {side: LONG.format(last_turn(widest.get(side))) for side in ("chosen", "rejected")}
    rows = [[side, widest.get(f"{side}_reward"), text] for side, text in texts.items()]
    grid = table(["", "reward", "answer"], rows, sortable=False, align=["left", "right", "left"])
    plot = histogram({"margin": margins}, 12, "points between chosen and rejected")
    intro = "The answer with the highest reward against the one with the lowest. Shown: the pair that is furthest apart."
    return Section("Pairs", columns(plot, grid), "pairs", intro)


def last_turn(value: object) -> str:
    """The text of an answer, plain or as chat messages."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        return str(value[-1].get("content", ""))
    return str(value or "")
