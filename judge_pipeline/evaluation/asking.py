"""What `judge-pipeline evaluate` asks of judges: forecast (`--dry-run`), within limits, live or by batch files.

In: settings and the pairs and answers to ask about. Out: rows for the tables, or the exit code when nothing more can be
said before answers are there.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from judge_pipeline.calls.store import CallStore
from judge_pipeline.common.errors import UserError
from judge_pipeline.documents.chunking import FastTokenizer
from judge_pipeline.engines.ask_all import open_desk, run_calls
from judge_pipeline.engines.calibration import Sampled, calibrated_lines, spread_out
from judge_pipeline.engines.call_counts import (
    Amount,
    Amounts,
    CallCounts,
    amount_lines,
    cost_line,
    example_lines,
    thinking_lines,
)
from judge_pipeline.engines.limits import PARTIAL, PENDING
from judge_pipeline.engines.mail import mail_lines
from judge_pipeline.engines.open import JudgeConfig
from judge_pipeline.evaluation.evaluate_config import EvaluateConfig
from judge_pipeline.evaluation.judges import Questions, ask_judge, baseline_rows, questions_of
from judge_pipeline.statistics.compare import Predictor
from judge_pipeline.statistics.table import AnswerTable, Pair


@dataclass
class Baselines:
    """What judges that were asked directly said."""

    predictors: list[Predictor] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    exit_code: int = 0
    """3 when a limit left something out, 4 when a batch file's answers are awaited."""


def judges_of(config: EvaluateConfig) -> list[JudgeConfig]:
    """The judge, and the further models that are asked the same at its endpoints."""
    further = [config.judge.model_copy(update={"model": name}) for name in config.also_ask]
    return [config.judge, *further]


def ask_baselines(config: EvaluateConfig, table: AnswerTable, pairs: Sequence[Pair] | None) -> Baselines:
    """Ask every judge; one budget serves all."""
    found, budget = Baselines(), config.budget
    questions = questions_of(table, pairs, config.holistic)
    for judge in judges_of(config):
        of = questions.pairs, questions.rated
        asked = ask_judge(judge, config.output / "calls.sqlite", *of, budget=budget, limits=config)
        for line in mail_lines(asked.batch, judge.model):
            print(line, file=sys.stderr)
        if asked.unasked and not asked.stopped:
            print(f"answers of batch files are awaited (exit code {PENDING})", file=sys.stderr)
            found.exit_code = PENDING
            return found
        if asked.unasked:
            found.exit_code = PARTIAL
            found.notes.append(
                f"{asked.unasked} calls were not made: {asked.stopped}; the same command goes on"
            )
        name = judge.model if config.also_ask else None
        predictors, summary = baseline_rows(asked, pairs, config.holistic, name)
        found.predictors += predictors
        found.summary |= {f"{kind} ({name})" if name else kind: part for kind, part in summary.items()}
    cost = budget.prices.cost(budget.spent.usage)
    if cost is not None:
        found.summary["cost"] = cost
    return found


def dry_run(config: EvaluateConfig, table: AnswerTable, pairs: Sequence[Pair] | None) -> None:
    """Print what will be asked of each judge and what it costs; with `calibrate`, after asking about a few prompts."""
    questions = questions_of(table, pairs, config.holistic)
    embedder = config.embedding_model
    tokenizer = FastTokenizer("minilm" if embedder == "none" else embedder)
    counts, by_prompt = _foresee(questions, tokenizer)
    sizes = {name: sum(one.input_tokens for one in amounts.values()) for name, amounts in by_prompt.items()}
    lines = example_lines(counts.examples)
    prices, size = config.budget.prices, (questions.answers, len(sizes))
    for judge in judges_of(config):
        lines += [f"judge: {judge.model or 'the default'}"]
        if config.calibrate is None:
            lines += [
                *amount_lines(counts.amounts),
                "nothing was asked; what a judge thinks before it replies is not in it",
            ]
            lines += [cost_line(counts.amounts, prices)]
            lines += thinking_lines(counts.amounts, judge.thinking_budget, prices)
            continue
        sample = _sample(config, judge, questions, spread_out(sizes, config.calibrate), by_prompt)
        lines += calibrated_lines(counts.amounts, *size, sample, prices)
    print("\n".join(lines))


def _foresee(questions: Questions, tokenizer: FastTokenizer) -> tuple[CallCounts, dict[str, Amounts]]:
    """All calls counted, and each prompt's share."""
    counts, by_prompt = CallCounts(tokenizer), defaultdict[str, Amounts](dict)
    for prompt, call in questions.all(structured=True):
        _, amount = counts.foresee(call)
        mine = by_prompt[prompt]
        mine[call.template] = mine.get(call.template, Amount()) + amount
    return counts, by_prompt


def _sample(
    config: EvaluateConfig,
    judge: JudgeConfig,
    questions: Questions,
    names: list[str],
    foreseen: dict[str, Amounts],
) -> list[Sampled]:
    """Ask about some prompts, into the store of the run that follows."""
    few, budget = questions.of(set(names)), config.budget

    async def ask() -> list[Amounts]:
        with closing(CallStore(config.output / "calls.sqlite")) as store:
            async with open_desk(judge, store, budget, config) as desk:
                asked = list(few.all(desk.runner.engine.supports_schema))
                await run_calls(desk.runner, asked, len(asked), "calibrating")
                return desk.runner.of(names)

    made = asyncio.run(ask())
    return [
        Sampled(one, foreseen[name], questions.of({name}).answers)
        for name, one in zip(names, made, strict=True)
    ]


def check_asking(config: EvaluateConfig) -> None:
    """Refuse settings that contradict each other. Raises UserError."""
    config.check_limits(config.judge)
    asks = config.pairwise_judge or config.holistic
    if not asks and (config.dry_run or config.also_ask or config.judge.batch_out or config.judge.batch_in):
        raise UserError("no judge is asked anything", "give --pairwise-judge, --holistic, or both")
    if config.also_ask and (config.judge.batch_out or config.judge.batch_in):
        raise UserError(
            "a batch file is for one model", "leave out --also-ask, and name the others in runs of their own"
        )
    if config.also_ask and not config.judge.model:
        raise UserError("--also-ask names further judges", "name the first as well: --judge.model")
