"""`judge-pipeline label`: prompts with answers in, a run directory with a row for every answer out.

The directory holds `labels.jsonl` (rows), `calls.sqlite` (every finished call), `report.html`, `summary.json` and
`run.yaml`. Run again, it goes on where it stopped. Exit code 0: every answer has all its scores; 3: some lack a score
(the rows say why); 2: something the user has to change; 130: interrupted.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge_pipeline.calls.store import LASTING_FAILURES, STORE_FILES, CallStore, StoreWriter, holds_calls
from judge_pipeline.common.config import Command
from judge_pipeline.common.progress import Progress
from judge_pipeline.common.record_files import read_prompts
from judge_pipeline.common.records import Prompt
from judge_pipeline.common.run_dir import prepare_run
from judge_pipeline.common.weighting import Weighting, resolve_weighting
from judge_pipeline.dimensions.base import Dimension
from judge_pipeline.dimensions.registry import build_dimensions
from judge_pipeline.documents.indexed import DocumentIndexer
from judge_pipeline.engines.base import Engine
from judge_pipeline.engines.batch_file import BatchFileEngine, take_in
from judge_pipeline.engines.chat_protocol import identity_of
from judge_pipeline.engines.open import open_engine
from judge_pipeline.labelling.label_config import LabelConfig
from judge_pipeline.labelling.label_file import KeepRule, LabelFile, PromptKey
from judge_pipeline.labelling.overflow import check_overflow
from judge_pipeline.labelling.planning import PromptPlanner
from judge_pipeline.labelling.runner import Budget, CallRunner
from judge_pipeline.labelling.scheduler import Scheduler
from judge_pipeline.labelling.summary import Tally, summarize, summary_lines, write_summary

PARTIAL = 3
"""Exit code when some answers lack a score."""
THREADS = 2
"""Threads for embedding and rendering; torch brings its own inside each."""


@dataclass(frozen=True)
class Inputs:
    """What the first reading of the input found."""

    keys: list[PromptKey]

    @property
    def responses(self) -> int:
        """Answers in all."""
        return sum(len(key.response_ids) for key in self.keys)


def run_label(config: LabelConfig) -> int:
    """Label all answers; returns the exit code."""
    config.check()
    names = dimension_names(config)
    weighting = resolve_weighting(config.weights, names, config.missing)
    # Read once before anything is paid for: a bad record on the last line must not end a run of hours.
    inputs = Inputs([PromptKey.of(prompt) for prompt in prompts_of(config)])
    if config.dry_run:
        from judge_pipeline.labelling.dry_run import run_dry

        return run_dry(config)
    path = config.output / "calls.sqlite"
    idle = () if holds_calls(path) else STORE_FILES
    prepare_run(config.output, config, "judge-pipeline label", config.existing, [config.prompts], idle=idle)
    started = time.monotonic()
    store = CallStore(path)
    try:
        result = asyncio.run(_label(config, names, weighting, inputs, store))
        summary = summarize(
            result.tally,
            result.budget.spent,
            config.prices,
            store.totals(),
            time.monotonic() - started,
            result.budget.stopped,
        )
    finally:
        store.close()
    return finish(config.output, summary, complete=result.tally.complete, changed=result.changed)


def finish(output: Path, summary: dict[str, Any], *, complete: bool, changed: bool) -> int:
    """Write summary and report (unless it shows these rows already); say what came out."""
    from judge_pipeline.report.write import write_report

    write_summary(output / "summary.json", summary)
    report = output / "report.html"
    if changed or not report.is_file():
        report = write_report(output)
    print("\n".join(summary_lines(summary)))
    print(f"labels: {output / 'labels.jsonl'}\nreport: {report}")
    if not complete:
        print(
            "some answers lack a score (exit code 3); --retry-failed does again what failed", file=sys.stderr
        )
    return 0 if complete else PARTIAL


def dimension_names(config: LabelConfig) -> list[str]:
    """Names as they will stand in the rows."""
    return [
        dimension.name
        for dimension in build_dimensions(config.dimensions, config.judge_options(structured=False))
    ]


def prompts_of(config: LabelConfig) -> Iterator[Prompt]:
    """The prompts to label, as a stream."""
    return itertools.islice(read_prompts(config.prompts, need_responses=True), config.limit)


def document_indexer(config: LabelConfig) -> DocumentIndexer:
    """The documents' reader, as the settings say."""
    return DocumentIndexer(
        config.embedder,
        retrieval=config.retrieval,
        segment_tokens=config.segment_tokens,
        chunk_tokens=config.chunk_tokens,
        top_k=config.top_k,
    )


def make_dimensions(config: LabelConfig, engine: Engine) -> list[Dimension]:
    """The dimensions, asking for JSON where the engine can hold to it."""
    return build_dimensions(config.dimensions, config.judge_options(structured=engine.supports_schema))


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    tally: Tally
    budget: Budget
    changed: bool


async def _label(
    config: LabelConfig, names: list[str], weighting: Weighting, inputs: Inputs, store: CallStore
) -> Result:
    tally = Tally(names)
    rule = KeepRule(names, weighting, config.retry_failed)
    labels = LabelFile(config.output / "labels.jsonl", rule, inputs.keys, tally)
    budget = Budget(config.max_calls, config.max_cost, config.prices)
    try:
        if len(labels.kept) == len(inputs.keys):  # nothing to ask: no engine need be there
            for position, prompt in enumerate(prompts_of(config)):
                labels.keep(position, prompt)
            labels.finish()
            return Result(tally, budget, labels.changed)
        await _ask_and_label(config, inputs, store, labels, budget)
        return Result(tally, budget, labels.changed)
    finally:
        labels.close()


async def _ask_and_label(
    config: LabelConfig, inputs: Inputs, store: CallStore, labels: LabelFile, budget: Budget
) -> None:
    batch = _batch_engine(config, store)
    engine = batch or await open_engine(config.judge, store)
    writer = StoreWriter(store)
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="plan")
    try:
        dimensions = make_dimensions(config, engine)
        builder = document_indexer(config)
        lasting = LASTING_FAILURES | ({"batch_error", "empty_reply"} if batch else set())
        runner = CallRunner(engine, writer, budget, retry_failed=config.retry_failed, lasting=lasting)
        planner = PromptPlanner(dimensions, runner, labels.rule.weighting, threads)
        todo = (prompt for prompt in prompts_of(config) if prompt.id not in labels.kept)
        if engine.context_window is not None:
            with Progress(len(inputs.keys) - len(labels.kept), "checking lengths", "prompts") as progress:
                check_overflow(
                    engine, dimensions, builder, todo, skip=config.overflow == "skip", progress=progress
                )
        kept = sum(len(key.response_ids) for key in inputs.keys if key.id in labels.kept)
        with Progress(inputs.responses, "labelling", "answers", done=kept) as progress:
            scheduler = Scheduler(planner, builder, labels, window=config.window, progress=progress)
            await scheduler.run(prompts_of(config))
        if batch is not None:
            batch.finish()
            print(batch.report(), file=sys.stderr)
    finally:
        threads.shutdown(wait=True, cancel_futures=True)
        await writer.close()
        await engine.close()


def _batch_engine(config: LabelConfig, store: CallStore) -> BatchFileEngine | None:
    """Take in answered batch files, and be ready to write the next one.

    None when no batch file is named, and when an endpoint is there to ask what the files have left open.
    """
    judge = config.judge
    if judge.model is None or not (judge.batch_in or judge.batch_out):
        return None
    if judge.batch_in:
        intake = take_in(judge.batch_in, store, identity_of(judge.model, judge.extra_body))
        print(intake.report(), file=sys.stderr)
    if judge.base_url:
        return None
    structured = judge.structured != "off"
    return BatchFileEngine(
        judge.model, store, judge.batch_out, structured=structured, extra_body=judge.extra_body
    )


COMMAND = Command(
    name="label",
    help="score every answer of every prompt with an LLM judge",
    config=LabelConfig,
    run=run_label,
    example="judge-pipeline label answers.jsonl --output labels "
    "--judge.base-url http://localhost:8000/v1 --judge.model Qwen3-32B",
)
