"""Faithfulness: does the document support what the answer states? (LongReward, section 3.1)

Each answer is broken into factual statements (one call an answer), the segments of the document closest to a
statement are searched out, and the judge says whether they support it: fully 1, partially 0.5, not at all 0. The
score is ten times the mean over the answer's statements.

Deviations from the paper: a statement that several answers make is verified once, and one that an answer repeats
counts once; verification does not see the question (statements are made to stand alone), so that prompts over one
document share it where statements are verified one a call; with `statements_per_call` above 1 several statements go into one call, verdicts are keyed by
statement, and one that is missing is asked for alone; an answer without factual statements is scored by the rule
`no_statements`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.asking import (
    Ask,
    Vote,
    answered,
    ask,
    average,
    in_place,
    prompt_language,
    reading_sampling,
)
from judge_pipeline.dimensions.base import Document, Outcome, Plan
from judge_pipeline.dimensions.options import JudgeOptions, rule_points
from judge_pipeline.dimensions.verification import Claim, Verifier
from judge_pipeline.documents.language import Language
from judge_pipeline.prompts.fences import one_line
from judge_pipeline.prompts.templates import build_call, load_template
from judge_pipeline.replies.lists import Items, ListShape, example_items
from judge_pipeline.replies.marks import Problem
from judge_pipeline.replies.verdicts import VERDICT_POINTS, Support, Verdict


@dataclass(frozen=True)
class Checked:
    """A statement after verification: its votes averaged (0–1), or why there is no verdict."""

    claim: Claim
    votes: tuple[Verdict | Problem, ...]
    result: Vote | Problem

    def evidence(self) -> dict[str, Any]:
        """The statement's row in the label's evidence."""
        failed = isinstance(self.result, Problem)
        judged = [vote for vote in self.votes if isinstance(vote, Verdict)]
        row: dict[str, Any] = {
            "id": self.claim.id,
            "text": self.claim.text,
            "verdict": None if isinstance(self.result, Problem) else _nearest(self.result.points),
            "analysis": judged[0].analysis if judged else "",
            "failure": self.result.reason if isinstance(self.result, Problem) else None,
            "spans": [{"start": s.start, "end": s.end, "score": s.score} for s in self.claim.spans],
        }
        if len(self.votes) > 1 and not failed:
            row["votes"] = [None if isinstance(vote, Problem) else vote.support for vote in self.votes]
        return row


class Faithfulness:
    """Share of an answer's statements that the document supports. Templates `NAME.extract`, `.verify`, `.verify_many`."""

    def __init__(self, options: JudgeOptions, name: str = "faithfulness") -> None:
        self.name = name
        self._options = options

    def plan(self, prompt: Prompt, document: Document) -> Plan:
        """Statements of all answers, then the verdicts on the distinct ones."""
        live = answered(prompt)
        language = prompt_language(self._options, document.text)
        read = yield from ask([self._extraction(prompt, index, language) for index in live])
        lists = dict(zip(live, read, strict=True))
        claims = _claims(lists, document)
        verifier = Verifier(self.name, document, language, self._options)
        votes = yield from verifier.verify(list(claims.values()))
        checked = {
            text: Checked(claim, tuple(row), average([_worth(vote) for vote in row]))
            for (text, claim), row in zip(claims.items(), votes, strict=True)
        }
        return in_place(prompt, {index: self._outcome(one, checked) for index, one in lists.items()})

    def _extraction(self, prompt: Prompt, index: int, language: Language) -> Ask[Items]:
        options = self._options
        template = load_template(f"{self.name}.extract", language)
        answer = prompt.responses[index].text
        shape = ListShape(
            language,
            options.analysis_chars,
            options.item_chars,
            "statements",
            options.max_statements,
            example_items(template.shown(options.few_shot), "statements"),
            answer,
        )
        call = build_call(
            template,
            {"question": prompt.query, "answer": answer},
            shape,
            reading_sampling(options),
            structured=options.structured,
            few_shot=options.few_shot,
        )
        return Ask(call, (index,), shape.read)

    def _outcome(self, items: Items | Problem, checked: dict[str, Checked]) -> Outcome:
        if isinstance(items, Problem):
            return Outcome.failed(
                items.reason, f"statements: {items.detail}", {"statements": [], "rule": None}
            )
        mine = [checked[text] for text in _texts(items)]
        evidence: dict[str, Any] = {"statements": [one.evidence() for one in mine], "rule": None}
        if items.capped or items.cut:
            evidence["statement_cap"] = {"kept": len(mine), "dropped": items.dropped, "cut": items.cut}
        if items.copied:
            evidence["copied_from_example"] = items.copied
        if not mine:
            return self._by_rule(evidence)
        for one in mine:
            if isinstance(one.result, Problem):
                detail = f"statement {one.claim.id}: {one.result.detail}"
                return Outcome.failed(one.result.reason, detail, evidence)
        votes = _score_votes(mine, self._options.votes)
        evidence |= {"votes": votes, "spread": statistics.stdev(votes) if len(votes) > 1 else None}
        points = [one.result.points for one in mine if isinstance(one.result, Vote)]
        return Outcome(10 * sum(points) / len(points), evidence=evidence)

    def _by_rule(self, evidence: dict[str, Any]) -> Outcome:
        rule = self._options.no_statements
        evidence = {**evidence, "rule": f"no_statements:{rule}"}
        points = rule_points(rule)
        if points is None:
            return Outcome.failed("no_statements", "the answer states no facts", evidence)
        return Outcome(points, evidence=evidence)


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


def _worth(vote: Verdict | Problem) -> float | Problem:
    return vote if isinstance(vote, Problem) else VERDICT_POINTS[vote.support]


def _nearest(points: float) -> Support:
    """The verdict closest to the mean of several votes."""
    if points >= 0.75:
        return "full"
    return "none" if points < 0.25 else "partial"


def _score_votes(checked: Sequence[Checked], votes: int) -> list[float]:
    """The answer's score (0–10) as each vote alone would have it; statements without that vote are left out."""
    scores = []
    for number in range(votes):
        worth = [_worth(one.votes[number]) for one in checked]
        points = [value for value in worth if not isinstance(value, Problem)]
        if points:
            scores.append(10 * sum(points) / len(points))
    return scores
