"""`reward-model evaluate`: how faithful a reward model is to its judge, or how far it agrees with people.

In: a model (or a file it scored) and a label run, or prompts that people judged. Out: `fidelity.json`, `fidelity.md`,
`scored.jsonl` and `report.html`, and tables in the terminal.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import write_records, write_text
from judge_pipeline.common.run_dir import prepare_run
from judge_pipeline.statistics.baselines import all_baselines, minilm_embed
from judge_pipeline.statistics.table import REWARD, AnswerTable, Floats
from reward_model.fidelity.evaluate_config import EvaluateConfig
from reward_model.fidelity.fidelity import evaluate_scores
from reward_model.fidelity.inputs import (
    Reference,
    drop_training_documents,
    fit_window,
    model_columns,
    read_reference,
    scored_columns,
    second_columns,
)
from reward_model.fidelity.report import fidelity_page, markdown_report, terminal_report
from reward_model.modeling.fidelity_card import update_card
from reward_model.scoring.scorer import RewardModel
from reward_model.training.guards import SCORING_KNOBS, explain_out_of_memory


def _score(config: EvaluateConfig, reference: Reference) -> tuple[AnswerTable, dict[str, Floats]]:
    """The table, with lengths in the model's tokens where it is loaded, and the model's columns."""
    if config.scores is not None:
        table = reference.table()
        return table, scored_columns(config.scores, table)
    with explain_out_of_memory("scoring", SCORING_KNOBS):
        model = RewardModel.from_pretrained(config.model, shared_prefix=config.shared_prefix)
        fit_window(reference, model, config.overflow)
        table = reference.table(lambda prompt: len(model.render(prompt.context, prompt.query)), "tokens")
        return table, model_columns(model, table, config.token_budget)


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
    drop_training_documents(reference, config.model, config.labels, config.documents)
    prepare_run(config.output, config, "reward-model evaluate", config.existing, reference.files)
    table, predicted = _score(config, reference)
    if config.scores is None:
        write_scored(config.output / "scored.jsonl", table, predicted)
    targets = reference.targets(table)
    preferences = [] if reference.labels else table.preferences()
    if not targets and not preferences:
        raise UserError(
            f"{config.labels} holds nothing to compare with: no labels, no `human` values, no `preferences`"
        )
    embed = None if config.embedding_model == "none" else minilm_embed(config.embedding_model)
    second = config.second_labels
    found = evaluate_scores(
        table,
        targets,
        predicted,
        preferences=preferences,
        ceilings={"judge, second run": second_columns(second, table)} if second else None,
        baselines=all_baselines(table, embed, config.seed),
        labels=reference.labels,
        replicates=config.bootstrap,
        seed=config.seed,
        notes=reference.notes,
    )
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
