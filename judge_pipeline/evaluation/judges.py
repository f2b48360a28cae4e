"""The judge baselines of LongReward's section 4.4: which of two answers is better, and one score of a whole answer.

Pairs are asked in both orders, because judges favour a place, mostly the first: that cancels it and shows it
(`inconsistent`, `first_place`). The one score sees what the four dimensions see, without statements, retrieval or key
points: what those add is the difference. Calls go through a call store, so a second run asks nothing again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from judge_pipeline.calls.call import UNASKED, Call, FailureReason, Reply, Sampling
from judge_pipeline.calls.store import CallStore
from judge_pipeline.common.records import Prompt
from judge_pipeline.documents.words import detect_language
from judge_pipeline.engines.ask_all import open_desk, run_calls
from judge_pipeline.engines.limits import Limits
from judge_pipeline.engines.open import JudgeConfig
from judge_pipeline.engines.run_calls import Budget
from judge_pipeline.prompts.templates import build_call, load_template
from judge_pipeline.replies.choices import Choice, ChoiceShape
from judge_pipeline.replies.marks import Problem
from judge_pipeline.replies.ratings import Rating, RatingShape
from judge_pipeline.replies.shape import Shape
from judge_pipeline.statistics.compare import Kind, Predictor
from judge_pipeline.statistics.table import AnswerTable, Pair


@dataclass(frozen=True)
class HolisticShape(RatingShape):
    """An analysis and a rating, with the schema that stored calls were asked with."""

    analysis_chars: int = 600

    def schema(self) -> dict[str, Any]:
        """Analysis and rating."""
        return self.analysed(rating={"type": "integer", "minimum": 0, "maximum": 10})


def _call(name: str, prompt: Prompt, answers: dict[str, str], shape: Shape[Any], structured: bool) -> Call:
    template = load_template(f"baseline.{name}", detect_language(prompt.context))
    fields = {"document": prompt.context, "question": prompt.question, **answers}
    return build_call(template, fields, shape, Sampling(max_tokens=512), structured=structured)


def holistic_call(prompt: Prompt, position: int, structured: bool = False) -> Call:
    """The question for one score of the answer at `position`."""
    return _call("holistic", prompt, {"answer": prompt.responses[position].text}, HolisticShape(), structured)


def read_holistic(reply: Reply) -> Rating | Problem:
    """The rating a reply states."""
    return HolisticShape().read(reply)


def pair_calls(prompt: Prompt, first: int, second: int, structured: bool = False) -> tuple[Call, Call]:
    """The question about answers `first` and `second` (positions in the prompt), and the other way round."""
    one, two = prompt.responses[first].text, prompt.responses[second].text
    forward, backward = {"first": one, "second": two}, {"first": two, "second": one}
    return (
        _call("pairwise", prompt, forward, ChoiceShape(), structured),
        _call("pairwise", prompt, backward, ChoiceShape(), structured),
    )


@dataclass(frozen=True)
class PairVote:
    """What the two orders said of one pair: 1 for its first answer, 0 for its second; None when a call failed."""

    vote: float | None
    forward: Choice | None = None
    backward: Choice | None = None
    failure: FailureReason | None = None


def judge_pair(forward: Reply, backward: Reply) -> PairVote:
    """Join the replies of both orders into one vote for the first answer."""
    one, two = (ChoiceShape().read(reply) for reply in (forward, backward))
    if isinstance(one, Problem):
        return PairVote(None, failure=one.reason)
    if isinstance(two, Problem):
        return PairVote(None, failure=two.reason)
    points = {"A": 1.0, "B": 0.0, "tie": 0.5}
    vote = (points[one] + 1.0 - points[two]) / 2
    # A win in one order and a tie in the other is a lean, not a win: only agreement decides.
    return PairVote(vote if vote in (0.0, 1.0) else 0.5, one, two)


def vote_summary(votes: Sequence[PairVote]) -> dict[str, Any]:
    """How the votes came about: failures, order effects, undecided pairs."""
    judged = [vote for vote in votes if vote.vote is not None]
    first = sum((vote.forward == "A") + (vote.backward == "A") for vote in judged)
    decided = sum((vote.forward != "tie") + (vote.backward != "tie") for vote in judged)
    return {
        "pairs": len(votes),
        "judged": len(judged),
        "failed": len(votes) - len(judged),
        "undecided": sum(vote.vote == 0.5 for vote in judged),
        "inconsistent": sum(vote.forward == vote.backward != "tie" for vote in judged),
        "first_place": first / decided if decided else None,
    }


@dataclass(frozen=True)
class Questions:
    """What is asked: which of two answers is better (a prompt, the positions of both), and a score of every answer."""

    pairs: Sequence[tuple[Prompt, int, int]] | None = None
    rated: Sequence[Prompt] | None = None

    def pairwise(self, structured: bool) -> Iterator[tuple[str, Call]]:
        """Two calls a pair, one an order, with the prompt's id."""
        for prompt, first, second in self.pairs or ():
            for call in pair_calls(prompt, first, second, structured):
                yield prompt.id, call

    def holistic(self, structured: bool) -> Iterator[tuple[str, Call]]:
        """One call an answer, with the prompt's id."""
        for prompt in self.rated or ():
            for place in range(len(prompt.responses)):
                yield prompt.id, holistic_call(prompt, place, structured)

    def all(self, structured: bool) -> Iterator[tuple[str, Call]]:
        """Every call, with the prompt's id."""
        yield from self.pairwise(structured)
        yield from self.holistic(structured)

    def of(self, prompts: Collection[str]) -> Questions:
        """Those about some prompts alone, by their ids."""
        pairs = None if self.pairs is None else [pair for pair in self.pairs if pair[0].id in prompts]
        rated = None if self.rated is None else [prompt for prompt in self.rated if prompt.id in prompts]
        return Questions(pairs, rated)

    @property
    def answers(self) -> int:
        """How many answers are asked about."""
        both = {(prompt.id, place) for prompt, *places in self.pairs or () for place in places}
        rated = {(prompt.id, place) for prompt in self.rated or () for place in range(len(prompt.responses))}
        return len(both | rated)


@dataclass(frozen=True)
class Asked:
    """Votes on pairs, ratings of answers, and what every reply to each kind of question cost."""

    votes: list[PairVote]
    ratings: list[Rating | Problem]
    tokens: dict[str, dict[str, int]]
    unasked: int = 0
    """Calls that nobody was asked: a limit was reached, or they wait for a batch file's answers."""
    stopped: str | None = None
    """The limit."""
    batch: dict[str, Any] = field(default_factory=dict)
    """What was done with batch files."""


def ask_judge(
    judge: JudgeConfig,
    store: Path,
    pairs: Sequence[tuple[Prompt, int, int]] | None = None,
    rated: Sequence[Prompt] | None = None,
    budget: Budget | None = None,
    limits: Limits | None = None,
) -> Asked:
    """Ask about `pairs` (a prompt, the positions of two answers) and for a score of every answer of `rated`.

    Raises:
        UserError: the judge cannot be reached; what was answered by then is in the store.
    """
    questions, budget = Questions(pairs, rated), budget or Budget()
    replies: dict[str, list[Reply]] = {}

    async def ask() -> dict[str, Any]:
        with closing(CallStore(store)) as calls:
            async with open_desk(judge, calls, budget, limits) as desk:
                has_schema = desk.runner.engine.supports_schema
                if pairs is not None:
                    asked = questions.pairwise(has_schema)
                    replies["pairwise"] = await run_calls(desk.runner, asked, 2 * len(pairs), "pairwise")
                if rated is not None:
                    asked, total = questions.holistic(has_schema), sum(len(one.responses) for one in rated)
                    replies["holistic"] = await run_calls(desk.runner, asked, total, "holistic")
            return desk.batch

    batch = asyncio.run(ask())
    both = replies.get("pairwise", [])
    votes = [judge_pair(*orders) for orders in zip(both[::2], both[1::2], strict=True)]
    ratings = [read_holistic(reply) for reply in replies.get("holistic", [])]
    tokens = {name: _tokens(rows) for name, rows in replies.items()}
    unasked = sum(reply.failure in UNASKED for rows in replies.values() for reply in rows)
    return Asked(votes, ratings, tokens, unasked, budget.stopped, batch)


def _tokens(replies: Sequence[Reply]) -> dict[str, int]:
    return {
        "input_tokens": sum(reply.usage.input_tokens for reply in replies),
        "output_tokens": sum(reply.usage.output_tokens for reply in replies),
    }


Sides = list[tuple[int, int, int]]
"""Pairs of answers: the prompt's number and two rows of the table, the one that stands first in the prompt first."""


def sides(pairs: Sequence[Pair]) -> Sides:
    """Decided pairs in the prompt's order: which answer is asked first must not tell which one people preferred."""
    return [(one.prompt, min(one.winner, one.loser), max(one.winner, one.loser)) for one in pairs]


def questions_of(table: AnswerTable, pairs: Sequence[Pair] | None, holistic: bool) -> Questions:
    """What the baselines ask about the answers of a table."""
    starts = table.start_P.tolist()
    places = [(table.prompts[p], one - starts[p], two - starts[p]) for p, one, two in sides(pairs or ())]
    return Questions(None if pairs is None else places, table.prompts if holistic else None)


def baseline_rows(
    asked: Asked, pairs: Sequence[Pair] | None, holistic: bool, judge: str | None = None
) -> tuple[list[Predictor], dict[str, Any]]:
    """Rows for the tables of agreement, and a summary of what the judge did; `judge` names one of several."""
    predictors, summary = [], {}
    kind: Kind = "judge" if judge else "baseline"
    named = f" ({judge})" if judge else ""
    if pairs is not None:
        votes = zip(sides(pairs), asked.votes, strict=True)
        known = {(one, two): vote.vote for (_, one, two), vote in votes if vote.vote is not None}
        predictors.append(Predictor(f"pairwise judge, both orders{named}", kind, pairs=known))
        summary["pairwise"] = {**vote_summary(asked.votes), **asked.tokens["pairwise"]}
    if holistic:
        column = np.array(
            [np.nan if isinstance(x, Problem) else x.points for x in asked.ratings], dtype=float
        )
        predictors.append(Predictor(f"holistic judge{named}", kind, any_target=column, in_points=True))
        reasons = Counter(one.reason for one in asked.ratings if isinstance(one, Problem))
        answers = {"answers": len(column), "failed": sum(reasons.values()), "reasons": dict(reasons)}
        summary["holistic"] = {**answers, **asked.tokens["holistic"]}
    return predictors, summary
