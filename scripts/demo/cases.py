"""The part of a quickstart's report that one can read: a document, its answers, what judge and model say of each.

In: a `Run`. Out: a page section. The documents shown were kept out of training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from judge_pipeline.common.formatting import format_value
from judge_pipeline.common.html.page import Section, Templates, caption, code_block, details, join
from judge_pipeline.common.records import Label, Prompt, Response
from scripts.demo.run import Key, Run

TEMPLATES = Templates(Path(__file__).parent / "templates")
GLYPHS = {"full": ("●", "supported"), "partial": ("◐", "partly supported"), "none": ("○", "not supported")}
PASSAGES = 2
"""Passages shown of a statement's evidence."""
LOOKED_AT = 160
"""Characters of the part of the document that a flagged sentence looks at."""


def documents(run: Run) -> Section:
    """The prompts that were kept out of training: best and worst answer open, those between folded."""
    heading, anchor = "One document, six answers", "documents"
    if not run.shown:
        return Section(heading, caption("No answers have been explained here."), anchor)
    first, *others = run.shown
    parts = [document(run, first)]
    parts += [details(f"Another one: {prompt.query}", document(run, prompt)) for prompt in others]
    intro = (
        "Neither question, document nor answers were in training. Underlined in an answer: sentences that the model finds "
        "unsupported; point at a sentence for its support and the part of the document it looks at. The judge's statements "
        "with their evidence are behind the line below each answer."
    )
    return Section(heading, join(*parts), anchor, intro)


def document(run: Run, prompt: Prompt) -> Markup:
    """One prompt."""

    def judged(response: Response) -> float:
        label = run.shown_labels.get((prompt.id, response.id))
        return label.reward if label is not None and label.reward is not None else -1.0

    order = sorted(prompt.responses, key=judged, reverse=True)
    size = f"The whole document, {len(prompt.context.split()):,} words"
    parts = [
        Markup("<h3>{}</h3>").format(prompt.query),
        details(size, code_block(prompt.context)),
    ]
    ends = {"The judge's best": order[:1], "The judge's worst": order[-1:] if len(order) > 1 else []}
    parts += [answer(run, prompt, one, title) for title, found in ends.items() for one in found]
    between = [answer(run, prompt, one, f"Between: number {n}") for n, one in enumerate(order[1:-1], start=2)]
    if between:
        parts.append(details(f"The {len(between)} answers between", join(*between)))
    return join(*parts)


def answer(run: Run, prompt: Prompt, response: Response, title: str) -> Markup:
    """One answer: scores of judge and model, its sentences as the model finds them, the judge's statements."""
    key: Key = (prompt.id, response.id)
    label = run.shown_labels.get(key)
    names = list(label.scores) if label else list(response.scores or {})
    rows = [("judge", label.scores, label.reward)] if label else []
    rows += [("reward model", response.scores or {}, response.reward)]
    found = _statements(label)
    wrong = sum(item.get("verdict") != "full" for item in found)
    return TEMPLATES.render(
        "answer.html.j2",
        title=title,
        names=[*names, "reward"],
        scores=[(who, [*(_points(of.get(name)) for name in names), _points(own)]) for who, of, own in rows],
        pieces=pieces(prompt, response),
        summary=f"The judge checked {len(found)} statements; {wrong} were not fully supported",
        statements=TEMPLATES.render(
            "statements.html.j2", statements=[statement_view(item, prompt.context) for item in found]
        )
        if found
        else "",
    )


def _points(value: float | None) -> str:
    return "–" if value is None else format_value(round(value, 1))


def _statements(label: Label | None) -> list[dict[str, Any]]:
    return (label.evidence.get("faithfulness") or {}).get("statements") or [] if label else []


def pieces(prompt: Prompt, response: Response) -> list[dict[str, Any]]:
    """An answer's text cut where its sentences begin and end, with what the model says of each."""
    notes = (response.model_extra or {}).get("explain") or []
    found, done = [], 0
    for note in notes:
        if note["start"] > done:
            found.append({"text": response.text[done : note["start"]], "flagged": False, "note": ""})
        found.append(
            {
                "text": response.text[note["start"] : note["end"]],
                "flagged": note["flagged"],
                "note": _note(prompt, note),
            }
        )
        done = note["end"]
    return [*found, {"text": response.text[done:], "flagged": False, "note": ""}]


def _note(prompt: Prompt, note: dict[str, Any]) -> str:
    look = note.get("document")
    text = f"support {note['support']:.2f}"
    if look:
        part = " ".join(prompt.context[look["start"] : look["end"]].split())
        text += f"; looks at: “{part[:LOOKED_AT]}{'…' if len(part) > LOOKED_AT else ''}”"
    return text


def statement_view(item: dict[str, Any], context: str) -> dict[str, Any]:
    """A statement for the template, with its closest passages and a little of what stands around them."""
    kind = item.get("verdict")
    glyph, verdict = GLYPHS.get(str(kind), ("?", f"no verdict: {item.get('failure') or 'unknown'}"))
    passages = []
    for span in (item.get("spans") or [])[:PASSAGES]:
        start, end = span["start"], span["end"]
        before = " ".join(context[max(0, start - 80) : start].split())
        after = " ".join(context[end : end + 80].split())
        around = {"before": f"…{before} " if before else "", "after": f" {after}…" if after else ""}
        passages.append({**around, "text": context[start:end], "start": f"{start:,}", "end": f"{end:,}"})
    shown = {"kind": kind if kind in GLYPHS else "unknown", "glyph": glyph, "verdict": verdict}
    texts = {name: item.get(name, "") for name in ("text", "analysis")}
    return {**shown, **texts, "passages": passages}
