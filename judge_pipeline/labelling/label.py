"""`judge-pipeline label`: prompts with answers in, a run directory with a row for every answer out.

The directory holds `labels.jsonl` (rows), `calls.sqlite` (every finished call), `report.html`, `summary.json` and
`run.yaml`. Run again, it goes on where it stopped. Exit code 0: every answer has all its scores; 3: some lack a score
(the rows say why); 4: answers of batch files are awaited; 2: something the user has to change; 130: interrupted.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from judge_pipeline.calls.store import LASTING_FAILURES, STORE_FILES, CallStore, holds_calls
from judge_pipeline.calls.writer import StoreWriter
from judge_pipeline.common.config import Command
from judge_pipeline.common.progress import Progress
from judge_pipeline.common.record_files import read_prompts, write_json
from judge_pipeline.common.records import Prompt
from judge_pipeline.common.run_dir import prepare_run
from judge_pipeline.common.weighting import resolve_weighting
from judge_pipeline.dimensions.base import Dimension
from judge_pipeline.dimensions.registry import build_dimensions
from judge_pipeline.documents.indexed import DocumentIndexer
from judge_pipeline.engines.base import Engine
from judge_pipeline.engines.batch_file import BATCH_FAILURES, BatchFileEngine
from judge_pipeline.engines.mail import mail_lines, open_mail
from judge_pipeline.engines.open import open_engine
from judge_pipeline.engines.run_calls import Budget, CallRunner
from judge_pipeline.labelling.dry_run import forecast_text
from judge_pipeline.labelling.forecast import Forecast
from judge_pipeline.labelling.label_config import LabelConfig
from judge_pipeline.labelling.label_file import LabelFile
from judge_pipeline.labelling.overflow import check_overflow
from judge_pipeline.labelling.planning import PromptPlanner
from judge_pipeline.labelling.scheduler import Scheduler
from judge_pipeline.labelling.summary import Tally, summarize, summary_lines

PARTIAL = 3
"""Exit code when some answers lack a score."""
PENDING = 4
"""Exit code when calls are in batch files whose answers are awaited."""
THREADS = 2
"""Threads for embedding and rendering; torch brings its own inside each."""


def run_label(config: LabelConfig) -> int:
    """Label all answers; returns the exit code. Settings are read in this file alone: others are given values."""
    config.check()
    names = [dimension.name for dimension in _dimensions(config, structured=False)]
    weighting = resolve_weighting(config.weights, names, config.missing)
    # Read once before anything is paid for: a bad record on the last line must not end a run of hours.
    answers = {prompt.id: [response.id for response in prompt.responses] for prompt in _prompts(config)}
    budget = config.budget
    if config.dry_run:
        return _dry_run(config)
    path = config.output / "calls.sqlite"
    idle = () if holds_calls(path) else STORE_FILES
    prepare_run(config.output, config, "judge-pipeline label", config.existing, [config.prompts], idle=idle)
    started = time.monotonic()
    batch: dict[str, Any] = {}
    file, retry = config.output / "labels.jsonl", config.retry_failed
    with (
        closing(CallStore(path)) as store,
        closing(LabelFile(file, answers, Tally(names), weighting, retry_failed=retry)) as labels,
    ):
        if labels.complete:  # nothing to ask: no engine need be there
            labels.keep_all()
        else:
            batch = asyncio.run(_ask_and_label(config, labels, store, budget))
        summary = summarize(labels.tally, budget, store.totals(), time.monotonic() - started, batch)
    return _finish(config, summary, labels)


def _dry_run(config: LabelConfig) -> int:
    print("reading documents, driving plans; no judge is asked", file=sys.stderr)
    forecast, dimensions = Forecast(_document_indexer(config)), _dimensions(config, structured=True)
    for prompt in _prompts(config):
        forecast.add(prompt, dimensions)
    print(forecast_text(forecast, config.budget.prices))
    return 0


def _finish(config: LabelConfig, summary: dict[str, Any], labels: LabelFile) -> int:
    """Write summary and report (unless it shows these rows already); say what came out. Returns the exit code."""
    from judge_pipeline.report.write import write_report

    output, tally = config.output, labels.tally
    write_json(output / "summary.json", summary)
    report = output / "report.html"
    if labels.changed or not report.is_file():
        report = write_report(output)
    print("\n".join(summary_lines(summary)))
    print(f"labels: {output / 'labels.jsonl'}\nreport: {report}")
    for line in mail_lines(summary["batch"], config.judge.model):
        print(line, file=sys.stderr)
    if tally.pending:
        failed = (
            f"{tally.failed} answers lack a score for other reasons; " if tally.failed else "nothing failed; "
        )
        print(f"{failed}answers of batch files are awaited (exit code {PENDING})", file=sys.stderr)
        return PENDING
    if not tally.complete:
        print(
            "some answers lack a score (exit code 3); --retry-failed does again what failed", file=sys.stderr
        )
    return 0 if tally.complete else PARTIAL


def _prompts(config: LabelConfig) -> Iterator[Prompt]:
    return itertools.islice(read_prompts(config.prompts, need_responses=True), config.limit)


def _dimensions(config: LabelConfig, *, structured: bool) -> list[Dimension]:
    """The dimensions; `structured` asks for JSON, where the engine can hold to it."""
    return build_dimensions(config.dimensions, config.judge_options(structured=structured))


def _document_indexer(config: LabelConfig) -> DocumentIndexer:
    return DocumentIndexer(
        config.embedder,
        retrieval=config.retrieval,
        segment_tokens=config.segment_tokens,
        chunk_tokens=config.chunk_tokens,
        top_k=config.top_k,
    )


async def _ask_and_label(
    config: LabelConfig, labels: LabelFile, store: CallStore, budget: Budget
) -> dict[str, Any]:
    """Ask what is not known yet, and write the rows; returns what was done with batch files."""
    mail = await open_mail(config.judge, store)
    engine = mail.engine or await open_engine(config.judge, store)
    writer = StoreWriter(store)
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="plan")
    try:
        dimensions = _dimensions(config, structured=engine.supports_schema)
        builder = _document_indexer(config)
        runner = _runner(config, engine, writer, budget)
        planner = PromptPlanner(dimensions, runner, labels.weighting, threads)
        if engine.context_window is not None:
            todo = (prompt for prompt in _prompts(config) if prompt.id not in labels.kept)
            with Progress(len(labels.prompts) - len(labels.kept), "checking lengths", "prompts") as progress:
                check_overflow(engine, dimensions, builder, todo, config.overflow, progress)
        with Progress(labels.answers, "labelling", "answers", done=labels.answers_kept) as progress:
            scheduler = Scheduler(planner, builder, labels, window=config.window, progress=progress)
            await scheduler.run(_prompts(config))
        return mail.finish()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)
        await writer.close()
        await engine.close()


def _runner(config: LabelConfig, engine: Engine, writer: StoreWriter, budget: Budget) -> CallRunner:
    mailed = isinstance(engine, BatchFileEngine)
    return CallRunner(
        engine,
        writer,
        budget,
        retry_failed=config.retry_failed,
        lasting=LASTING_FAILURES | (BATCH_FAILURES if mailed else set()),
        most_tokens=config.max_tokens_ceiling,
    )


COMMAND = Command(
    name="label",
    help="score every answer of every prompt with an LLM judge",
    config=LabelConfig,
    run=run_label,
    example="judge-pipeline label answers.jsonl --output labels "
    "--judge.base-url http://localhost:8000/v1 --judge.model Qwen3-32B",
)
