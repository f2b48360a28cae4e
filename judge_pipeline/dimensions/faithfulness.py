"""Faithfulness: does the document support what the answer states? (LongReward, section 3.1)

Each answer is broken into factual statements (one call an answer), the segments of the document closest to a
statement are searched out, and the judge says whether they support it: fully 1, partially 0.5, not at all 0. The
score is ten times the mean over the answer's statements.

Deviations from the paper: a statement that several answers make is verified once, and one that an answer repeats
counts once; verification does not see the question (statements are made to stand alone), so that prompts over one
document share it where statements are verified one a call; with `statements_per_call` above 1 several go into one call
(see `verification`); an answer without factual statements is scored by the rule `no_statements`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.base import Document, Outcome, Plan
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.steps import (
    VoteMean,
    answered,
    in_place,
    list_request,
    parse_replies,
    prompt_language,
    rule_outcome,
)
from judge_pipeline.dimensions.verification import Claim, VerifiedClaim, Verifier, support_points
from judge_pipeline.prompts.fences import one_line
from judge_pipeline.prompts.templates import load_template
from judge_pipeline.replies.lists import Items
from judge_pipeline.replies.marks import Problem


class Faithfulness:
    """Share of an answer's statements that the document supports. Templates `NAME.extract`, `.verify`, `.verify_many`."""

    def __init__(self, options: JudgeOptions, name: str = "faithfulness") -> None:
        self.name = name
        self._options = options

    def plan(self, prompt: Prompt, document: Document) -> Plan:
        """Statements of all answers, then the verdicts on the distinct ones."""
        live = answered(prompt)
        language = prompt_language(self._options, document.text)
        template = load_template(f"{self.name}.extract", language)
        read = yield from parse_replies(
            [
                list_request(
                    template,
                    {"question": prompt.query, "answer": prompt.responses[index].text},
                    "statements",
                    "answer",
                    self._options.max_statements,
                    (index,),
                    self._options,
                )
                for index in live
            ]
        )
        lists = dict(zip(live, read, strict=True))
        claims = _claims(lists, document)
        verifier = Verifier(self.name, document, language, self._options)
        verified = yield from verifier.verify(list(claims.values()))
        by_text = {one.claim.text: one for one in verified}
        return in_place(prompt, {index: self._outcome(one, by_text) for index, one in lists.items()})

    def _outcome(self, items: Items | Problem, verified: dict[str, VerifiedClaim]) -> Outcome:
        if isinstance(items, Problem):
            nothing: dict[str, Any] = {"statements": [], "rule": None}
            return Outcome.failed(items.reason, f"statements: {items.detail}", nothing)
        mine = [verified[text] for text in _texts(items)]
        evidence: dict[str, Any] = {"statements": [one.evidence() for one in mine], "rule": None}
        if items.capped or items.cut:
            evidence["statement_cap"] = {"kept": len(mine), "dropped": items.dropped, "cut": items.cut}
        if items.copied:
            evidence["copied_from_example"] = items.copied
        if not mine:
            rule = self._options.no_statements
            return rule_outcome("no_statements", rule, "the answer states no facts", evidence)
        for one in mine:
            if isinstance(one.result, Problem):
                detail = f"statement {one.claim.id}: {one.result.detail}"
                return Outcome.failed(one.result.reason, detail, evidence)
        votes = _score_votes(mine, self._options.votes)
        evidence |= {"votes": votes, "spread": statistics.stdev(votes) if len(votes) > 1 else None}
        points = [one.result.points for one in mine if isinstance(one.result, VoteMean)]
        return Outcome(10 * sum(points) / len(points), evidence=evidence)


def _texts(items: Items) -> list[str]:
    """An answer's distinct statements, white space normalised, in order."""
    return list(dict.fromkeys(map(one_line, items.texts)))


def _claims(lists: dict[int, Items | Problem], document: Document) -> dict[str, Claim]:
    """The distinct statements of all answers, with the answers that make each and its evidence."""
    makers: dict[str, list[int]] = {}
    for index, items in lists.items():
        for text in _texts(items) if isinstance(items, Items) else []:
            makers.setdefault(text, []).append(index)
    found = document.search(list(makers)) if makers else []
    return {
        text: Claim(number, text, tuple(answers), tuple(spans))
        for number, ((text, answers), spans) in enumerate(zip(makers.items(), found, strict=True), start=1)
    }


def _score_votes(verified: Sequence[VerifiedClaim], votes: int) -> list[float]:
    """The answer's score (0–10) as each vote alone would have it; statements without that vote are left out."""
    worths = [[support_points(one.votes[number]) for one in verified] for number in range(votes)]
    points = [[value for value in worth if not isinstance(value, Problem)] for worth in worths]
    return [10 * sum(known) / len(known) for known in points if known]
