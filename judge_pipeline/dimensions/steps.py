"""Steps that all dimensions take: request, request again once where the reply made no sense, vote, average.

A reply that cannot be read (`RETRIED`) is asked for once more as another sample; all other failures are final here,
since the engine has retried what a retry can cure.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from judge_pipeline.calls.call import UNASKED, Call, Sampling
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.base import Outcome, Parsed, ParsedRequest, Steps
from judge_pipeline.dimensions.options import RULES, JudgeOptions
from judge_pipeline.documents.words import Language, detect_language
from judge_pipeline.prompts.templates import CaseFields, Template, build_call
from judge_pipeline.replies.lists import Items, ListShape, example_items
from judge_pipeline.replies.marks import Problem
from judge_pipeline.replies.ratings import Rating
from judge_pipeline.replies.shape import Shape
from judge_pipeline.replies.verdicts import Verdict

Rated = TypeVar("Rated", bound=Hashable)
"""What is rated: an answer, or an answer and a group of key points."""

RETRIED = frozenset({"unparsable", "out_of_range", "empty_reply"})
SECOND_TEMPERATURE = 0.7
"""A second sample at temperature 0 would be the first one again."""


def parse_replies(
    requests: Sequence[ParsedRequest[Parsed]], *, votes: int = 1, again: bool = True
) -> Steps[list[Parsed | Problem]]:
    """What the reply to each request says, in order. The second sample's number is `votes` beyond the first's."""
    if not requests:
        return []
    replies = yield list(requests)
    results = [one.read(reply) for one, reply in zip(requests, replies, strict=True)]
    unread = [
        i for i, result in enumerate(results) if isinstance(result, Problem) and result.reason in RETRIED
    ]
    if unread and again:
        replies = yield [replace(requests[i], call=_next_sample(requests[i].call, votes)) for i in unread]
        for i, reply in zip(unread, replies, strict=True):
            results[i] = requests[i].read(reply)
    return results


def _next_sample(call: Call, step: int) -> Call:
    old = call.sampling
    seed = None if old.seed is None else old.seed + step
    temperature = old.temperature or SECOND_TEMPERATURE
    new = {"sample": old.sample + step, "seed": seed, "temperature": temperature}
    return call.model_copy(update={"sampling": old.model_copy(update=new)})


def request(
    template: Template,
    fields: CaseFields,
    shape: Shape[Parsed],
    sampling: Sampling,
    answers: tuple[int, ...],
    options: JudgeOptions,
) -> ParsedRequest[Parsed]:
    """The request that asks `template` about one case and reads the reply as `shape`."""
    structured, few_shot = options.structured, options.few_shot
    call = build_call(template, fields, shape, sampling, structured=structured, few_shot=few_shot)
    return ParsedRequest(call, answers, shape.read)


def list_request(
    template: Template,
    fields: dict[str, str],
    field: Literal["statements", "key_points"],
    answers: tuple[int, ...],
    options: JudgeOptions,
) -> ParsedRequest[Items]:
    """The request for a list, of an answer's statements or a document's key points; read at temperature 0."""
    source, limit = "answer", options.max_statements
    if field == "key_points":
        source, limit = "document", options.max_key_points
    examples = example_items(template.shown(options.few_shot), field)
    shape = ListShape(template.language, *options.bounds, field, limit, examples, fields[source])
    sampling = Sampling(max_tokens=options.max_tokens, seed=options.seed)
    return request(template, fields, shape, sampling, answers, options)


def vote_sampling(options: JudgeOptions, vote: int) -> Sampling:
    """One vote on a rating or a verdict."""
    return Sampling(
        temperature=options.vote_temperature,
        top_p=options.top_p,
        max_tokens=options.max_tokens,
        seed=None if options.seed is None else options.seed + vote,
        sample=vote,
        logprobs=options.logprobs if options.score == "expected" else 0,
    )


def prompt_language(options: JudgeOptions, document: str) -> Language:
    """The language of the prompts for a document."""
    return detect_language(document) if options.language == "auto" else options.language


def answered(prompt: Prompt) -> list[int]:
    """Positions of the answers that say anything; the others fail as `empty_answer` without a call."""
    return [index for index, response in enumerate(prompt.responses) if response.text.strip()]


def in_place(prompt: Prompt, outcomes: dict[int, Outcome]) -> list[Outcome]:
    """One outcome an answer, in order, with a failure for each empty answer."""
    empty = Outcome(None, "empty_answer", "the answer holds no text")
    return [outcomes.get(index, empty) for index in range(len(prompt.responses))]


@dataclass(frozen=True)
class Losses:
    """What of several things came to nothing: their numbers, from 0, and why."""

    problems: dict[int, Problem]
    of: int
    tolerated: float
    """Share that may fail (`JudgeOptions.tolerate_failed`)."""

    @property
    def fatal(self) -> tuple[int, Problem] | None:
        """The loss that costs the score: of a call that is still to be made, or the first of too many."""
        unasked = [pair for pair in self.problems.items() if pair[1].reason in UNASKED]
        too_many = len(self.problems) > self.tolerated * self.of + 1e-9
        return next(iter([*unasked, *self.problems.items()]), None) if unasked or too_many else None

    def note(self, **lost: list[int]) -> dict[str, Any]:
        """Evidence of what was tolerated, with the numbers of what was lost; empty where nothing was."""
        reasons = dict(Counter(problem.reason for problem in self.problems.values()))
        told = {"failed": len(self.problems), "of": self.of, "reasons": reasons, **lost}
        return {"tolerated": told} if self.problems else {}


def losses(results: Sequence[object], options: JudgeOptions) -> Losses:
    """The problems among `results`."""
    problems = {number: one for number, one in enumerate(results) if isinstance(one, Problem)}
    return Losses(problems, len(results), options.tolerate_failed)


@dataclass(frozen=True)
class VoteMean:
    """The votes on one thing, averaged."""

    points: float
    values: list[float]
    spread: float | None
    """Sample standard deviation; None for a single vote."""
    failed: list[str]


def average(values: Sequence[float | Problem]) -> VoteMean | Problem:
    """The mean of the votes that came; a problem when fewer than half came."""
    points = [value for value in values if not isinstance(value, Problem)]
    failed = [value for value in values if isinstance(value, Problem)]
    if failed and (not points or len(points) < len(failed)):
        return failed[0]
    spread = statistics.stdev(points) if len(points) > 1 else None
    return VoteMean(statistics.fmean(points), points, spread, [problem.reason for problem in failed])


def ratings(
    rated: Sequence[Rated], ask: Callable[[Rated, Sampling], ParsedRequest[Rating]], options: JudgeOptions
) -> Steps[dict[Rated, Outcome]]:
    """Outcomes of answers (or parts of them) that get a rating: each asked `votes` times, averaged, with evidence."""
    votes = options.votes
    samplings = [vote_sampling(options, vote) for vote in range(votes)]
    read = yield from parse_replies([ask(one, how) for one in rated for how in samplings], votes=votes)
    return {one: rated_outcome(read[n * votes : (n + 1) * votes], options) for n, one in enumerate(rated)}


def rated_outcome(votes: Sequence[Rating | Problem], options: JudgeOptions) -> Outcome:
    """Average the votes on one answer. Evidence: analysis, votes, spread, and what had to be done differently."""
    vote = average([one if isinstance(one, Problem) else _points(one, options) for one in votes])
    if isinstance(vote, Problem):
        return Outcome(None, vote.reason, vote.detail, {"analysis": "", "votes": [], "spread": None})
    rated = [one for one in votes if isinstance(one, Rating)]
    evidence: dict[str, Any] = {"analysis": rated[0].analysis, "votes": vote.values, "spread": vote.spread}
    if vote.failed:
        evidence["failed_votes"] = vote.failed
    if options.score == "expected":
        evidence["printed"] = [one.points for one in rated]
        evidence |= fallback(rated, "rating")
    if rated[0].missed is not None:
        evidence["missed"] = list(rated[0].missed)
    return Outcome(vote.points, evidence=evidence)


def fallback(votes: Sequence[Rating | Verdict], what: str) -> dict[str, str]:
    """The note on expected scores that fell back to the printed ones; empty where none did."""
    without = sum(one.expectation is None for one in votes)
    told = f"{without} of {len(votes)} printed: no usable log-probabilities at the {what}"
    return {"fallback": told} if without else {}


def _points(rating: Rating, options: JudgeOptions) -> float:
    if options.score == "expected" and rating.expectation is not None:
        return rating.expectation.points
    return rating.points


def rule_outcome(name: str, rule: str, problem: str, evidence: dict[str, Any]) -> Outcome:
    """The outcome of an answer with nothing to judge, by the rule called `name`; no points make it a failure."""
    evidence = {**evidence, "rule": f"{name}:{rule}"}
    points = RULES[rule] if rule in RULES else float(rule)
    if points is None:
        return Outcome(None, "no_statements", problem, evidence)
    return Outcome(points, evidence=evidence)
