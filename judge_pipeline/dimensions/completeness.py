"""Completeness: does the answer cover what the document holds on the question? (LongReward, section 3.1)

Key points are extracted once per (document, question), chunk by chunk, and every answer is held against all of
them. C calls for the chunks, then one an answer, or one an answer and group where there are more key points than
`key_points_per_call`: the score is then the mean of the groups' ratings, weighted by their key points.

Deviations from the paper: key points are numbered and the judge names those missed, so that a report can show
them; those that repeat each other are merged, and each has its own place in the document instead of that of its chunk
(`key_points`); very many are covered in groups, for one rating over hundreds tells answers badly apart; a chunk without
any says so with a word of its own, which erases nothing else.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from judge_pipeline.calls.call import Sampling
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions import steps
from judge_pipeline.dimensions.base import Document, Outcome, ParsedRequest, Plan
from judge_pipeline.dimensions.key_points import KeyPoint, distinct_points, groups, listed
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.prompts.templates import CaseFields, load_template
from judge_pipeline.replies.lists import Items
from judge_pipeline.replies.marks import Problem
from judge_pipeline.replies.ratings import Rating, RatingShape


class Completeness:
    """Coverage of the document's key points. Templates `NAME.extract` and `NAME.cover`."""

    def __init__(self, options: JudgeOptions, name: str = "completeness") -> None:
        self.name = name
        self._options = options

    def plan(self, prompt: Prompt, document: Document) -> Plan:
        """Key points of all chunks first, then one rating an answer, group and vote."""
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
        points = distinct_points(items, document)
        notes = {**_notes(items), **lost.note(chunks=list(lost.problems))}
        if not points and options.no_key_points != "ask":
            evidence = {"analysis": "", "key_points": [], "votes": [], "rule": None, **notes}
            nothing = "the document holds no key point on the question"
            ruled = steps.rule_outcome("no_key_points", options.no_key_points, nothing, evidence)
            return steps.in_place(prompt, dict.fromkeys(live, ruled))
        cover = load_template(f"{self.name}.cover", language)
        parts = groups(points, options.key_points_per_call)

        def ask(place: tuple[int, int], sampling: Sampling) -> ParsedRequest[Rating]:
            index, part = place[0], parts[place[1]]
            shown = [listed(point, document, cover.language) for point in part]
            answer = prompt.responses[index].text
            fields: CaseFields = {"question": prompt.question, "key_points": shown, "answer": answer}
            shape = RatingShape(language, *options.bounds, len(part))
            return steps.request(cover, fields, shape, sampling, (index,), options)

        places = [(index, group) for index in live for group in range(len(parts))]
        rated = yield from steps.ratings(places, ask, options)
        whole = {
            index: _joined([rated[index, group] for group in range(len(parts))], parts) for index in live
        }
        return steps.in_place(prompt, {i: _with_rule(one, points, notes) for i, one in whole.items()})


def _notes(items: list[Items]) -> dict[str, Any]:
    """What became of items that are no key points here: those over the limit, those of the prompt's example."""
    notes: dict[str, Any] = {}
    if capped := [number for number, one in enumerate(items) if one.capped or one.cut]:
        dropped, cut = sum(one.dropped for one in items), sum(one.cut for one in items)
        notes["key_point_cap"] = {"chunks": capped, "dropped": dropped, "cut": cut}
    if copied := sum(one.copied for one in items):
        notes["copied_from_example"] = copied
    return notes


def _joined(rated: Sequence[Outcome], parts: Sequence[Sequence[KeyPoint]]) -> Outcome:
    """One outcome from those of all groups, with a row for each key point."""
    rows: list[dict[str, Any]] = []
    for outcome, part in zip(rated, parts, strict=True):
        missed = outcome.evidence.pop("missed", None)
        rows += [
            one.row(None if missed is None else at not in missed) for at, one in enumerate(part, start=1)
        ]
    if len(parts) == 1:
        return replace(rated[0], evidence={**rated[0].evidence, "key_points": rows})
    sizes = list(map(len, parts))
    ends = list(accumulate(sizes))
    told = [
        {"of": f"K{end - size + 1}–K{end}", "score": one.score, **one.evidence}
        for size, end, one in zip(sizes, ends, rated, strict=True)
    ]
    analysis = "\n\n".join(f"{one['of']}: {one['analysis']}" for one in told)
    evidence: dict[str, Any] = {"analysis": analysis, "votes": [], "spread": None}
    evidence |= {"groups": told, "key_points": rows}
    for note in ("failed_votes", "fallback"):
        if noted := [one[note] for one in told if note in one]:
            evidence[note] = noted
    scores = [one.score for one in rated if one.score is not None]
    if len(scores) < len(rated):
        failed = next(at for at, one in enumerate(rated) if one.score is None)
        detail = f"coverage of {told[failed]['of']}: {rated[failed].detail}"
        return Outcome(None, rated[failed].reason, detail, evidence)
    of_votes = zip(*(one["votes"] for one in told), strict=False)  # a group may have lost one
    votes = [statistics.fmean(vote, weights=sizes) for vote in of_votes]
    evidence |= {"votes": votes, "spread": statistics.stdev(votes) if len(votes) > 1 else None}
    return Outcome(statistics.fmean(scores, weights=sizes), evidence=evidence)


def _with_rule(outcome: Outcome, points: Sequence[KeyPoint], notes: dict[str, Any]) -> Outcome:
    rule = None if points else "no_key_points:ask"
    return replace(outcome, evidence={**outcome.evidence, "rule": rule, **notes})
