"""`--stack`: what free baselines add to the probe, learnt on training documents, and what it brings on held-out ones.

In: a fitted probe, its features, training examples. Out: a `StackSpec` for the manifest, and figures of both kinds.
The probe's outputs that the stack is fitted on are out of fold: an in-sample output would look better than it is, and
the baselines would get too little weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from judge_pipeline.statistics.agreement import prompt_metrics
from judge_pipeline.statistics.bootstrap import DocumentBootstrap
from judge_pipeline.statistics.render import interval, markdown
from judge_pipeline.statistics.table import AnswerTable, Floats, build_table
from reward_model.data.batches import EncodedExample
from reward_model.data.examples import Example
from reward_model.data.splits import document_groups
from reward_model.modeling.ridge import fold_predictions
from reward_model.modeling.stack import baseline_columns, fit_spec, one_prompt, stack_embedding
from reward_model.modeling.stack_spec import StackSpec, describe
from reward_model.training.probe import Probe, Training

Figures = dict[str, Any]


def answers_of(encoded: Sequence[EncodedExample], examples: Sequence[Example]) -> AnswerTable:
    """The texts behind encoded prompts, laid out in their order."""
    by_id = dict(zip((item.prompt_id for item in examples), examples, strict=True))
    names = dict(zip(by_id, document_groups(list(examples)), strict=True))
    rows = [by_id[item.prompt_id] for item in encoded]
    return build_table(
        [
            one_prompt(item.prompt_id, names[item.prompt_id], item.context, item.query, item.responses)
            for item in rows
        ]
    )


def out_of_fold_outputs(training: Training, probe: Probe) -> Floats:
    """Points (A, D) of the training answers by fits of the readout that saw no answer of their document."""
    features, rows = training.features(probe.readout.spec), training.rows
    emphasis = probe.readout.spec.emphasis(features)
    found = np.full((len(features), rows.targets_R_D.shape[1]), np.nan)
    level, answer = rows.level_R.numpy(), rows.first_R.numpy()
    for column, penalty in enumerate(probe.choice.penalties):
        points_R = fold_predictions(rows, features, [penalty], emphasis)[0, :, column].numpy()
        found[answer[level], column] = points_R[level]
    return found


def fit_stack_spec(
    training: Training,
    probe: Probe,
    encoded: Sequence[EncodedExample],
    examples: Sequence[Example],
    dimensions: Sequence[str],
) -> StackSpec:
    """The stack of a probe, fitted to the labelled training answers."""
    table = answers_of(encoded, examples)
    targets = np.concatenate([item.targets_N_D for item in encoded]).astype(float)
    outputs = out_of_fold_outputs(training, probe)[: table.rows]
    return fit_spec(
        table,
        dict(zip(dimensions, outputs.T, strict=True)),
        dict(zip(dimensions, targets.T, strict=True)),
        stack_embedding(),
        training.seed,
    )


def held_out_stack(
    spec: StackSpec,
    points_A_D: torch.Tensor,
    encoded: Sequence[EncodedExample],
    examples: Sequence[Example],
    dimensions: Sequence[str],
) -> Figures:
    """Output → figures on held-out documents with and without the baselines, and their paired difference."""
    table = answers_of(encoded, examples)
    columns = baseline_columns(table, spec.embedding_model)
    alone = points_A_D.double().numpy()
    stacked = spec.apply(alone, np.stack([columns[name] for name in spec.baselines], axis=1), dimensions)
    targets = np.concatenate([item.targets_N_D for item in encoded]).astype(float)
    bootstrap = DocumentBootstrap(table.document_P)
    found = {}
    for place, name in enumerate(dimensions):
        first, second = (
            prompt_metrics(table, targets[:, place], points[:, place].astype(float))
            for points in (stacked, alone)
        )
        found[name] = {
            metric: {
                "with": bootstrap.ratio(first[metric]).as_json(),
                "without": bootstrap.ratio(second[metric]).as_json(),
                "difference": bootstrap.difference(first[metric], second[metric]).as_json(),
            }
            for metric in ("spearman", "pairs")
        }
    return found


def stack_section(report: Figures) -> str:
    """What the card says of a stack: what it adds, and held-out figures with and without."""
    if "stack" not in report:
        return ""
    text = describe(StackSpec.model_validate(report["stack"]))
    figures = report.get("stack_held_out")
    if not figures or not report["stack"]["outputs"]:
        return text
    rows = [
        [
            name,
            *(interval(found["spearman"][side], 2) for side in ("without", "with")),
            interval(found["spearman"]["difference"], 2, "+"),
        ]
        for name, found in figures.items()
    ]
    heads = ["", "readout alone", "with baselines", "difference, paired"]
    return f"{text} Within-prompt Spearman on held-out documents:\n\n{markdown(heads, rows)}"
