"""What `judge-pipeline evaluate` compares: scores from a label run or a scored file, people's values from prompts.

In: paths. Out: an answer table, the scores' columns, and where everything came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import labels_by_answer, read_prompts, read_rows
from judge_pipeline.common.records import Label, Prompt
from judge_pipeline.common.run_dir import read_run_yaml
from judge_pipeline.statistics.table import (
    REWARD,
    AnswerTable,
    Floats,
    build_table,
    score_columns,
    score_names,
)


@dataclass
class ScoredAnswers:
    """Answers, their scores, and what people said of them."""

    table: AnswerTable
    columns: dict[str, Floats]
    """Scores to be measured, by dimension, and their reward; empty for a file that holds people's values only."""
    labels: dict[tuple[str, str], Label] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What the reader of the report should know about the inputs."""

    @property
    def dimensions(self) -> list[str]:
        """The scored dimensions, without the reward."""
        return [name for name in self.columns if name != REWARD]


def holds_labels(path: Path) -> bool:
    """Whether a path is a label run or a labels file (rows with a `prompt_id`), not a file of prompts."""
    if path.is_dir():
        return True
    _, row = next(iter(read_rows(path)), (0, {}))
    return "prompt_id" in row


def group_name(prompt: Prompt, path: Path) -> str:
    """Data set or task of a prompt: its `task` or `dataset` field, otherwise the file's name."""
    extra = prompt.model_extra or {}
    return str(extra.get("task") or extra.get("dataset") or path.name.split(".")[0])


def read_scored(scored: Path, prompt_files: Sequence[Path]) -> ScoredAnswers:
    """Read scores and prompts. Prompts default to the file of scores itself, or to those the label run read."""
    if holds_labels(scored):
        return read_onto(read_table(prompt_files or labelled_prompts(scored)), scored)
    table = read_table(prompt_files or [scored])
    if not prompt_files:
        return ScoredAnswers(table, score_columns(table, score_names(table, "scores")))
    return read_onto(table, scored)


def read_onto(table: AnswerTable, scored: Path) -> ScoredAnswers:
    """Scores of a label run, a labels file or scored prompts on the answers of a table."""
    if not holds_labels(scored):
        return _scores_onto(table, scored)
    labels = labels_by_answer(scored)
    return ScoredAnswers(table, _label_columns(table, labels, scored), labels, _coverage(table, labels))


def read_table(files: Sequence[Path]) -> AnswerTable:
    """All prompts of some files as one table, grouped by data set."""
    prompts: list[Prompt] = []
    groups: dict[str, str] = {}
    for path in files:
        for prompt in read_prompts(path, need_responses=True):
            if prompt.id in groups:
                raise UserError(
                    f"{path}: prompt id '{prompt.id}' stands in another of the files as well",
                    "evaluate such files one by one",
                )
            groups[prompt.id] = group_name(prompt, path)
            prompts.append(prompt)
    return build_table(prompts, group=lambda prompt: groups[prompt.id])


def labelled_prompts(labels: Path) -> list[Path]:
    """The prompts file that a label run read, from its run.yaml."""
    folder = labels if labels.is_dir() else labels.parent
    if (folder / "run.yaml").is_file():
        named = (read_run_yaml(folder).get("config") or {}).get("prompts")
        if isinstance(named, str) and Path(named).is_file():
            return [Path(named)]
    raise UserError(
        f"{labels} does not say which prompts it labels, or they are no longer there",
        "name them: --prompts FILE",
    )


def _label_columns(table: AnswerTable, labels: dict[tuple[str, str], Label], path: Path) -> dict[str, Floats]:
    names = list(dict.fromkeys(name for label in labels.values() for name in label.scores))
    columns = {name: table.from_labels(labels, name) for name in [*names, REWARD]}
    columns = {name: column for name, column in columns.items() if np.isfinite(column).any()}
    if not columns:
        raise UserError(f"{path} holds no score of any answer in the prompts", "are they the same prompts?")
    return columns


def _coverage(table: AnswerTable, labels: dict[tuple[str, str], Label]) -> list[str]:
    missing, extra = len(table.row_of.keys() - labels.keys()), len(labels.keys() - table.row_of.keys())
    partial = sum(label.status != "labelled" for label in labels.values())
    notes = {
        f"{missing} of {table.rows} answers have no label and are left out": missing,
        f"{extra} labels belong to answers that the prompts do not hold; they are left out": extra,
        f"{partial} labels are partial or failed; each counts where it has a score": partial,
    }
    return [note for note, count in notes.items() if count]


def _scores_onto(table: AnswerTable, scored: Path) -> ScoredAnswers:
    """Scores of one file on the answers of others, matched by prompt and response id."""
    other = build_table(list(read_prompts(scored, need_responses=True)))
    found = score_columns(other, score_names(other, "scores"))
    source_R = np.array([other.row_of.get(key, -1) for key in table.row_of])
    missing = int((source_R < 0).sum())
    if missing == table.rows:
        raise UserError(f"{scored} and the prompts have no answer in common (prompt id and response id)")
    columns = {name: np.where(source_R < 0, np.nan, column[source_R]) for name, column in found.items()}
    notes = [f"{missing} of {table.rows} answers have no score and are left out"] if missing else []
    return ScoredAnswers(table, columns, notes=notes)
