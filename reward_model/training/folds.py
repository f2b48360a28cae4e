"""A probe's figures by folds over documents: every answer is scored by a fit that read nothing of its document.

Reading is what costs; fitting again for each fold is seconds. So where labels are few, no document need be held out of
the model itself: layer, pooling, view, penalties and separation are chosen anew on the other folds, and what the model
is worth is known on every document. Written to `DIR/folds` as scored prompts, by the readout and by a probe fitted to
answers without documents: what `reward-model evaluate --folds` reads.

Shape suffixes: A answers, R rows, P prompts, D outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import write_records
from judge_pipeline.common.records import Prompt, Response
from reward_model.data.batches import EncodedExample
from reward_model.data.examples import Example
from reward_model.modeling.readout import View
from reward_model.options import Likelihood
from reward_model.training.losses import weighted_mean
from reward_model.training.probe import (
    Training,
    fit_probe,
    fold_numbers,
    withheld_probe,
)
from reward_model.training.separate import Strength

Tensor = torch.Tensor
FOLDER = "folds"
FILES = {"readout": "scored.jsonl", "withheld": "withheld.jsonl"}


def fold_points(
    training: Training,
    folds: int,
    say: Callable[[str], None],
    views: Sequence[View],
    strength: Strength,
    log_probs: Likelihood = "auto",
) -> dict[str, Tensor]:
    """Points (A, D) fp32 of all answers of the labelled prompts: by readout, plain head, and without documents.

    Args:
        training: what may be learnt from; prompts beyond the labelled ones are left aside.
        folds: how many; no more than there are documents.
        say: takes remarks for the user.
        views: to choose from.
        strength: see `separate`.
        log_probs: see `choose_readout`.

    Raises:
        UserError: one document alone.
    """
    labelled = replace(training, documents=training.documents[: training.labelled])
    fold_P = fold_numbers(labelled.documents, training.seed, folds)
    if len(fold_P.unique()) < 2:
        raise UserError("--folds needs two documents or more", "label answers over more documents")
    counts = torch.tensor([len(item.answers) for item in training.store.prompts[: training.labelled]])
    fold_A = torch.repeat_interleave(fold_P, counts)
    found: dict[str, Tensor] = {}
    for fold in fold_P.unique().tolist():
        others = without_fold(labelled, fold_A, fold)
        for name, points in _points(others, say, views, strength, log_probs).items():
            empty = torch.full_like(points, torch.nan, dtype=torch.float32)
            found.setdefault(name, empty)[fold_A == fold] = points[fold_A == fold].float()
        say(f"fold {fold + 1} of {len(fold_P.unique())} is fitted and scored")
    return found


def without_fold(training: Training, fold_A: Tensor, fold: int) -> Training:
    """What is left to learn from when a fold's documents are held out; a pair goes when either of its sides does."""
    rows, held_A = training.rows, fold_A == fold
    beside = torch.where(rows.level_R, rows.first_R, rows.second_R)
    kept = rows.keep(~held_A[rows.first_R] & ~held_A[beside])
    return replace(training, rows=replace(kept, fold_R=fold_A[kept.first_R]), taught_A=~held_A)


def _points(
    training: Training,
    say: Callable[[str], None],
    views: Sequence[View],
    strength: Strength,
    log_probs: Likelihood,
) -> dict[str, Tensor]:
    probe = fit_probe(training, say, views, strength, log_probs)
    spec = probe.readout.spec
    document, withheld = training.states(spec, training.labelled)
    final = training.final_states(training.labelled)
    return {
        "readout": probe.readout.apply(document, withheld),
        "plain": final.double() @ probe.head.folded().T,
        "withheld": withheld_probe(training, spec)(withheld),
    }


def write_folds(
    folder: Path,
    items: Sequence[EncodedExample],
    examples: Sequence[Example],
    points: dict[str, Tensor],
    dimensions: Sequence[str],
    weights_D: Tensor,
) -> None:
    """Scored prompts, as `reward-model score` writes them, for `readout` and `withheld`."""
    by_id = {example.prompt_id: example for example in examples}
    counts = [len(item.answers) for item in items]
    folder.mkdir(parents=True, exist_ok=True)
    for scorer, name in FILES.items():
        parts = points[scorer].split(counts)
        rows = [
            scored_prompt(by_id[item.prompt_id], part, dimensions, weights_D)
            for item, part in zip(items, parts, strict=True)
        ]
        write_records(folder / name, rows)


def scored_prompt(
    example: Example, points_N_D: Tensor, dimensions: Sequence[str], weights_D: Tensor
) -> Prompt:
    """A prompt record whose answers carry scores within 0–10, and the reward of the points as they are."""
    responses = [
        Response(
            id=name,
            text=text,
            scores=dict(zip(dimensions, points.clamp(0, 10).tolist(), strict=True)),
            reward=float(reward),
        )
        for name, text, points, reward in zip(
            example.response_ids,
            example.responses,
            points_N_D,
            weighted_mean(points_N_D, weights_D),
            strict=True,
        )
    ]
    return Prompt(
        id=example.prompt_id,
        document_id=example.document_id,
        context=example.context,
        query=example.query,
        responses=responses,
    )
