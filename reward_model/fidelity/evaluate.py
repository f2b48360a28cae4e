"""`reward-model evaluate`: how faithful a reward model is to its judge, or how far it agrees with people.

In: a model (or a file it scored) and a label run, or prompts that people judged. Out: `fidelity.json`, `fidelity.md`,
`scored.jsonl` and `report.html`, and tables in the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import write_records, write_text
from judge_pipeline.common.run_dir import prepare_run
from judge_pipeline.statistics.baselines import Embed, all_baselines, minilm_embed
from judge_pipeline.statistics.bootstrap import DocumentBootstrap
from judge_pipeline.statistics.compare import Comparison
from judge_pipeline.statistics.table import REWARD, AnswerTable, Floats
from reward_model.data.contrasts import Pair as Contrast
from reward_model.data.splits import document_groups
from reward_model.fidelity.changed import changed_results, read_changed
from reward_model.fidelity.controls import WITHHELD, Controls, score_controls
from reward_model.fidelity.evaluate_config import EvaluateConfig
from reward_model.fidelity.fidelity import evaluate_scores, predictors
from reward_model.fidelity.free_baselines import (
    likelihood_baselines,
    likelihood_is_wanted,
    stacked_baselines,
    stacked_from_training,
)
from reward_model.fidelity.inputs import (
    Reference,
    drop_training_documents,
    keep_within_window,
    model_columns,
    read_reference,
    scored_columns,
    second_columns,
)
from reward_model.fidelity.remarks import changed_remarks
from reward_model.fidelity.report import fidelity_page, markdown_report, terminal_report
from reward_model.modeling.fidelity_card import update_card
from reward_model.modeling.model import MANIFEST, read_manifest
from reward_model.scoring.scorer import RewardModel
from reward_model.training.folds import FILES, FOLDER
from reward_model.training.guards import SCORING_KNOBS, explain_out_of_memory


@dataclass(frozen=True)
class Scored:
    """The answers of an evaluation and what scores them."""

    table: AnswerTable
    predicted: dict[str, Floats]
    controls: Controls


def _score(config: EvaluateConfig, reference: Reference) -> Scored:
    """The table, with lengths in the model's tokens where it is loaded, and the columns of model and controls."""
    if config.folds:
        return _folded(config.model / FOLDER, reference)
    if config.scores is not None:
        table = reference.table()
        notes = ["the controls are left out: --scores leaves no model to read with"]
        return Scored(
            table,
            scored_columns(config.scores, table),
            Controls(notes=notes if config.controls == "on" else []),
        )
    with explain_out_of_memory("scoring", SCORING_KNOBS):
        model = RewardModel.from_pretrained(
            config.model, shared_prefix=config.shared_prefix, readout=config.readout
        )
        keep_within_window(reference, model, config.overflow)
        table = reference.table(lambda prompt: len(model.render(prompt.context, prompt.question)), "tokens")
        predicted = model_columns(model, table, config.token_budget)
        on = config.controls == "on"
        return Scored(
            table,
            predicted,
            score_controls(model, table, config.token_budget, config.seed) if on else Controls(),
        )


def _folded(folder: Path, reference: Reference) -> Scored:
    """What `train --folds` kept: each answer's scores from a fit that read nothing of its document."""
    for name in FILES.values():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is not there", "train with --method probe --folds 5 first")
    table = reference.table()
    withheld = scored_columns(folder / FILES["withheld"], table)
    notes = [
        "every answer is scored by a fit that read nothing of its document (train --folds); its control is "
        "a probe of the same layer fitted to answers without documents"
    ]
    return Scored(
        table, scored_columns(folder / FILES["readout"], table), Controls({WITHHELD: withheld}, notes=notes)
    )


def remembered(embed: Embed) -> Embed:
    """An `Embed` that embeds each text once."""
    known: dict[str, Floats] = {}

    def run(texts: Sequence[str]) -> Floats:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, embed(new), strict=True))
        return np.stack([known[text] for text in texts])

    return run


class Baselines:
    """Computes the free baselines of any table of answers."""

    def __init__(self, config: EvaluateConfig, notes: list[str]) -> None:
        self._config = config
        self._embed = None if config.embedding_model == "none" else minilm_embed(config.embedding_model)
        if self._embed is not None and config.contrasts:  # the same documents again, and most of the answers
            self._embed = remembered(self._embed)
        self._manifest = None
        if config.likelihood != "off" and (config.model / MANIFEST).is_file():
            manifest = read_manifest(config.model)
            if likelihood_is_wanted(config.likelihood, manifest):
                self._manifest = manifest
            else:
                notes.append(
                    f"the base model's likelihood is left out: {manifest.base_model} is not here (--likelihood on)"
                )

    def of(self, table: AnswerTable) -> dict[str, Floats]:
        """Name → one score an answer (R,)."""
        config, found = self._config, all_baselines(table, self._embed, self._config.seed)
        if self._manifest is not None:
            with explain_out_of_memory("reading with the base model", SCORING_KNOBS):
                found |= likelihood_baselines(
                    table,
                    self._manifest,
                    AutoTokenizer.from_pretrained(config.model),
                    config.token_budget,
                    config.shared_prefix == "on",
                )
        return found


def _stack(
    config: EvaluateConfig,
    reference: Reference,
    scored: Scored,
    targets: dict[str, Floats],
    baselines: Baselines,
    columns: dict[str, Floats],
) -> dict[str, Floats]:
    """What all baselines make of each target: fitted to other labels where there are any, else out of fold."""
    table = scored.table
    if config.stack_labels is None:
        preferences = [] if reference.labels else table.preferences()
        return stacked_baselines(table, columns, targets, preferences, config.seed)
    other = read_reference(config.stack_labels, [])
    groups = document_groups([*other.prompts, *table.prompts])
    evaluated = set(groups[len(other.prompts) :])
    other.keep(
        prompt.id for prompt, name in zip(other.prompts, groups, strict=False) if name not in evaluated
    )
    if not other.prompts:
        raise UserError("--stack-labels: every document of these labels is evaluated")
    reference.notes.append(
        f"the stack of all baselines is fitted to {len(other.prompts)} prompts of {config.stack_labels}"
    )
    train = other.table()
    return stacked_from_training(table, columns, train, baselines.of(train), other.targets(train))


def _changed(
    config: EvaluateConfig, reference: Reference, contrasts: Sequence[Contrast], baselines: Baselines
) -> list[dict[str, Any]]:
    """A table for each dimension that answers of `--contrasts` were made worse in."""
    scored = _score(config, reference)
    found = predictors(scored.predicted, scored.controls.columns, baselines.of(scored.table))
    bootstrap = DocumentBootstrap(scored.table.document_P, config.bootstrap, config.seed)
    return changed_results(Comparison(scored.table, found, bootstrap), contrasts)


def write_scored(path: Path, table: AnswerTable, columns: dict[str, Floats]) -> None:
    """The prompts again, each response with the model's `scores` and `reward`."""
    rows = []
    for number, part in table.slices():
        prompt = table.prompts[number].model_copy(deep=True)
        for response, row in zip(prompt.responses, range(part.start, part.stop), strict=True):
            values = {name: float(column[row]) for name, column in columns.items()}
            response.reward = None if np.isnan(values.get(REWARD, np.nan)) else values[REWARD]
            response.scores = {
                # A model's raw output may leave 0–10 by a little; records do not.
                name: None if np.isnan(value) else float(np.clip(value, 0, 10))
                for name, value in values.items()
                if name != REWARD
            }
        rows.append(prompt)
    write_records(path, rows)


def run(config: EvaluateConfig) -> int:
    """Evaluate and write the files."""
    reference = read_reference(config.labels, config.prompts)
    changed = read_changed(config.contrasts) if config.contrasts else None
    if not config.folds:
        drop_training_documents(reference, config.model, config.labels, config.documents)
        if changed and config.contrasts:
            drop_training_documents(changed[0], config.model, config.contrasts, config.documents)
    files = (*reference.files, *(changed[0].files if changed else ()))
    prepare_run(config.output, config, "reward-model evaluate", config.existing, files)
    scored = _score(config, reference)
    table, predicted = scored.table, scored.predicted
    if config.scores is None:
        write_scored(config.output / "scored.jsonl", table, predicted)
    targets = reference.targets(table)
    preferences = [] if reference.labels else table.preferences()
    if not targets and not preferences:
        raise UserError(
            f"{config.labels} holds nothing to compare with: no labels, no `human` values, no `preferences`"
        )
    reference.notes += scored.controls.notes
    baselines = Baselines(config, reference.notes)
    columns = baselines.of(table)
    second = config.second_labels
    found = evaluate_scores(
        table,
        targets,
        predicted,
        preferences=preferences,
        ceilings={"judge, second run": second_columns(second, table)} if second else None,
        controls=scored.controls.columns,
        baselines=columns,
        stacked=_stack(config, reference, scored, targets, baselines, columns),
        labels=reference.labels,
        replicates=config.bootstrap,
        seed=config.seed,
        notes=reference.notes,
    )
    found["control_tokens"] = scored.controls.tokens
    if changed:
        found["changed"] = _changed(config, *changed, baselines)
        found["remarks"] += changed_remarks(found["changed"])
    write_text(config.output / "fidelity.json", json.dumps(found, indent=1, ensure_ascii=False))
    write_text(config.output / "fidelity.md", markdown_report(found))
    page = fidelity_page(found, targets, predicted, f"Fidelity of {config.model.name}")
    write_text(config.output / "report.html", page)
    if config.card:
        source = f"{found['prompts']} prompts over {found['documents']} documents of {config.labels.name}"
        update_card(config.model, markdown_report(found), source)
    print(terminal_report(found))
    print(
        f"\nwritten: {config.output / 'fidelity.json'}, fidelity.md, scored.jsonl and report.html beside it"
    )
    return 0
