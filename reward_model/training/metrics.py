"""Numbers that say how well held-out answers are scored: the few that training watches and the model card shows.

In: predictions and targets in points, prompt by prompt. Out: a flat dictionary. `fidelity` has the full set with
confidence intervals and baselines; here is what is computed many times a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from judge_pipeline.statistics.agreement import (
    mean_distance,
    mean_spearman,
    share_of_pairs,
)
from reward_model.training.losses import weighted_mean
from reward_model.training.objective import Objective


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
        found[f"{name}_mae"] = mean_distance(predicted, target)
        found[f"{name}_spearman"] = mean_spearman(predicted, target)
        found[f"{name}_pair_accuracy"] = share_of_pairs(predicted, target)
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
