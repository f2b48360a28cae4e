"""`judge-pipeline label`: prompts with answers in, a run directory with a row for every answer out.

The directory holds `labels.jsonl` (rows), `calls.sqlite` (every finished call), `report.html`, `summary.json` and
`run.yaml`. Run again, it goes on where it stopped. Exit code 0: every answer has all its scores; 3: some lack a score
(the rows say why); 4: answers of batch files are awaited; 2: something the user has to change; 130: interrupted.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, closing, contextmanager
from typing import Any, TypeVar

from judge_pipeline.calls.store import LASTING_FAILURES, STORE_FILES, CallStore, holds_calls
from judge_pipeline.calls.writer import StoreWriter
from judge_pipeline.common.config import Command
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.progress import Progress
from judge_pipeline.common.record_files import read_prompts, write_json
from judge_pipeline.common.records import Prompt
from judge_pipeline.common.run_dir import check_place, prepare_run
from judge_pipeline.common.run_lock import locked
from judge_pipeline.common.weighting import resolve_weighting
from judge_pipeline.dimensions.base import Dimension
from judge_pipeline.dimensions.registry import build_dimensions
from judge_pipeline.documents.indexed import DocumentIndexer
from judge_pipeline.engines.base import Engine
from judge_pipeline.engines.batch_file import BATCH_FAILURES, BatchFileEngine
from judge_pipeline.engines.calibration import MeasuringRunner, Sampled, spread_out
from judge_pipeline.engines.call_counts import Amounts
from judge_pipeline.engines.limits import PARTIAL, PENDING
from judge_pipeline.engines.mail import mail_lines, open_mail
from judge_pipeline.engines.open import known_fields, open_engine
from judge_pipeline.engines.run_calls import Budget, CallRunner
from judge_pipeline.labelling.dry_run import calibrated_text, forecast_text
from judge_pipeline.labelling.fingerprint import judge_fingerprint, judged_hashes
from judge_pipeline.labelling.forecast import Forecast
from judge_pipeline.labelling.label_config import LabelConfig
from judge_pipeline.labelling.label_file import LabelFile
from judge_pipeline.labelling.label_sample import label_sample
from judge_pipeline.labelling.overflow import check_overflow
from judge_pipeline.labelling.planning import PromptPlanner
from judge_pipeline.labelling.scheduler import Scheduler
from judge_pipeline.labelling.shards import part
from judge_pipeline.labelling.summary import Tally, summarize, summary_lines
from judge_pipeline.labelling.workers import Workers

Runner = TypeVar("Runner", bound=CallRunner)
Answers = dict[str, dict[str, str]]
"""Prompt id → answer id → hash of what is judged."""


def run_label(config: LabelConfig) -> int:
    """Label all answers; returns the exit code. Settings are read in this file alone: others are given values."""
    config.check()
    names = [dimension.name for dimension in _dimensions(config, structured=False)]
    resolve_weighting(config.weights, names, config.missing)  # refuses what cannot be
    # Read once before anything is paid for: a bad record on the last line must not end a run of hours.
    answers = {prompt.id: judged_hashes(prompt) for prompt in read_part(config)}
    if not answers:
        raise UserError(
            f"--shard {config.shard}: there are not so many documents in {config.prompts}", "use fewer parts"
        )
    if config.dry_run:
        return _dry_run(config)
    with _locked(config):
        return _label(config, answers)


@contextmanager
def _locked(config: LabelConfig) -> Iterator[None]:
    """The run directory, made ready, this process's alone."""
    check_place(config.output, config.output / "run.yaml", [config.prompts], config.existing)
    with locked(config.output):
        idle = () if holds_calls(config.output / "calls.sqlite") else STORE_FILES
        prepare_run(
            config.output, config, "judge-pipeline label", config.existing, [config.prompts], idle=idle
        )
        yield


def _label(config: LabelConfig, answers: Answers) -> int:
    started, budget = time.monotonic(), config.budget
    batch: dict[str, Any] = {}
    with closing(CallStore(config.output / "calls.sqlite")) as store:
        identity = store.note(identity_note(config))
        labels = _open_labels(config, answers, identity) if identity else None
        if labels is not None and labels.complete:  # nothing to ask: no judge need be there
            with closing(labels):
                labels.keep_all()
        else:
            labels, batch = asyncio.run(_ask_and_label(config, answers, labels, store, budget))
        seconds, fields = time.monotonic() - started, known_fields(store)
        summary = summarize(labels.tally, budget, store.totals(), seconds, batch, fields)
    return finish_run(config, summary, labels.tally, changed=labels.changed)


def _open_labels(config: LabelConfig, answers: Answers, identity: str) -> LabelFile:
    """The rows there are and are to be, of the judge that the engine's identity names."""
    names = [dimension.name for dimension in _dimensions(config, structured=False)]
    weighting = resolve_weighting(config.weights, names, config.missing)
    judge, file = fingerprint(config, identity), config.output / "labels.jsonl"
    return LabelFile(file, answers, judge, Tally(names), weighting, retry_failed=config.retry_failed)


def fingerprint(config: LabelConfig, identity: str) -> str:
    """The fingerprint that rows of these settings get from an engine of this identity."""
    dimensions = _dimensions(config, structured=False)
    return judge_fingerprint(identity, config, dimensions, without=("prompts", "shard", "judge.model"))


def identity_note(config: LabelConfig) -> str:
    """Where the store remembers what the judge of these settings turned out to be."""
    judge = config.judge
    return f"identity:{judge.engine}:{judge.backend}:{judge.model}:{json.dumps(judge.body, sort_keys=True)}"


def _dry_run(config: LabelConfig) -> int:
    """Print what the run will ask; with `calibrate`, after labelling a sample into the run's store."""
    told = "reading documents, driving plans" + ("" if config.calibrate else "; no judge is asked")
    print(told, file=sys.stderr)
    indexer, prices = _document_indexer(config), config.budget.prices
    forecast, dimensions = Forecast(indexer), _dimensions(config, structured=True)
    for prompt in read_part(config):
        forecast.add(prompt, dimensions)
    if config.calibrate is None:
        print(forecast_text(forecast, prices, config.judge.thinking_budget))
        return 0
    chosen = set(spread_out(forecast.sizes, config.calibrate))
    prompts = [prompt for prompt in read_part(config) if prompt.id in chosen]
    with _locked(config), closing(CallStore(config.output / "calls.sqlite")) as store:
        made = asyncio.run(_label_sample(config, prompts, indexer, store))
    alone = Forecast(indexer)
    foreseen = [alone.add(prompt, dimensions) for prompt in prompts]
    sizes = [len(prompt.responses) for prompt in prompts]
    sample = [Sampled(*one) for one in zip(made, foreseen, sizes, strict=True)]
    print(calibrated_text(forecast, sample, prices))
    return 0


async def _label_sample(
    config: LabelConfig, prompts: Sequence[Prompt], indexer: DocumentIndexer, store: CallStore
) -> list[Amounts]:
    engine, writer = await open_engine(config.judge, store), StoreWriter(store)
    try:
        dimensions = _dimensions(config, structured=engine.supports_schema)
        runner = _runner(config, engine, writer, config.budget, MeasuringRunner)
        return await label_sample(prompts, dimensions, indexer, runner)
    finally:
        await writer.close()
        await engine.close()


def finish_run(config: LabelConfig, summary: dict[str, Any], tally: Tally, *, changed: bool) -> int:
    """Write summary and report (unless it shows these rows already); say what came out. Returns the exit code."""
    from judge_pipeline.report.write import write_report

    output = config.output
    write_json(output / "summary.json", summary)
    report = output / "report.html"
    if changed or not report.is_file():
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


def read_part(config: LabelConfig) -> Iterator[Prompt]:
    """The prompts that a run labels."""
    prompts = itertools.islice(read_prompts(config.prompts, need_responses=True), config.limit)
    return part(prompts, config.shard) if config.shard else prompts


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
        keep_bytes=config.document_megabytes * 1e6,
    )


async def _ask_and_label(
    config: LabelConfig, answers: Answers, labels: LabelFile | None, store: CallStore, budget: Budget
) -> tuple[LabelFile, dict[str, Any]]:
    """Ask what is not known yet, and write the rows; returns them with what was done with batch files."""
    async with AsyncExitStack() as stack:
        if labels is not None:
            stack.enter_context(closing(labels))
        mail = await open_mail(config.judge, store)
        engine = mail.engine or await open_engine(config.judge, store)
        stack.push_async_callback(engine.close)
        named = config.judge.model is not None or not config.judge.base_url
        if named:  # else it may be another one next time
            store.set_note(identity_note(config), engine.identity)
        if labels is None or labels.judge != fingerprint(config, engine.identity):
            if labels is not None:
                labels.close()
            labels = stack.enter_context(closing(_open_labels(config, answers, engine.identity)))
        writer = StoreWriter(store)
        stack.push_async_callback(writer.close)
        workers = stack.enter_context(closing(Workers()))
        # In a run that only writes batch files no reply comes, so nothing will be looked up.
        runner, ahead = _runner(config, engine, writer, budget, CallRunner), mail.engine is None
        dimensions = _dimensions(config, structured=engine.supports_schema)
        planner = PromptPlanner(dimensions, runner, labels.weighting, workers, read_ahead=ahead)
        await _run_plans(config, labels, planner)
        return labels, mail.finish()


async def _run_plans(config: LabelConfig, labels: LabelFile, planner: PromptPlanner) -> None:
    builder, engine = _document_indexer(config), planner.runner.engine
    if engine.context_window is not None:
        todo = (prompt for prompt in read_part(config) if prompt.id not in labels.kept)
        with Progress(len(labels.prompts) - len(labels.kept), "checking lengths", "prompts") as progress:
            check_overflow(engine, planner.dimensions, builder, todo, config.overflow, progress)
    with Progress(labels.answers, "labelling", "answers", done=labels.answers_kept) as progress:
        scheduler = Scheduler(planner, builder, labels, window=config.window, progress=progress)
        await scheduler.run(read_part(config))


def _runner(
    config: LabelConfig, engine: Engine, writer: StoreWriter, budget: Budget, kind: type[Runner]
) -> Runner:
    mailed = isinstance(engine, BatchFileEngine)
    return kind(
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
