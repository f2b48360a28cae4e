"""Drives one prompt's plans to the end and turns their outcomes into label rows.

A dimension's plan yields requests and is sent replies (see `dimensions.base`); all dimensions of a prompt go on at
the same time. The cost of a call is split evenly over the answers it served; a call that several prompts share is
counted for the first that asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from judge_pipeline.calls.call import CallUsage, FailureReason, Reply
from judge_pipeline.common.records import Failure, Label, Prompt, Usage
from judge_pipeline.common.weighting import Weighting, weighted_reward
from judge_pipeline.dimensions.base import Dimension, Document, Outcome, Plan, Request
from judge_pipeline.engines.base import Routing
from judge_pipeline.engines.run_calls import CallRunner, together

RETRIED_WITH_PLAN = frozenset({"unparsable", "out_of_range", "missing_verdict", "empty_reply"})
"""Failures of replies that arrived: `--retry-failed` asks those calls anew."""


@dataclass
class Round:
    """One exchange of a plan: the calls' keys and the answers each serves, in order."""

    keys: list[str]
    answers: list[tuple[int, ...]]


def _no_usage() -> Usage:
    return Usage(calls=0, input_tokens=0, output_tokens=0, cached_input_tokens=0)


@dataclass
class Ledger:
    """What each call of a prompt cost, and for which answers it was made."""

    usage: dict[str, CallUsage] = field(default_factory=dict)
    served: dict[str, set[int]] = field(default_factory=dict)

    def enter(self, key: str, request: Request, reply: Reply) -> None:
        """Count a call for the answers of one request."""
        self.usage[key] = reply.usage
        self.served.setdefault(key, set()).update(request.answers)

    def split(self, answers: int) -> list[Usage]:
        """The cost of each answer: calls, and tokens as they were counted by the engine."""
        totals = [_no_usage() for _ in range(answers)]
        for key, usage in self.usage.items():
            share = 1 / len(self.served[key])
            for answer in self.served[key]:
                total = totals[answer]
                total.calls += share
                total.input_tokens += usage.input_tokens * share
                total.output_tokens += usage.output_tokens * share
                total.cached_input_tokens += usage.cached_input_tokens * share
        return [
            Usage(**{name: round(value, 3) for name, value in total.model_dump().items()}) for total in totals
        ]


class PromptPlanner:
    """Labels prompts one at a time; many may be under way together."""

    def __init__(
        self, dimensions: Sequence[Dimension], runner: CallRunner, weighting: Weighting, threads: Executor
    ) -> None:
        self.dimensions = dimensions
        self.runner = runner
        self.weighting = weighting
        self._threads = threads
        self._documents: dict[str, int] = {}
        """Where each document first came up."""

    async def label(self, prompt: Prompt, document: Document, position: int) -> list[Label]:
        """One row an answer, in order. `position` is the prompt's place in the input, for the order of calls."""
        ledger = Ledger()
        outcomes = await asyncio.gather(
            *(self._outcomes(dimension, prompt, document, position, ledger) for dimension in self.dimensions)
        )
        usages = ledger.split(len(prompt.responses))
        by_answer = [
            {dimension.name: rows[answer] for dimension, rows in zip(self.dimensions, outcomes, strict=True)}
            for answer in range(len(prompt.responses))
        ]
        return [
            make_label(prompt, answer, found, usages[answer], self.weighting)
            for answer, found in enumerate(by_answer)
        ]

    async def _outcomes(
        self, dimension: Dimension, prompt: Prompt, document: Document, position: int, ledger: Ledger
    ) -> list[Outcome]:
        outcomes, rounds = await self._drive(dimension.plan(prompt, document), prompt, position, ledger, ())
        if not self.runner.retry_failed:
            return outcomes
        again = keys_behind_failures(outcomes, rounds)
        if not again:
            return outcomes
        plan = dimension.plan(prompt, document)
        return (await self._drive(plan, prompt, position, ledger, again))[0]

    def _routing(self, request: Request, prompt: Prompt, position: int) -> Routing:
        """Template first, then document, prompt and answer: calls with a common beginning follow each other."""
        document = self._documents.setdefault(prompt.document_id, position)
        order = (request.call.template, document, position, min(request.answers, default=0))
        return Routing(order, prompt.id)

    async def _drive(
        self, plan: Plan, prompt: Prompt, position: int, ledger: Ledger, again: Collection[str]
    ) -> tuple[list[Outcome], list[Round]]:
        loop = asyncio.get_running_loop()
        replies: list[Reply] | None = None
        rounds: list[Round] = []
        while True:
            # A plan may embed a document: in a thread, so that other prompts' calls go on.
            step = await loop.run_in_executor(self._threads, _advance, plan, replies)
            if isinstance(step, _Finished):
                return step.outcomes, rounds
            keys = [request.call.key(self.runner.engine.identity) for request in step]
            found = await together(
                [
                    self.runner.reply(request.call, self._routing(request, prompt, position), again)
                    for request in step
                ]
            )
            for key, request, stored in zip(keys, step, found, strict=True):
                if stored.owner in (prompt.id, "") and stored.reply.failure != "stopped":
                    ledger.enter(key, request, stored.reply)
            rounds.append(Round(keys, [request.answers for request in step]))
            replies = [stored.reply for stored in found]


@dataclass
class _Finished:
    outcomes: list[Outcome]


def _advance(plan: Plan, replies: list[Reply] | None) -> list[Request] | _Finished:
    try:
        return next(plan) if replies is None else plan.send(replies)
    except StopIteration as stop:  # cannot cross a thread boundary as an exception
        return _Finished(stop.value)


def keys_behind_failures(outcomes: Sequence[Outcome], rounds: Sequence[Round]) -> set[str]:
    """Calls whose replies made no sense: those of the last two rounds in which the failed answer took part.

    Two, because a plan asks once more by itself before it gives up.
    """
    keys: set[str] = set()
    for answer, outcome in enumerate(outcomes):
        if outcome.reason not in RETRIED_WITH_PLAN:
            continue
        mine = [one for one in rounds if any(answer in answers for answers in one.answers)]
        for one in mine[-2:]:
            keys |= {key for key, answers in zip(one.keys, one.answers, strict=True) if answer in answers}
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
    failed = {name: Outcome.failed(reason, detail) for name in names}
    return [
        make_label(prompt, answer, failed, _no_usage(), weighting) for answer in range(len(prompt.responses))
    ]
