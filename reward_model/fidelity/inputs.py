"""What `reward-model evaluate` compares: targets from labels or people, scores from a model or a scored file.

In: paths. Out: an answer table with target and model columns. A model is not measured on documents it was trained on:
its manifest lists them, whatever has become of the label file since. For a model without that list, its run.yaml tells:
when it names the same labels, only the documents that training held out are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.progress import Progress
from judge_pipeline.common.record_files import read_labels, read_prompts
from judge_pipeline.common.records import Label, Prompt
from judge_pipeline.common.run_dir import file_digest, read_run_yaml
from judge_pipeline.common.window import over_window
from judge_pipeline.evaluation.inputs import holds_labels, labelled_prompts, read_table
from judge_pipeline.statistics.table import (
    REWARD,
    AnswerTable,
    Floats,
    build_table,
    score_columns,
    score_names,
)
from reward_model.data.examples import load_examples, usable
from reward_model.data.splits import document_digests, split_by_document
from reward_model.modeling.model import MANIFEST, read_manifest
from reward_model.options import Documents, Overflow
from reward_model.scoring.scorer import RewardModel


@dataclass
class Reference:
    """Prompts, and what their answers are worth by the judge or by people."""

    prompts: list[Prompt]
    groups: dict[str, str]
    """Prompt id → data set or task."""
    labels: dict[tuple[str, str], Label] = field(default_factory=dict)
    """Empty when people's values are the targets."""
    files: tuple[Path, ...] = ()
    notes: list[str] = field(default_factory=list)

    def keep(self, ids: Iterable[str]) -> None:
        """Leave out all prompts but these."""
        wanted = set(ids)
        self.prompts = [prompt for prompt in self.prompts if prompt.id in wanted]

    def table(self, length: Any = None, unit: str = "characters") -> AnswerTable:
        """The answers laid out."""
        measure = length or (lambda prompt: len(prompt.context))
        return build_table(self.prompts, lambda prompt: self.groups[prompt.id], measure, unit)

    def targets(self, table: AnswerTable) -> dict[str, Floats]:
        """Name → points (R,), NaN where there is none."""
        if not self.labels:
            return score_columns(table, score_names(table, "human"), "human")
        names = dict.fromkeys(name for label in self.labels.values() for name in label.scores)
        columns = {name: table.from_labels(self.labels, name) for name in [*names, REWARD]}
        return {name: column for name, column in columns.items() if np.isfinite(column).any()}


def read_reference(labels: Path, prompt_files: Sequence[Path]) -> Reference:
    """Read a label run with its prompts, or prompts that people judged.

    Raises:
        UserError, DataError: nothing to compare with.
    """
    if not holds_labels(labels):
        files = [labels, *prompt_files]
        table = read_table(files)
        return Reference(table.prompts, _groups(table), files=tuple(files))
    rows = {(row.prompt_id, row.response_id): row for row in read_labels(labels)}
    prompts = list(prompt_files) or labelled_prompts(labels)
    table = read_table(prompts)
    labelled = {prompt_id for prompt_id, _ in rows}
    unlabelled = sum(prompt.id not in labelled for prompt in table.prompts)
    notes = [f"{unlabelled} prompts have no labels and are left out"] if unlabelled else []
    missing = sum(label.status != "labelled" for label in rows.values())
    if missing:
        notes.append(f"{missing} labels are partial or failed; each counts where it has a score")
    file = labels / "labels.jsonl" if labels.is_dir() else labels
    found = Reference(table.prompts, _groups(table), rows, (file, *prompts), notes)
    found.keep(labelled)
    if not found.prompts:
        raise UserError(f"{labels} labels none of the prompts in {', '.join(map(str, prompts))}")
    return found


def _groups(table: AnswerTable) -> dict[str, str]:
    return {prompt.id: group for prompt, group in zip(table.prompts, table.group_P, strict=True)}


def second_columns(labels: Path, table: AnswerTable) -> dict[str, Floats]:
    """Columns of a second label run over the same answers."""
    rows = {(row.prompt_id, row.response_id): row for row in read_labels(labels)}
    names = dict.fromkeys(name for label in rows.values() for name in label.scores)
    columns = {name: table.from_labels(rows, name) for name in [*names, REWARD]}
    found = {name: column for name, column in columns.items() if np.isfinite(column).any()}
    if not found:
        raise UserError(f"--second-labels: {labels} labels none of these answers")
    return found


def drop_training_documents(reference: Reference, model: Path, labels: Path, documents: Documents) -> None:
    """Keep only documents that the model was not trained on.

    Raises:
        UserError: no document was held out.
    """
    if documents == "all":
        return
    trained = trained_documents(model)
    if trained is not None:
        fresh = [prompt.id for prompt in reference.prompts if trained.isdisjoint(document_digests([prompt]))]
        if not fresh:
            raise UserError(
                f"{model} was trained on every document of {labels}: there is none it has not read",
                "evaluate on other documents, or say --documents all to measure what it remembers",
            )
        _leave_out(reference, fresh, "the model was trained on some of these documents")
    elif (model / "run.yaml").is_file():
        _drop_by_run_file(reference, model, labels)


def trained_documents(model: Path) -> set[str] | None:
    """Digests of the ids and texts of the documents a model was trained on; None where its manifest lists none."""
    listed = read_manifest(model).trained_documents if (model / MANIFEST).is_file() else []
    return set(listed) or None


def _leave_out(reference: Reference, kept: Iterable[str], reason: str) -> None:
    before, documents = len(reference.prompts), {prompt.document_id for prompt in reference.prompts}
    reference.keep(kept)
    gone = documents - {prompt.document_id for prompt in reference.prompts}
    if before > len(reference.prompts):
        reference.notes.append(
            f"{reason}: {before - len(reference.prompts)} prompts over its {len(gone)} training documents are left out"
        )


def _drop_by_run_file(reference: Reference, model: Path, labels: Path) -> None:
    """The documents that training held out, by the settings of its split, when it was trained on these very labels."""
    run = read_run_yaml(model)
    file = labels / "labels.jsonl" if labels.is_dir() else labels
    if file_digest(file) not in (run.get("inputs") or {}).values():
        return
    config: Mapping[str, Any] = run.get("config") or {}
    named = config.get("prompts") or config.get("labels")
    if config.get("eval_labels") and file_digest(file) != _digest_of(str(config.get("labels"))):
        return  # these are the labels that training held out as a whole
    fraction, seed = float(config.get("eval_fraction") or 0.0), int(config.get("seed") or 0)
    if config.get("eval_labels") or fraction == 0:
        raise UserError(
            f"{model} was trained on all of {labels}: there is no document it has not read",
            "evaluate on other labels, or say --documents all to measure what it remembers",
        )
    prompts = Path(str(config["prompts"])) if config.get("prompts") else None
    examples = list(
        usable(load_examples(labels, prompts=prompts, targets=config.get("targets") or "auto").items)
    )
    _, held_out = split_by_document(examples, fraction, seed)
    _leave_out(reference, (item.prompt_id for item in held_out), "the model was trained on these labels")
    if not reference.prompts:
        raise UserError(f"none of the prompts belongs to a document that training on {named} held out")


def _digest_of(path: str) -> str | None:
    file = Path(path)
    file = file / "labels.jsonl" if file.is_dir() else file
    return file_digest(file) if file.is_file() else None


def scored_columns(path: Path, table: AnswerTable) -> dict[str, Floats]:
    """Columns of a file that `reward-model score` wrote, matched by prompt and response id."""
    other = build_table(list(read_prompts(path, need_responses=True)))
    found = score_columns(other, score_names(other, "scores"))
    columns = {name: np.full(table.rows, np.nan) for name in found}
    shared = [(row, other.row_of[key]) for key, row in table.row_of.items() if key in other.row_of]
    if not found or not shared:
        raise UserError(f"--scores: {path} holds no score of any of these answers")
    for name, column in found.items():
        for row, source in shared:
            columns[name][row] = column[source]
    return columns


def model_columns(
    model: RewardModel, table: AnswerTable, token_budget: int, contexts: Sequence[str] | None = None
) -> dict[str, Floats]:
    """The model's points for every answer, by dimension, and their reward.

    `contexts` replaces the prompts' documents; answers that do not fit the window behind them get NaN.
    """
    scores = np.full((table.rows, len(model.dimensions)), np.nan)
    with Progress(len(table.prompts), "scoring", "prompts") as progress:
        for number, rows in table.slices():
            prompt = table.prompts[number]
            context = prompt.context if contexts is None else contexts[number]
            encoded = model.encode(context, prompt.question, [item.text for item in prompt.responses])
            fits = np.ones(rows.stop - rows.start, dtype=bool)
            if contexts is not None:
                fits = np.array(encoded.fitting(model.max_length))
            kept = encoded.keep(fits)
            if kept is not None:
                scores[np.arange(rows.start, rows.stop)[fits]] = next(
                    model.score_encoded([kept], token_budget)
                )
            progress.update()
    columns = {name: scores[:, position] for position, name in enumerate(model.dimensions)}
    return {**columns, REWARD: np.asarray(model.reward(scores), dtype=float)}


def keep_within_window(reference: Reference, model: RewardModel, overflow: Overflow) -> None:
    """Leave out prompts over the model's window and say so.

    Raises:
        UserError: some do not fit and `overflow` is "error", or none does.
    """
    prompts = reference.prompts
    lengths = (
        (
            prompt.id,
            model.encode(
                prompt.context, prompt.question, [item.text for item in prompt.responses]
            ).shape.longest,
        )
        for prompt in prompts
    )
    over = over_window(lengths, model.max_length, overflow)
    if over:
        reference.notes.append(
            f"{len(over)} prompts are longer than the window ({model.max_length} tokens), left out"
        )
        reference.keep(prompt.id for index, prompt in enumerate(prompts) if index not in over)
