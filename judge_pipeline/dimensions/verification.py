"""Verdicts on statements: one a call, or several a call with those that share evidence put together.

In: distinct statements with their spans of the document. Out: for each statement one verdict a vote. In a call
the spans stand in document order; a batch shows the union of its statements' spans once. A statement whose
verdict is missing from a batch, or whose batch failed in a way that asking alone can cure, is asked for alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from judge_pipeline.dimensions.base import Document, Parsed, ParsedRequest, Steps
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.steps import VoteMean, average, parse_replies, request, vote_sampling
from judge_pipeline.documents.chunking import Span
from judge_pipeline.documents.language import Language
from judge_pipeline.prompts.templates import CaseFields, load_template
from judge_pipeline.replies.marks import Problem
from judge_pipeline.replies.shape import Shape
from judge_pipeline.replies.verdicts import VERDICT_POINTS, Support, Verdict, VerdictShape, VerdictsShape

NOT_CURED_ALONE = frozenset({"http", "timeout", "stopped", "batch_error"})


@dataclass(frozen=True)
class Claim:
    """A distinct statement, the answers that make it, and the segments found for it (best first)."""

    id: int
    text: str
    answers: tuple[int, ...]
    spans: tuple[Span, ...]


Votes = list[Verdict | Problem]


@dataclass(frozen=True)
class VerifiedClaim:
    """A claim and the votes on it."""

    claim: Claim
    votes: Votes

    @cached_property
    def result(self) -> VoteMean | Problem:
        """The votes averaged (0–1), or why there is no verdict."""
        return average([support_points(vote) for vote in self.votes])

    def evidence(self) -> dict[str, Any]:
        """The statement's row in the label's evidence."""
        failed = isinstance(self.result, Problem)
        row: dict[str, Any] = {
            "id": self.claim.id,
            "text": self.claim.text,
            "verdict": None if isinstance(self.result, Problem) else _nearest(self.result.points),
            "analysis": next((vote.analysis for vote in self.votes if isinstance(vote, Verdict)), ""),
            "failure": self.result.reason if isinstance(self.result, Problem) else None,
            "spans": [asdict(span) for span in self.claim.spans],
        }
        if len(self.votes) > 1 and not failed:
            row["votes"] = [None if isinstance(vote, Problem) else vote.support for vote in self.votes]
        return row


def support_points(vote: Verdict | Problem) -> float | Problem:
    """What a vote counts, 0–1."""
    return vote if isinstance(vote, Problem) else VERDICT_POINTS[vote.support]


def _nearest(points: float) -> Support:
    """The verdict closest to the mean of several votes."""
    if points >= 0.75:
        return "full"
    return "none" if points < 0.25 else "partial"


class Verifier:
    """Asks for verdicts with the templates `NAME.verify` and `NAME.verify_many`."""

    def __init__(self, name: str, document: Document, language: Language, options: JudgeOptions) -> None:
        self._name, self._document, self._language, self._options = name, document, language, options

    def verify(self, claims: Sequence[Claim]) -> Steps[list[VerifiedClaim]]:
        """The claims with their votes, in order."""
        count = self._options.votes
        votes: dict[int, Votes] = {claim.id: [Problem("missing_verdict")] * count for claim in claims}
        if self._options.statements_per_call > 1:
            yield from self._in_batches(claims, votes)
        yield from self._one_by_one(claims, votes)
        return [VerifiedClaim(claim, votes[claim.id]) for claim in claims]

    def _in_batches(self, claims: Sequence[Claim], votes: dict[int, Votes]) -> Steps[None]:
        """Fill in what calls with several statements each say."""
        count = self._options.votes
        jobs = [
            (batch, vote)
            for batch in group(claims, self._options.statements_per_call)
            for vote in range(count)
        ]
        read = yield from parse_replies([self._together(batch, vote) for batch, vote in jobs], again=False)
        for (batch, vote), result in zip(jobs, read, strict=True):
            for number, claim in enumerate(batch, start=1):
                missing = Problem("missing_verdict", "the reply passes the statement over")
                votes[claim.id][vote] = result if isinstance(result, Problem) else result.get(number, missing)

    def _one_by_one(self, claims: Sequence[Claim], votes: dict[int, Votes]) -> Steps[None]:
        """Fill in what is open: all of it, or what batches left."""
        alone = self._options.statements_per_call == 1
        left = [
            (claim, vote)
            for claim in claims
            for vote, one in enumerate(votes[claim.id])
            if isinstance(one, Problem) and one.reason not in NOT_CURED_ALONE
        ]
        requests = [self._alone(claim, vote) for claim, vote in left]
        read = yield from parse_replies(requests, votes=self._options.votes)
        for (claim, vote), result in zip(left, read, strict=True):
            if isinstance(result, Problem) and result.reason == "unparsable" and not alone:
                result = Problem("missing_verdict", f"asked with others and alone: {result.detail}")
            votes[claim.id][vote] = result

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
        spans = sorted(set().union(*map(_places, claims)))
        passages = [self._document.text[start:end] for start, end in spans]
        answers = sorted({answer for claim in claims for answer in claim.answers})
        return request(
            load_template(f"{self._name}.{template}", self._language),
            {"passages": passages, **fields},
            shape,
            vote_sampling(self._options, vote, rating=False),
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
        spans = _places(batch[0])
        while left and len(batch) < size:
            added = [len(_places(claim) - spans) for claim in left]
            claim = left.pop(added.index(min(added)))
            batch.append(claim)
            spans |= _places(claim)
        batches.append(batch)
    return batches


def _places(claim: Claim) -> set[tuple[int, int]]:
    return {(span.start, span.end) for span in claim.spans}
