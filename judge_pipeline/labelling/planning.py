"""Drives one prompt's plans to the end and turns their outcomes into label rows.

A dimension's plan yields requests and is sent replies (see `dimensions.base`); all dimensions of a prompt go on at
the same time. The cost of a call is split evenly over the answers it served; a call that several prompts share is
counted for the first that asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np

from judge_pipeline.calls.call import UNASKED, CallUsage, FailureReason, Reply
from judge_pipeline.common.records import Failure, Label, Prompt, Usage
from judge_pipeline.common.weighting import Weighting, weighted_reward
from judge_pipeline.dimensions.base import Dimension, Document, Outcome, Plan, Request
from judge_pipeline.engines.base import Routing
from judge_pipeline.engines.run_calls import CallRunner, together
from judge_pipeline.labelling.workers import Workers

RETRIED_WITH_PLAN = frozenset({"unparsable", "out_of_range", "missing_verdict", "empty_reply"})
"""Failures of replies that arrived: `--retry-failed` asks those calls anew."""

Round = list[tuple[str, tuple[int, ...]]]
"""One exchange of a plan: the calls' keys and the answers each serves, in order."""

Ledger = dict[str, tuple[CallUsage, set[int]]]
"""What each call of a prompt cost, and for which answers it was made, by key."""


def split_cost(ledger: Ledger, answers: int) -> list[Usage]:
    """The cost of each answer: calls, and tokens as they were counted by the engine."""
    totals = np.zeros((answers, 4))
    for usage, served in ledger.values():
        cost = np.array([1, usage.input_tokens, usage.output_tokens, usage.cached_input_tokens])
        totals[list(served)] += cost * (1 / len(served))
    rounded = [[round(value, 3) for value in row] for row in totals.tolist()]
    return [Usage(calls=n, input_tokens=i, output_tokens=o, cached_input_tokens=c) for n, i, o, c in rounded]


class PromptPlanner:
    """Labels prompts one at a time; many may be under way together."""

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        runner: CallRunner,
        weighting: Weighting,
        workers: Workers,
        *,
        read_ahead: bool = True,
    ) -> None:
        self.dimensions = dimensions
        self.runner = runner
        self.weighting = weighting
        self._workers = workers
        self._read_ahead = read_ahead
        """Documents are embedded while their first calls are out, for answers are expected in this run."""
        self._documents: dict[str, int] = {}
        """Where each document first came up."""

    async def label(self, prompt: Prompt, document: PreparedDocument, position: int) -> list[Label]:
        """One row an answer, in order. `position` is the prompt's place in the input, for the order of calls."""
        ledger: Ledger = {}
        reading = Reading(document, self._workers)
        if self._read_ahead and any(_needs(dimension) == "search" for dimension in self.dimensions):
            reading.embed()
        outcomes = await asyncio.gather(
            *(self._outcomes(dimension, prompt, reading, position, ledger) for dimension in self.dimensions)
        )
        names = [dimension.name for dimension in self.dimensions]
        usages = split_cost(ledger, len(prompt.responses))
        return [
            make_label(prompt, answer, dict(zip(names, found, strict=True)), usage, self.weighting)
            for answer, (found, usage) in enumerate(zip(zip(*outcomes, strict=True), usages, strict=True))
        ]

    async def _outcomes(
        self, dimension: Dimension, prompt: Prompt, reading: Reading, position: int, ledger: Ledger
    ) -> list[Outcome]:
        outcomes, rounds = await self._drive(dimension, prompt, reading, position, ledger, ())
        again = keys_behind_failures(outcomes, rounds) if self.runner.retry_failed else ()
        if again:
            outcomes, _ = await self._drive(dimension, prompt, reading, position, ledger, again)
        return outcomes

    def _routing(self, request: Request, prompt: Prompt, position: int) -> Routing:
        """Template first, then document, prompt and answer: calls with a common beginning follow each other."""
        document = self._documents.setdefault(prompt.document_id, position)
        order = (request.call.template, document, position, min(request.answers, default=0))
        return Routing(order, prompt.id)

    async def _drive(
        self,
        dimension: Dimension,
        prompt: Prompt,
        reading: Reading,
        position: int,
        ledger: Ledger,
        again: Collection[str],
    ) -> tuple[list[Outcome], list[Round]]:
        plan = dimension.plan(prompt, reading.document)
        replies: list[Reply] | None = None
        rounds: list[Round] = []
        while True:
            step = await reading.advance(dimension, plan, replies)
            if isinstance(step, StopIteration):
                return step.value, rounds
            keys = [request.call.key(self.runner.engine.identity) for request in step]
            found = await together(
                [
                    self.runner.reply(request.call, self._routing(request, prompt, position), again)
                    for request in step
                ]
            )
            for key, request, stored in zip(keys, step, found, strict=True):
                if stored.owner in (prompt.id, "") and stored.reply.failure not in UNASKED:
                    served = ledger[key][1] if key in ledger else set()
                    ledger[key] = stored.usage, served | set(request.answers)
            rounds.append([(key, request.answers) for key, request in zip(keys, step, strict=True)])
            replies = [stored.reply for stored in found]


class PreparedDocument(Document, Protocol):
    """A document that can be got ready before a plan asks for it."""

    def pieces(self) -> object:
        """Cut it."""
        ...

    def index(self) -> object:
        """Embed its segments, or whatever a search needs."""
        ...


class Reading:
    """A prompt's document, got ready in the threads for that before a step of a plan wants it."""

    def __init__(self, document: PreparedDocument, workers: Workers) -> None:
        self.document = document
        self._workers = workers
        self._embedded: Future[object] | None = None

    def embed(self) -> Future[object]:
        """Have the document embedded, if nobody has yet."""
        if self._embedded is None:
            self._embedded = self._workers.begin("embed", self.document.index)
        return self._embedded

    async def advance(
        self, dimension: Dimension, plan: Plan, replies: list[Reply] | None
    ) -> list[Request] | StopIteration:
        """The plan's next step."""
        needs = _needs(dimension)
        if replies is None and needs == "pieces":
            await self._workers.run("cut", self.document.pieces)
        # Plans search by what replies say; where all have failed there is nothing to look up.
        searches = needs == "search" and any(reply.failure is None for reply in replies or ())
        if searches:
            await asyncio.wrap_future(self.embed())
        return await self._workers.run("search" if searches else "step", _advance, plan, replies)


def _needs(dimension: Dimension) -> str:
    return getattr(dimension, "needs", "pieces")


def _advance(plan: Plan, replies: list[Reply] | None) -> list[Request] | StopIteration:
    try:
        return next(plan) if replies is None else plan.send(replies)
    except StopIteration as stop:  # cannot cross a thread boundary as an exception
        return stop


def keys_behind_failures(outcomes: Sequence[Outcome], rounds: Sequence[Round]) -> set[str]:
    """Calls whose replies made no sense: those of the last two rounds in which the failed answer took part.

    Two, because a plan asks once more by itself before it gives up.
    """
    keys: set[str] = set()
    for answer, outcome in enumerate(outcomes):
        if outcome.reason not in RETRIED_WITH_PLAN:
            continue
        mine = [{key for key, answers in one if answer in answers} for one in rounds]
        keys = keys.union(*[found for found in mine if found][-2:])
    return keys


def make_label(
    prompt: Prompt, answer: int, outcomes: dict[str, Outcome], usage: Usage, weighting: Weighting
) -> Label:
    """The row of one answer."""
    scores = {name: outcome.score for name, outcome in outcomes.items()}
    failures = [
        Failure(dimension=name, reason=outcome.reason or "unparsable", detail=outcome.detail)
        for name, outcome in outcomes.items()
        if outcome.score is None
    ]
    got = len(scores) - len(failures)
    return Label(
        prompt_id=prompt.id,
        response_id=prompt.responses[answer].id,
        scores=scores,
        reward=weighted_reward(scores, weighting.weights, weighting.missing),
        status="labelled" if not failures else "partial" if got else "failed",
        failures=failures,
        evidence={name: outcome.evidence for name, outcome in outcomes.items()},
        usage=usage,
    )


def unlabelled(
    prompt: Prompt, names: Sequence[str], reason: FailureReason, detail: str, weighting: Weighting
) -> list[Label]:
    """Rows for a prompt that was not begun."""
    failed = {name: Outcome(None, reason, detail) for name in names}
    usages = split_cost({}, len(prompt.responses))
    return [make_label(prompt, answer, failed, usage, weighting) for answer, usage in enumerate(usages)]
