"""Completeness: does the answer cover what the document holds on the question? (LongReward, section 3.1)

Key points are extracted once per (document, question), chunk by chunk, and every answer is held against all of
them. C calls for the chunks, then one an answer.

Deviations from the paper: key points are numbered and the judge names those missed, so that a report can show
them; each has its own place in the document instead of that of its chunk; a chunk without any says so with a word of
its own, which erases nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from judge_pipeline.calls.call import Sampling
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions import steps
from judge_pipeline.dimensions.base import Document, Outcome, ParsedRequest, Plan
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.documents.chunking import Span
from judge_pipeline.documents.citation import locate
from judge_pipeline.documents.words import Language
from judge_pipeline.prompts.fences import one_line
from judge_pipeline.prompts.templates import CaseFields, load_template
from judge_pipeline.replies.lists import Items
from judge_pipeline.replies.marks import Problem
from judge_pipeline.replies.ratings import Rating, RatingShape


@dataclass(frozen=True)
class KeyPoint:
    """Something the document says on the question, and the chunk (by number from 0) that says it."""

    text: str
    chunk: int
    span: Span
    """The sentences it was taken from, or the whole chunk where its wording is its own."""


class Completeness:
    """Coverage of the document's key points. Templates `NAME.extract` and `NAME.cover`."""

    def __init__(self, options: JudgeOptions, name: str = "completeness") -> None:
        self.name = name
        self._options = options

    def plan(self, prompt: Prompt, document: Document) -> Plan:
        """Key points of all chunks first, then one rating an answer and vote."""
        live = steps.answered(prompt)
        if not live:
            return steps.in_place(prompt, {})
        options, language = self._options, steps.prompt_language(self._options, document.text)
        template = load_template(f"{self.name}.extract", language)
        texts = (document.text[chunk.start : chunk.end] for chunk in document.chunks)
        cases = [{"document": text, "question": prompt.question} for text in texts]
        read = yield from steps.parse_replies(
            [steps.list_request(template, case, "key_points", tuple(live), options) for case in cases]
        )
        lost = steps.losses(read, options)
        if lost.fatal is not None:
            number, problem = lost.fatal
            detail = f"key points of chunk {number + 1} of {len(read)}: {problem.detail}"
            return steps.in_place(prompt, dict.fromkeys(live, Outcome(None, problem.reason, detail)))
        items = [Items(()) if isinstance(one, Problem) else one for one in read]
        points = _distinct(items, document)
        notes = {**_notes(items), **lost.note(chunks=list(lost.problems))}
        if not points and options.no_key_points != "ask":
            evidence = {"analysis": "", "key_points": [], "votes": [], "rule": None, **notes}
            nothing = "the document holds no key point on the question"
            ruled = steps.rule_outcome("no_key_points", options.no_key_points, nothing, evidence)
            return steps.in_place(prompt, dict.fromkeys(live, ruled))
        cover = load_template(f"{self.name}.cover", language)
        shape = RatingShape(language, *options.bounds, len(points))
        listed = [f"{_place(point, document, cover.language)}{point.text}" for point in points]

        def ask(index: int, sampling: Sampling) -> ParsedRequest[Rating]:
            answer = prompt.responses[index].text
            fields: CaseFields = {"question": prompt.question, "key_points": listed, "answer": answer}
            return steps.request(cover, fields, shape, sampling, (index,), options)

        rated = yield from steps.ratings(live, ask, options)
        return steps.in_place(prompt, {i: _with_points(one, points, notes) for i, one in rated.items()})


def _distinct(items: list[Items], document: Document) -> list[KeyPoint]:
    """The key points in document order; one that a later chunk repeats word for word is listed once."""
    found: dict[str, KeyPoint] = {}
    for number, (chunk, one) in enumerate(zip(document.chunks, items, strict=True)):
        texts = [text for text in dict.fromkeys(map(one_line, one.texts)) if text not in found]
        places = locate(document.text[chunk.start : chunk.end], texts) if texts else []
        for text, place in zip(texts, places, strict=True):
            span = Span(chunk.start + place[0], chunk.start + place[1]) if place else chunk
            found[text] = KeyPoint(text, number, span)
    return list(found.values())


def _place(point: KeyPoint, document: Document, language: Language) -> str:
    """How far into the document the key point stands, as the judge is told: "(12%) "."""
    share = f"{100 * point.span.start / len(document.text):.0f}%"
    return f"（{share}）" if language == "zh" else f"({share}) "


def _notes(items: list[Items]) -> dict[str, Any]:
    """What became of items that are no key points here: those over the limit, those of the prompt's example."""
    notes: dict[str, Any] = {}
    if capped := [number for number, one in enumerate(items) if one.capped or one.cut]:
        dropped, cut = sum(one.dropped for one in items), sum(one.cut for one in items)
        notes["key_point_cap"] = {"chunks": capped, "dropped": dropped, "cut": cut}
    if copied := sum(one.copied for one in items):
        notes["copied_from_example"] = copied
    return notes


def _with_points(outcome: Outcome, points: list[KeyPoint], notes: dict[str, Any]) -> Outcome:
    evidence = dict(outcome.evidence)
    missed = evidence.pop("missed", None)
    listed = [
        {
            "text": point.text,
            "chunk": point.chunk,
            "start": point.span.start,
            "end": point.span.end,
            "covered": None if missed is None else number not in missed,
        }
        for number, point in enumerate(points, start=1)
    ]
    rule = None if points else "no_key_points:ask"
    return replace(outcome, evidence={**evidence, "key_points": listed, "rule": rule, **notes})
