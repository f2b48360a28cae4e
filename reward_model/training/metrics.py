"""Numbers that say how well held-out answers are scored: the few that training watches and the model card shows.

In: predictions and targets in points, prompt by prompt. Out: a flat dictionary. `fidelity` has the full set with
confidence intervals and baselines; here is what is computed many times a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from judge_pipeline.statistics.agreement import pair_counts, within_correlation
from reward_model.training.losses import weighted_mean
from reward_model.training.objective import ROUNDING, Objective

Array = NDArray[Any]


def _known(predictions: Sequence[Array], targets: Sequence[Array]) -> Iterator[tuple[Array, Array]]:
    """(targets, predictions) of each prompt, where there is a target."""
    for predicted, target in zip(predictions, targets, strict=True):
        there = ~np.isnan(target)
        yield target[there], predicted[there]


def within_prompt_spearman(predictions: Sequence[Array], targets: Sequence[Array]) -> float:
    """Mean over prompts of Spearman's ρ between their answers' predictions (N,) and targets (N,).

    A prompt counts when at least two of its answers have different targets; NaN when none does. Constant
    predictions order nothing and count as 0.
    """
    values = [
        within_correlation(predicted, target, "spearman")
        for target, predicted in _known(predictions, targets)
        if len(target) > 1 and np.ptp(target) > 0
    ]
    return float(np.mean(values)) if values else math.nan


def pair_accuracy(predictions: Sequence[Array], targets: Sequence[Array]) -> float:
    """Share of pairs of one prompt whose targets differ that the predictions put in the same order."""
    counts = [pair_counts(target, predicted, ROUNDING) for target, predicted in _known(predictions, targets)]
    right, total = (sum(column) for column in zip(*counts, strict=True)) if counts else (0.0, 0.0)
    return right / total if total else math.nan


def mean_absolute_error(predictions: Sequence[Array], targets: Sequence[Array]) -> float:
    """Mean distance in points over the targets that are there; NaN when there are none."""
    errors = np.concatenate([np.abs(p - t) for p, t in zip(predictions, targets, strict=True)])
    errors = errors[~np.isnan(errors)]
    return float(errors.mean()) if len(errors) else math.nan


def held_out_metrics(
    rows: Sequence[Mapping[str, Any]], objective: Objective, dimensions: Sequence[str]
) -> dict[str, float]:
    """Loss of the run's last phase and, per dimension and for the reward, MAE, Spearman and pair accuracy.

    `rows` have `predictions` (N, D), `targets`, `confidence`, `winners` and `losers` (by place). A figure that
    the targets do not allow (no decided pair) is left out.
    """
    batch, predictions_A_D = _join(rows)
    loss, parts = objective.loss(predictions_A_D, batch, progress=1.0)
    found = {"loss": float(loss)}
    if "preference_accuracy" in parts:
        return found | {"preference_accuracy": float(parts["preference_accuracy"])}
    weights = objective.standardizer.weights_D
    for column, name in enumerate([*dimensions, "reward"]):
        predicted, target = [], []
        for row in rows:
            pair = (row["predictions"].float(), row["targets"].float())
            if name == "reward" and column == len(dimensions):
                columns = [weighted_mean(scores, weights) for scores in pair]
            else:
                columns = [scores[:, column] for scores in pair]
            predicted.append(columns[0].numpy())
            target.append(columns[1].numpy())
        found[f"{name}_mae"] = mean_absolute_error(predicted, target)
        found[f"{name}_spearman"] = within_prompt_spearman(predicted, target)
        found[f"{name}_pair_accuracy"] = pair_accuracy(predicted, target)
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _join(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], torch.Tensor]:
    """All prompts as one batch, as `Objective.loss` takes it."""
    starts = np.cumsum([0] + [len(row["targets"]) for row in rows])[:-1].tolist()
    pairs = list(zip(rows, starts, strict=True))
    batch = {
        "targets_A_D": torch.cat([row["targets"] for row in rows]),
        "confidence_A_D": torch.cat([row["confidence"] for row in rows]),
        "groups_A": torch.cat([torch.full((len(row["targets"]),), i) for i, row in enumerate(rows)]),
        "winners_P": torch.cat([row["winners"] + start for row, start in pairs]),
        "losers_P": torch.cat([row["losers"] + start for row, start in pairs]),
    }
    return batch, torch.cat([row["predictions"] for row in rows]).float()
