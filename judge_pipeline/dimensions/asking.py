"""What all dimensions do with calls: ask, ask again once where the reply made no sense, vote, average.

Generators in the protocol of `base`: they yield requests, are sent replies, and return what they read. A reply
that cannot be read (`unparsable`, `out_of_range`, `empty_reply`) is asked for once more as another sample; all
other failures are final here, since the engine has retried what a retry can cure.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from judge_pipeline.calls.call import Call, Reply, Sampling
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.base import Outcome, Request
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.documents.language import Language, detect_language
from judge_pipeline.replies.marks import Problem
from judge_pipeline.replies.ratings import Rating

Read = TypeVar("Read")

ASK_AGAIN = frozenset({"unparsable", "out_of_range", "empty_reply"})
SECOND_TEMPERATURE = 0.7
"""A second sample at temperature 0 would be the first one again."""


@dataclass(frozen=True)
class Ask(Generic[Read]):
    """A call, the answers it serves, and how its reply is read."""

    call: Call
    answers: tuple[int, ...]
    read: Callable[[Reply], Read | Problem]


Asking = Generator[list[Request], list[Reply], list[Read | Problem]]


def ask(asks: Sequence[Ask[Read]], *, votes: int = 1, again: bool = True) -> Asking[Read]:
    """What each call's reply says, in order. The second sample's number is `votes` beyond the first's."""
    if not asks:
        return []
    replies = yield [Request(one.call, one.answers) for one in asks]
    results = [one.read(reply) for one, reply in zip(asks, replies, strict=True)]
    unread = [
        i for i, result in enumerate(results) if isinstance(result, Problem) and result.reason in ASK_AGAIN
    ]
    if unread and again:
        second = [replace(asks[i], call=_next_sample(asks[i].call, votes)) for i in unread]
        replies = yield [Request(one.call, one.answers) for one in second]
        for i, one, reply in zip(unread, second, replies, strict=True):
            results[i] = one.read(reply)
    return results


def _next_sample(call: Call, step: int) -> Call:
    old = call.sampling
    new = old.model_copy(
        update={
            "sample": old.sample + step,
            "seed": None if old.seed is None else old.seed + step,
            "temperature": old.temperature or SECOND_TEMPERATURE,
        }
    )
    return call.model_copy(update={"sampling": new})


def reading_sampling(options: JudgeOptions) -> Sampling:
    """Extraction is read once, at temperature 0."""
    return Sampling(max_tokens=options.max_tokens, seed=options.seed)


def vote_sampling(options: JudgeOptions, vote: int, *, rating: bool) -> Sampling:
    """One vote on a rating or a verdict."""
    return Sampling(
        temperature=options.vote_temperature,
        top_p=options.top_p,
        max_tokens=options.max_tokens,
        seed=None if options.seed is None else options.seed + vote,
        sample=vote,
        logprobs=options.logprobs if rating and options.score == "expected" else 0,
    )


def prompt_language(options: JudgeOptions, document: str) -> Language:
    """The language of the prompts for a document."""
    return detect_language(document) if options.language == "auto" else options.language


def answered(prompt: Prompt) -> list[int]:
    """Positions of the answers that say anything; the others fail as `empty_answer` without a call."""
    return [index for index, response in enumerate(prompt.responses) if response.text.strip()]


def in_place(prompt: Prompt, outcomes: dict[int, Outcome]) -> list[Outcome]:
    """One outcome an answer, in order, with a failure for each empty answer."""
    empty = Outcome.failed("empty_answer", "the answer holds no text")
    return [outcomes.get(index, empty) for index in range(len(prompt.responses))]


@dataclass(frozen=True)
class Vote:
    """The votes on one thing, averaged."""

    points: float
    values: list[float]
    spread: float | None
    """Sample standard deviation; None for a single vote."""
    failed: list[str]


def average(values: Sequence[float | Problem]) -> Vote | Problem:
    """The mean of the votes that came; a problem when fewer than half came."""
    points = [value for value in values if not isinstance(value, Problem)]
    failed = [value for value in values if isinstance(value, Problem)]
    if failed and (not points or len(points) < len(failed)):
        return failed[0]
    spread = statistics.stdev(points) if len(points) > 1 else None
    return Vote(statistics.fmean(points), points, spread, [problem.reason for problem in failed])


RateAsk = Callable[[Sampling], Ask[Rating]]


def rate(
    makers: Sequence[RateAsk], options: JudgeOptions
) -> Generator[list[Request], list[Reply], list[Outcome]]:
    """Outcomes of things that get a rating: each asked `votes` times, averaged, with its evidence."""
    samplings = [vote_sampling(options, vote, rating=True) for vote in range(options.votes)]
    asks = [make(sampling) for make in makers for sampling in samplings]
    read = yield from ask(asks, votes=options.votes)
    return [
        rated_outcome(read[start : start + options.votes], options)
        for start in range(0, len(read), options.votes)
    ]


def rated_outcome(votes: Sequence[Rating | Problem], options: JudgeOptions) -> Outcome:
    """Average the votes on one answer. Evidence: analysis, votes, spread, and what had to be done differently."""
    vote = average([one if isinstance(one, Problem) else _points(one, options) for one in votes])
    if isinstance(vote, Problem):
        return Outcome.failed(vote.reason, vote.detail, {"analysis": "", "votes": [], "spread": None})
    rated = [one for one in votes if isinstance(one, Rating)]
    evidence: dict[str, Any] = {"analysis": rated[0].analysis, "votes": vote.values, "spread": vote.spread}
    if vote.failed:
        evidence["failed_votes"] = vote.failed
    if options.score == "expected":
        evidence["printed"] = [one.points for one in rated]
        without = sum(one.expectation is None for one in rated)
        if without:
            evidence["fallback"] = (
                f"{without} of {len(rated)} printed: no usable log-probabilities at the rating"
            )
    if rated[0].missed is not None:
        evidence["missed"] = list(rated[0].missed)
    return Outcome(vote.points, evidence=evidence)


def _points(rated: Rating, options: JudgeOptions) -> float:
    if options.score == "expected" and rated.expectation is not None:
        return rated.expectation.points
    return rated.points
