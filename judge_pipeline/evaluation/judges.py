"""The judge baselines of LongReward's section 4.4, asked for real: direct pairwise judging and one holistic score.

In: answers, pairs that people decided, a judge's settings. Out: predictors for the agreement tables and a summary of
what the judge did (failures, order effects, tokens). Calls go through a call store, so a second run asks nothing again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from judge_pipeline.calls.call import Call, Reply
from judge_pipeline.calls.store import CallStore
from judge_pipeline.engines.base import Engine
from judge_pipeline.engines.judge_config import JudgeConfig
from judge_pipeline.engines.open import open_engine
from judge_pipeline.engines.run_calls import run_calls
from judge_pipeline.evaluation.holistic import holistic_call, read_holistic
from judge_pipeline.evaluation.pairwise import judge_pair, pair_calls, vote_summary
from judge_pipeline.replies.marks import Problem
from judge_pipeline.statistics.compare import Predictor
from judge_pipeline.statistics.table import AnswerTable, Pair


@dataclass
class JudgeBaselines:
    """What the judge was asked beside the four dimensions, and what it said."""

    predictors: list[Predictor] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)


def ask_baselines(
    judge: JudgeConfig,
    table: AnswerTable,
    pairs: Sequence[Pair],
    store: Path,
    *,
    pairwise: bool,
    holistic: bool,
) -> JudgeBaselines:
    """Ask what is wanted of the judge and turn it into rows of the tables.

    Raises:
        UserError: the judge cannot be reached; what was answered by then is in the store.
    """

    async def ask() -> JudgeBaselines:
        found = JudgeBaselines()
        with closing(CallStore(store)) as calls:
            engine = await open_engine(judge, calls)
            try:
                if pairwise:
                    await _pairwise(found, engine, calls, table, pairs)
                if holistic:
                    await _holistic(found, engine, calls, table)
            finally:
                await engine.close()
        return found

    return asyncio.run(ask())


async def _pairwise(
    found: JudgeBaselines, engine: Engine, store: CallStore, table: AnswerTable, pairs: Sequence[Pair]
) -> None:
    calls: list[Call] = []
    sides = []
    for pair in pairs:
        start = int(table.start_P[pair.prompt])
        # Which answer stands first must not tell which one people preferred.
        first, second = sorted((pair.winner, pair.loser))
        sides.append((first, second))
        calls += pair_calls(
            table.prompts[pair.prompt], first - start, second - start, structured=engine.supports_schema
        )
    replies = await run_calls(engine, store, calls, "pairwise")
    votes = [judge_pair(replies[2 * i], replies[2 * i + 1]) for i in range(len(sides))]
    known = {side: vote.vote for side, vote in zip(sides, votes, strict=True) if vote.vote is not None}
    found.predictors.append(Predictor("pairwise judge, both orders", "baseline", pairs=known))
    found.summary["pairwise"] = {**vote_summary(votes), **_spent(replies)}


async def _holistic(found: JudgeBaselines, engine: Engine, store: CallStore, table: AnswerTable) -> None:
    calls = [
        holistic_call(prompt, position, structured=engine.supports_schema)
        for prompt in table.prompts
        for position in range(len(prompt.responses))
    ]
    replies = await run_calls(engine, store, calls, "holistic")
    ratings = [read_holistic(reply) for reply in replies]
    column = np.array([np.nan if isinstance(one, Problem) else one.points for one in ratings], dtype=float)
    found.predictors.append(Predictor("holistic judge", "baseline", any_target=column, in_points=True))
    reasons = Counter(one.reason for one in ratings if isinstance(one, Problem))
    found.summary["holistic"] = {
        "answers": len(ratings),
        "failed": sum(reasons.values()),
        "reasons": dict(reasons),
        **_spent(replies),
    }


def _spent(replies: Sequence[Reply]) -> dict[str, int]:
    return {
        "input_tokens": sum(reply.usage.input_tokens for reply in replies),
        "output_tokens": sum(reply.usage.output_tokens for reply in replies),
    }
