"""Faithfulness: does the document support what the answer states? (LongReward, section 3.1)

Factual statements are taken out of each answer (one call an answer), the segments of the document closest to a
statement are searched out and shown in whole sentences, and the judge says whether they support it: fully 1,
partially 0.5, not at all 0. The score is ten times the mean over the answer's statements.

Deviations from the paper: a statement that several answers make is verified once, and one that an answer repeats
counts once; verification does not see the question (statements are made to stand alone), so that prompts over one
document share it where statements are verified one a call; with `statements_per_call` above 1 those that share
evidence go into one call, which shows the union of their segments once, in document order, and a statement whose
verdict is missing, or whose call failed in a way that asking alone can cure, is asked for alone; an answer without
factual statements is scored by the rule `no_statements`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions import steps
from judge_pipeline.dimensions.base import Document, Needs, Outcome, Parsed, ParsedRequest, Plan, Steps
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.documents.chunking import Span
from judge_pipeline.documents.passages import passages
from judge_pipeline.documents.words import Language
from judge_pipeline.prompts.fences import one_line
from judge_pipeline.prompts.templates import CaseFields, load_template
from judge_pipeline.replies.lists import Items
from judge_pipeline.replies.marks import Problem
from judge_pipeline.replies.shape import Shape
from judge_pipeline.replies.verdicts import VERDICT_POINTS, Support, Verdict, VerdictShape, VerdictsShape

NOT_CURED_ALONE = frozenset({"http", "timeout", "stopped", "batch_error"})


@dataclass
class Claim:
    """A distinct statement, the answers that make it, the segments found for it (best first), and the votes on it."""

    id: int
    text: str
    answers: tuple[int, ...]
    spans: tuple[Span, ...]
    votes: list[Verdict | Problem] = field(default_factory=list)
    expected: bool = False
    """Whether votes count by their expected value instead of the printed verdict."""

    @property
    def places(self) -> set[tuple[int, int]]:
        """Where in the document its segments lie."""
        return {(span.start, span.end) for span in self.spans}

    @cached_property
    def result(self) -> steps.VoteMean | Problem:
        """The votes averaged (0–1), or why there is no verdict."""
        return steps.average([self.points(vote) for vote in self.votes])

    def points(self, vote: Verdict | Problem) -> float | Problem:
        """What a vote counts, 0–1."""
        if isinstance(vote, Problem):
            return vote
        printed = VERDICT_POINTS[vote.support]
        return vote.expectation.points if self.expected and vote.expectation else printed

    @property
    def verdicts(self) -> list[Verdict]:
        """The votes that came."""
        return [vote for vote in self.votes if isinstance(vote, Verdict)]

    def evidence(self) -> dict[str, Any]:
        """The statement's row in the label's evidence."""
        result = self.result
        failed = result.reason if isinstance(result, Problem) else None
        row: dict[str, Any] = {
            "id": self.id,
            "text": self.text,
            "verdict": None if failed else _nearest([VERDICT_POINTS[vote.support] for vote in self.verdicts]),
            "analysis": next((vote.analysis for vote in self.verdicts), ""),
            "failure": failed,
            "spans": [asdict(span) for span in self.spans],
        }
        if len(self.votes) > 1 and not failed:
            row["votes"] = [None if isinstance(vote, Problem) else vote.support for vote in self.votes]
        if self.expected and not isinstance(result, Problem):
            row["support"] = round(result.points, 4)
        return row


def _nearest(votes: Sequence[float]) -> Support:
    """The verdict closest to the mean of several printed ones."""
    points = statistics.fmean(votes)
    if points >= 0.75:
        return "full"
    return "none" if points < 0.25 else "partial"


class Verifier:
    """Asks for verdicts with the templates `NAME.verify` and `NAME.verify_many`."""

    def __init__(self, name: str, document: Document, language: Language, options: JudgeOptions) -> None:
        self._name, self._document, self._language, self._options = name, document, language, options

    def verify(self, claims: Sequence[Claim]) -> Steps[None]:
        """Fill in the votes: from calls with several claims each, then one by one for all that is open."""
        votes, size = self._options.votes, self._options.statements_per_call
        for claim in claims:
            claim.votes = [Problem("missing_verdict")] * votes
            claim.expected = self._options.score == "expected"
        if size > 1:
            jobs = [(batch, vote) for batch in group(claims, size) for vote in range(votes)]
            read = yield from steps.parse_replies([self._together(*job) for job in jobs], again=False)
            for (batch, vote), results in zip(jobs, read, strict=True):
                missing = Problem("missing_verdict", "the reply passes the statement over")
                for number, claim in enumerate(batch, start=1):
                    one = results if isinstance(results, Problem) else results.get(number, missing)
                    claim.votes[vote] = one
        left = [
            (claim, vote)
            for claim in claims
            for vote, one in enumerate(claim.votes)
            if isinstance(one, Problem) and one.reason not in NOT_CURED_ALONE
        ]
        alone = yield from steps.parse_replies([self._alone(*job) for job in left], votes=votes)
        for (claim, vote), result in zip(left, alone, strict=True):
            if isinstance(result, Problem) and result.reason == "unparsable" and size > 1:
                result = Problem("missing_verdict", f"asked with others and alone: {result.detail}")
            claim.votes[vote] = result

    def _alone(self, claim: Claim, vote: int) -> ParsedRequest[Verdict]:
        shape = VerdictShape(self._language, *self._options.bounds)
        return self._request("verify", [claim], {"statement": claim.text}, shape, vote)

    def _together(self, batch: Sequence[Claim], vote: int) -> ParsedRequest[dict[int, Verdict | Problem]]:
        analysis, item = self._options.bounds
        # Six analyses as long as one would run into the reply's limit.
        each = max(1, min(analysis, 2 * analysis // len(batch)))
        shape = VerdictsShape(self._language, each, item, len(batch))
        return self._request("verify_many", batch, {"statements": [one.text for one in batch]}, shape, vote)

    def _request(
        self, template: str, claims: Sequence[Claim], fields: CaseFields, shape: Shape[Parsed], vote: int
    ) -> ParsedRequest[Parsed]:
        """The claims' passages, once each and in document order, and what is asked about them."""
        spans = sorted(set().union(*(claim.places for claim in claims)))
        answers = sorted({answer for claim in claims for answer in claim.answers})
        return steps.request(
            load_template(f"{self._name}.{template}", self._language),
            {"passages": passages(self._document.text, spans), **fields},
            shape,
            steps.vote_sampling(self._options, vote),
            tuple(answers),
            self._options,
        )


def group(claims: Sequence[Claim], size: int) -> list[list[Claim]]:
    """Batches of at most `size` claims that share as much evidence as can be, so that each span is sent seldom.

    Greedy: the first claim left opens a batch, and the claim that adds the fewest new spans joins it until it is
    full. The result depends on the claims alone, so a resumed run asks the same calls.
    """
    left = list(claims)
    batches: list[list[Claim]] = []
    while left:
        batch = [left.pop(0)]
        spans = set(batch[0].places)
        while left and len(batch) < size:
            added = [len(claim.places - spans) for claim in left]
            claim = left.pop(added.index(min(added)))
            batch.append(claim)
            spans |= claim.places
        batches.append(batch)
    return batches


class Faithfulness:
    """Share of an answer's statements that the document supports. Templates `NAME.extract`, `.verify`, `.verify_many`."""

    needs: Needs = "search"

    def __init__(self, options: JudgeOptions, name: str = "faithfulness") -> None:
        self.name = name
        self._options = options

    def plan(self, prompt: Prompt, document: Document) -> Plan:
        """Statements of all answers, then the verdicts on the distinct ones."""
        live = steps.answered(prompt)
        language = steps.prompt_language(self._options, document.text)
        template = load_template(f"{self.name}.extract", language)
        cases = [{"question": prompt.question, "answer": prompt.responses[index].text} for index in live]
        read = yield from steps.parse_replies(
            [
                steps.list_request(template, case, "statements", (index,), self._options)
                for index, case in zip(live, cases, strict=True)
            ]
        )
        lists = dict(zip(live, read, strict=True))
        claims = _claims(lists, document)
        yield from Verifier(self.name, document, language, self._options).verify(list(claims.values()))
        return steps.in_place(prompt, {index: self._outcome(one, claims) for index, one in lists.items()})

    def _outcome(self, items: Items | Problem, claims: dict[str, Claim]) -> Outcome:
        if isinstance(items, Problem):
            nothing: dict[str, Any] = {"statements": [], "rule": None}
            return Outcome(None, items.reason, f"statements: {items.detail}", nothing)
        mine = [claims[text] for text in _texts(items)]
        evidence: dict[str, Any] = {"statements": [one.evidence() for one in mine], "rule": None}
        if items.capped or items.cut:
            evidence["statement_cap"] = {"kept": len(mine), "dropped": items.dropped, "cut": items.cut}
        if items.copied:
            evidence["copied_from_example"] = items.copied
        if not mine:
            rule = self._options.no_statements
            return steps.rule_outcome("no_statements", rule, "the answer states no facts", evidence)
        lost = steps.losses([one.result for one in mine], self._options)
        if lost.fatal is not None:
            number, problem = lost.fatal
            return Outcome(None, problem.reason, f"statement {mine[number].id}: {problem.detail}", evidence)
        evidence |= lost.note(statements=[mine[at].id for at in lost.problems])
        if self._options.score == "expected":
            evidence |= steps.fallback([vote for one in mine for vote in one.verdicts], "verdict")
        votes = _score_votes(mine, self._options.votes)
        evidence |= {"votes": votes, "spread": statistics.stdev(votes) if len(votes) > 1 else None}
        points = [one.result.points for one in mine if isinstance(one.result, steps.VoteMean)]
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


def _score_votes(claims: Sequence[Claim], votes: int) -> list[float]:
    """The answer's score (0–10) as each vote alone would have it; statements without that vote are left out."""
    worths = [[one.points(one.votes[number]) for one in claims] for number in range(votes)]
    points = [[value for value in worth if not isinstance(value, Problem)] for worth in worths]
    return [10 * sum(known) / len(known) for known in points if known]
