"""The judge baselines of LongReward's section 4.4: which of two answers is better, and one score of a whole answer.

Pairs are asked in both orders, because judges favour a place, mostly the first: that cancels it and shows it
(`inconsistent`, `first_place`). The one score sees what the four dimensions see, without statements, retrieval or key
points: what those add is the difference. Calls go through a call store, so a second run asks nothing again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from judge_pipeline.calls.call import Call, FailureReason, Reply, Sampling
from judge_pipeline.calls.store import CallStore
from judge_pipeline.common.records import Prompt
from judge_pipeline.documents.words import detect_language
from judge_pipeline.engines.open import JudgeConfig, open_engine
from judge_pipeline.engines.run_calls import run_calls
from judge_pipeline.prompts.templates import build_call, load_template
from judge_pipeline.replies.choices import Choice, ChoiceShape
from judge_pipeline.replies.marks import Problem
from judge_pipeline.replies.ratings import Rating, RatingShape
from judge_pipeline.replies.shape import Shape
from judge_pipeline.statistics.compare import Predictor
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
class Asked:
    """Votes on pairs, ratings of answers, and what every reply to each kind of question cost."""

    votes: list[PairVote]
    ratings: list[Rating | Problem]
    tokens: dict[str, dict[str, int]]


def ask_judge(
    judge: JudgeConfig,
    store: Path,
    pairs: Sequence[tuple[Prompt, int, int]] | None = None,
    rated: Sequence[Prompt] | None = None,
) -> Asked:
    """Ask about `pairs` (a prompt, the positions of two answers) and for a score of every answer of `rated`.

    Raises:
        UserError: the judge cannot be reached; what was answered by then is in the store.
    """

    async def ask() -> dict[str, list[Reply]]:
        with closing(CallStore(store)) as calls:
            engine = await open_engine(judge, calls)
            try:
                has_schema = engine.supports_schema
                asked: dict[str, list[Call]] = {}
                if pairs is not None:
                    asked["pairwise"] = [call for pair in pairs for call in pair_calls(*pair, has_schema)]
                if rated is not None:
                    places = [(prompt, place) for prompt in rated for place in range(len(prompt.responses))]
                    asked["holistic"] = [holistic_call(*place, has_schema) for place in places]
                return {name: await run_calls(engine, calls, asked[name], name) for name in asked}
            finally:
                await engine.close()

    replies = asyncio.run(ask())
    both = replies.get("pairwise", [])
    votes = [judge_pair(*orders) for orders in zip(both[::2], both[1::2], strict=True)]
    ratings = [read_holistic(reply) for reply in replies.get("holistic", [])]
    return Asked(votes, ratings, {name: _tokens(rows) for name, rows in replies.items()})


def _tokens(replies: Sequence[Reply]) -> dict[str, int]:
    return {
        "input_tokens": sum(reply.usage.input_tokens for reply in replies),
        "output_tokens": sum(reply.usage.output_tokens for reply in replies),
    }


def ask_baselines(
    judge: JudgeConfig, store: Path, table: AnswerTable, pairs: Sequence[Pair] | None, holistic: bool
) -> tuple[list[Predictor], dict[str, Any]]:
    """Rows for the tables of agreement, and a summary of what the judge did; see `ask_judge`."""
    # Which answer stands first must not tell which one people preferred.
    sides = (
        None if pairs is None else [(x.prompt, min(x.winner, x.loser), max(x.winner, x.loser)) for x in pairs]
    )
    starts = table.start_P.tolist()
    wanted = [(table.prompts[p], one - starts[p], two - starts[p]) for p, one, two in sides or ()]
    asked = ask_judge(judge, store, None if sides is None else wanted, table.prompts if holistic else None)
    predictors, summary = [], {}
    if sides is not None:
        votes = zip(sides, asked.votes, strict=True)
        known = {(one, two): vote.vote for (_, one, two), vote in votes if vote.vote is not None}
        predictors.append(Predictor("pairwise judge, both orders", "baseline", pairs=known))
        summary["pairwise"] = {**vote_summary(asked.votes), **asked.tokens["pairwise"]}
    if holistic:
        column = np.array(
            [np.nan if isinstance(x, Problem) else x.points for x in asked.ratings], dtype=float
        )
        predictors.append(Predictor("holistic judge", "baseline", any_target=column, in_points=True))
        reasons = Counter(one.reason for one in asked.ratings if isinstance(one, Problem))
        answers = {"answers": len(column), "failed": sum(reasons.values()), "reasons": dict(reasons)}
        summary["holistic"] = {**answers, **asked.tokens["holistic"]}
    return predictors, summary
