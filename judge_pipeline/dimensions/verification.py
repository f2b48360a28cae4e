"""Verdicts on statements: one a call, or several a call with those that share evidence put together.

In: distinct statements with their spans of the document. Out: for each statement one verdict a vote. In a call
the spans stand in document order; a batch shows the union of its statements' spans once. A statement whose
verdict is missing from a batch, or whose batch failed in a way that asking alone can cure, is asked for alone.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from judge_pipeline.calls.call import Reply
from judge_pipeline.dimensions.asking import Ask, ask, vote_sampling
from judge_pipeline.dimensions.base import Document, Request
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.documents.chunking import Span
from judge_pipeline.documents.language import Language
from judge_pipeline.prompts.templates import build_call, load_template
from judge_pipeline.replies.marks import Problem
from judge_pipeline.replies.verdicts import Verdict, VerdictShape, VerdictsShape

NOT_CURED_ALONE = frozenset({"http", "timeout", "stopped", "batch_error"})


@dataclass(frozen=True)
class Claim:
    """A distinct statement, the answers that make it, and the segments found for it (best first)."""

    id: int
    text: str
    answers: tuple[int, ...]
    spans: tuple[Span, ...]


Votes = list[Verdict | Problem]
Verifying = Generator[list[Request], list[Reply], list[Votes]]


class Verifier:
    """Asks for verdicts with the templates `NAME.verify` and `NAME.verify_many`."""

    def __init__(self, name: str, document: Document, language: Language, options: JudgeOptions) -> None:
        self._name, self._document, self._language, self._options = name, document, language, options

    def verify(self, claims: Sequence[Claim]) -> Verifying:
        """For each claim its votes, in order."""
        if self._options.statements_per_call == 1:
            return (yield from self._one_by_one(claims))
        return (yield from self._in_batches(claims))

    def _one_by_one(self, claims: Sequence[Claim]) -> Verifying:
        count = self._options.votes
        read = yield from ask(
            [self._alone(claim, vote) for claim in claims for vote in range(count)], votes=count
        )
        return [list(read[start : start + count]) for start in range(0, len(read), count)]

    def _in_batches(self, claims: Sequence[Claim]) -> Verifying:
        count = self._options.votes
        jobs = [
            (batch, vote)
            for batch in group(claims, self._options.statements_per_call)
            for vote in range(count)
        ]
        read = yield from ask([self._together(batch, vote) for batch, vote in jobs], again=False)
        votes: dict[int, Votes] = {claim.id: [Problem("missing_verdict")] * count for claim in claims}
        for (batch, vote), result in zip(jobs, read, strict=True):
            for number, claim in enumerate(batch, start=1):
                missing = Problem("missing_verdict", "the reply passes the statement over")
                votes[claim.id][vote] = result if isinstance(result, Problem) else result.get(number, missing)
        yield from self._retry_alone(claims, votes)
        return [votes[claim.id] for claim in claims]

    def _retry_alone(
        self, claims: Sequence[Claim], votes: dict[int, Votes]
    ) -> Generator[list[Request], list[Reply], None]:
        """Replace what a batch left open, in place."""
        open_votes = [
            (claim, vote)
            for claim in claims
            for vote, one in enumerate(votes[claim.id])
            if isinstance(one, Problem) and one.reason not in NOT_CURED_ALONE
        ]
        asks = [self._alone(claim, vote) for claim, vote in open_votes]
        read = yield from ask(asks, votes=self._options.votes)
        for (claim, vote), result in zip(open_votes, read, strict=True):
            before = votes[claim.id][vote]
            if isinstance(result, Problem) and result.reason == "unparsable" and isinstance(before, Problem):
                result = Problem("missing_verdict", f"asked with others and alone: {result.detail}")
            votes[claim.id][vote] = result

    def _alone(self, claim: Claim, vote: int) -> Ask[Verdict]:
        options = self._options
        shape = VerdictShape(self._language, options.analysis_chars, options.item_chars)
        call = build_call(
            load_template(f"{self._name}.verify", self._language),
            {"passages": self._passages([claim]), "statement": claim.text},
            shape,
            vote_sampling(options, vote, rating=False),
            structured=options.structured,
            few_shot=options.few_shot,
        )
        return Ask(call, claim.answers, shape.read)

    def _together(self, batch: Sequence[Claim], vote: int) -> Ask[dict[int, Verdict | Problem]]:
        options = self._options
        # Six analyses as long as one would run into the reply's limit.
        each = max(1, min(options.analysis_chars, 2 * options.analysis_chars // len(batch)))
        shape = VerdictsShape(self._language, each, options.item_chars, len(batch))
        call = build_call(
            load_template(f"{self._name}.verify_many", self._language),
            {"passages": self._passages(batch), "statements": [claim.text for claim in batch]},
            shape,
            vote_sampling(options, vote, rating=False),
            structured=options.structured,
            few_shot=options.few_shot,
        )
        answers = sorted({answer for claim in batch for answer in claim.answers})
        return Ask(call, tuple(answers), shape.read)

    def _passages(self, claims: Sequence[Claim]) -> list[str]:
        spans = {(span.start, span.end) for claim in claims for span in claim.spans}
        return [self._document.text[start:end] for start, end in sorted(spans)]


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
