"""Everything that scores an answer without a label: what a reward model has to stand above.

In: a table of answers. Out: columns by name: lengths, overlap, embedding similarity (`statistics.baselines`), the base
model's own likelihood of the answer, what the document adds to that likelihood, and a ridge stack of them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from judge_pipeline.common.progress import Progress
from judge_pipeline.statistics.compare import PREFERENCES
from judge_pipeline.statistics.stack import fit_stack, graded_rows, out_of_fold, preferred_rows
from judge_pipeline.statistics.table import AnswerTable, Floats, Pair
from reward_model.modeling.likelihood import answer_log_probs, base_model_is_local, load_language_model
from reward_model.modeling.model import Manifest
from reward_model.modeling.prompt_format import PromptRenderer
from reward_model.modeling.stack import LOG_LENGTH
from reward_model.options import Likelihood

STACK = "ridge of all baselines"
NOT_STACKED = ("constant", "random, one draw", "shorter answer")
"""Baselines that a stack can learn nothing more from."""


def likelihood_is_wanted(choice: Likelihood, manifest: Manifest) -> bool:
    """Whether to read with the base model; "auto" does where it needs no download."""
    return choice == "on" or (choice == "auto" and base_model_is_local(manifest.base_model))


def likelihood_baselines(
    table: AnswerTable,
    manifest: Manifest,
    tokenizer: object,
    token_budget: int,
    shared: bool = True,
) -> dict[str, Floats]:
    """The base model's log-probability of each answer: sum, mean, and both minus those without the document.

    Answers over the window get NaN.

    Raises:
        UserError: the base model cannot be loaded.
    """
    model = load_language_model(manifest, shared=shared)
    renderer = PromptRenderer(tokenizer, manifest.prompt_format)
    found = np.full((2, 2, table.rows), np.nan)  # document or none, sum or mean
    with Progress(len(table.prompts), "likelihood", "prompts") as progress:
        for number, rows in table.slices():
            prompt = table.prompts[number]
            texts = [item.text for item in prompt.responses]
            for side, context in enumerate((prompt.context, "")):
                encoded = renderer.encode(context, prompt.question, texts)
                fits = np.array(encoded.fitting(manifest.max_length), dtype=bool)
                kept = encoded.keep(fits)
                if kept is not None:
                    values = answer_log_probs(model, [kept], token_budget=token_budget, shared=shared)
                    found[side][:, np.arange(rows.start, rows.stop)[fits]] = np.stack(values)
            progress.update()
    given, alone = found
    return {
        "log-prob., mean": given[1],
        "log-prob., sum": given[0],
        "log-prob. gain, mean": given[1] - alone[1],
        "log-prob. gain, sum": given[0] - alone[0],
    }


def stack_features(baselines: Mapping[str, Floats]) -> dict[str, Floats]:
    """The columns that a stack is fitted on."""
    kept = {name: column for name, column in baselines.items() if name not in NOT_STACKED}
    if "longer answer" in kept:
        kept[LOG_LENGTH] = np.log1p(kept["longer answer"])
    return kept


def stacked_baselines(
    table: AnswerTable,
    baselines: Mapping[str, Floats],
    targets: Mapping[str, Floats],
    preferences: Sequence[Pair] = (),
    seed: int = 0,
) -> dict[str, Floats]:
    """Target → the stack's scores (R,), each answer by weights fitted to other documents of the table."""
    features = stack_features(baselines)
    rows = {name: graded_rows(table, features, column) for name, column in targets.items()}
    if preferences:
        rows[PREFERENCES] = preferred_rows(table, features, preferences)
    found = {name: out_of_fold(table, features, own, seed=seed) for name, own in rows.items()}
    return {name: column for name, column in found.items() if column is not None}


def stacked_from_training(
    table: AnswerTable,
    baselines: Mapping[str, Floats],
    train_table: AnswerTable,
    train_baselines: Mapping[str, Floats],
    train_targets: Mapping[str, Floats],
) -> dict[str, Floats]:
    """The same by weights fitted to training labels: what the model had, the baselines had too."""
    features, train_features = stack_features(baselines), stack_features(train_baselines)
    return {
        name: fit_stack(graded_rows(train_table, train_features, column), list(train_features)).apply(
            features
        )
        for name, column in train_targets.items()
    }
