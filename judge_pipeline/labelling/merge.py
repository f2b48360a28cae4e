"""`judge-pipeline merge`: the runs of all shards become one run, if together they hold every answer exactly once.

In: run directories that `judge-pipeline label --shard` has made of one prompt file with the same settings. Out: a run
directory as one machine would have made it, with all rows, all stored calls, a summary and a report; labelling can go on
in it (to do again what failed, say). Nothing is written unless nothing is missing and nothing stands twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from judge_pipeline.calls.store import CallStore, StoreTotals
from judge_pipeline.common.config import POSITIONAL, Command, Config, free
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_labels, write_records
from judge_pipeline.common.records import Label
from judge_pipeline.common.run_dir import check_place, differences, file_digest, prepare_run, read_run_yaml
from judge_pipeline.common.run_lock import LOCK, locked
from judge_pipeline.dimensions.registry import build_dimensions
from judge_pipeline.engines.run_calls import Budget
from judge_pipeline.labelling.fingerprint import judged_hashes
from judge_pipeline.labelling.label import finish_run, read_part
from judge_pipeline.labelling.label_config import LabelConfig
from judge_pipeline.labelling.summary import Tally, summarize

LABEL = "judge-pipeline label"
SHOWN = 5
"""Answers told by name where some are missing or doubled."""


class MergeConfig(Config):
    """Settings of `judge-pipeline merge`."""

    runs: list[Path] = Field(
        description="run directories to join, one a shard", json_schema_extra=POSITIONAL, min_length=1
    )
    output: Path = free(..., "directory of the joined run")
    prompts: Path | None = free(None, "the prompt file, where it is not any more where the runs read it")
    existing: Literal["refuse", "replace"] = free(
        "refuse", "if the output holds something: refuse, or replace it"
    )


@dataclass(frozen=True)
class Found:
    """An answer's row, and the run it was found in."""

    run: Path
    row: Label


def run_merge(config: MergeConfig) -> int:
    """Join runs; returns the exit code of `label` for the joined run."""
    run_file = config.output / "run.yaml"
    check_place(config.output, run_file, config.runs, config.existing)
    with ExitStack() as stack:
        for run in config.runs:
            if not (run / "labels.jsonl").is_file():
                raise UserError(
                    f"{run} holds no labels", "name directories that `judge-pipeline label` has made"
                )
            stack.enter_context(locked(run))
        settings = _settings(config)
        _check_rows(settings, config.runs)
        stack.enter_context(locked(config.output))
        if config.existing == "refuse" and {item.name for item in config.output.iterdir()} - {LOCK}:
            raise UserError(
                f"{config.output} holds files", "name a new directory, or choose --existing replace"
            )
        merged = {"merged": [str(run.absolute()) for run in config.runs]}
        prepare_run(config.output, settings, LABEL, config.existing, [settings.prompts], merged)
        return _write(settings, config.runs)


def _settings(config: MergeConfig) -> LabelConfig:
    """The settings that all runs share, for one run of the whole."""
    described = [read_run_yaml(run) for run in config.runs]
    first, whole = config.runs[0], [_without_shard(one) for one in described]
    for run, one in zip(config.runs, whole, strict=True):
        if one.get("command") != LABEL:
            raise UserError(f"{run} is a run of `{one.get('command')}`, not of `{LABEL}`")
        if lines := differences(
            LabelConfig, _read_nowhere(whole[0]), _read_nowhere(one), (f"in {first}", f"in {run}")
        ):
            raise UserError(
                "these runs are no parts of one:\n  " + "\n  ".join(lines), "label all with the same settings"
            )
    values = {**whole[0]["config"], "output": config.output}
    if config.prompts is not None:
        values["prompts"] = config.prompts
    settings = LabelConfig.model_validate(values)
    if not settings.prompts.is_file():
        raise UserError(f"{settings.prompts}, which the runs read, is not there", "name it: --prompts FILE")
    digest = file_digest(settings.prompts)
    for run, one in zip(config.runs, described, strict=True):
        if digest not in (one.get("inputs") or {}).values():
            raise UserError(f"{settings.prompts} has other content than the prompts that {run} labelled")
    return settings


def _without_shard(described: dict[str, Any]) -> dict[str, Any]:
    return {**described, "config": {**described.get("config", {}), "shard": None}}


def _read_nowhere(described: dict[str, Any]) -> dict[str, Any]:
    """The description without the place of the prompts, which differs from machine to machine."""
    return {**described, "config": {**described["config"], "prompts": None}}


def _groups(run: Path) -> Iterator[list[Label]]:
    """The rows of each prompt in turn."""
    for _, rows in itertools.groupby(read_labels(run), key=lambda row: row.prompt_id):
        yield list(rows)


def _in_order(
    settings: LabelConfig, runs: Sequence[Path]
) -> Iterator[tuple[str, dict[str, str], list[Found]]]:
    """For each prompt (its id) in turn its answers, with a hash of what is judged, and all rows there are for it.

    Every run's rows are in the order of the prompts, so each file is read once, from its beginning to its end.
    """
    readers = [_groups(run) for run in runs]
    heads = [next(reader, None) for reader in readers]
    for prompt in read_part(settings):
        found: list[Found] = []
        for place, run in enumerate(runs):
            while (head := heads[place]) is not None and head[0].prompt_id == prompt.id:
                found += [Found(run, row) for row in head]
                heads[place] = next(readers[place], None)
        yield prompt.id, judged_hashes(prompt), found
    for run, head in zip(runs, heads, strict=True):
        if head is not None:
            raise UserError(
                f"{run}: rows of prompt '{head[0].prompt_id}' stand where none of {settings.prompts} belongs",
                "the file was edited, or is of other prompts: label that part again",
            )


def _check_rows(settings: LabelConfig, runs: Sequence[Path]) -> None:
    """Raises UserError where an answer has no row or two, or was judged otherwise than the others."""
    missing: list[str] = []
    doubled: list[str] = []
    judges: dict[str, Path] = {}
    for prompt, answers, found in _in_order(settings, runs):
        rows: dict[str, list[Found]] = {}
        for one in found:
            rows.setdefault(one.row.response_id, []).append(one)
            judges.setdefault(one.row.judge, one.run)
        for answer, judged in answers.items():
            there = rows.pop(answer, [])
            name = f"answer '{answer}' of prompt '{prompt}'"
            if not there:
                missing.append(name)
            elif len(there) > 1:
                doubled.append(f"{name} ({' and '.join(str(one.run) for one in there)})")
            elif there[0].row.judged != judged:
                raise UserError(
                    f"{there[0].run}: {name} was judged with another text", "label that part again"
                )
        if rows:
            raise UserError(f"{found[0].run}: prompt '{prompt}' has no answer '{next(iter(rows))}'")
    if missing or doubled:
        raise UserError(
            "\n".join(_named("no row", missing) + _named("more than one row", doubled)),
            "name every part once; `judge-pipeline label` goes on with one that was stopped",
        )
    if len(judges) > 1:
        first, second = list(judges.values())[:2]
        raise UserError(f"{first} and {second} were not judged by the same judge", "label one of them again")


def _named(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{len(names)} answers have {what}: {', '.join(names[:SHOWN])}{more}"]


def _write(settings: LabelConfig, runs: Sequence[Path]) -> int:
    """The joined store, rows, summary and report."""
    options = settings.judge_options(structured=False)
    tally = Tally([dimension.name for dimension in build_dimensions(settings.dimensions, options)])
    write_records(settings.output / "labels.jsonl", _tallied(settings, runs, tally))
    totals, twice = _join_stores(settings.output / "calls.sqlite", runs)
    summary = summarize(tally, Budget(prices=settings.budget.prices), totals, 0.0)
    summary["merged"] = {"runs": [str(run) for run in runs], "calls_bought_twice": twice}
    print(f"merged: {len(runs)} runs, {totals.calls} calls; {twice} of them had been asked by more than one")
    return finish_run(settings, summary, tally, changed=True)


def _tallied(settings: LabelConfig, runs: Sequence[Path], tally: Tally) -> Iterator[Label]:
    for _, answers, found in _in_order(settings, runs):
        by_answer = {one.row.response_id: one.row for one in found}
        rows = [by_answer[answer] for answer in answers]
        tally.add(rows)
        yield from rows


def _join_stores(path: Path, runs: Sequence[Path]) -> tuple[StoreTotals, int]:
    with closing(CallStore(path)) as store:
        stores = [run / "calls.sqlite" for run in runs]
        twice = sum(store.absorb(one) for one in stores if one.is_file())
        return store.totals(), twice


COMMAND = Command(
    name="merge",
    help="join the runs of all shards, once nothing is missing and nothing stands twice",
    config=MergeConfig,
    run=run_merge,
    example="judge-pipeline merge labels-1 labels-2 labels-3 --output labels",
)
