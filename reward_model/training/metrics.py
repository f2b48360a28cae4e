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
from judge_pipeline.statistics.separation import TOGETHER, mean_correlation
from reward_model.training.losses import weighted_mean
from reward_model.training.objective import Objective

LOSS_COUNTS = 1e-3
"""Share of pairs that one unit of loss is worth when the best checkpoint is chosen."""


def held_out_metrics(
    rows: Sequence[Mapping[str, Any]], objective: Objective, dimensions: Sequence[str]
) -> dict[str, float]:
    """Loss of the run's last phase and, per dimension and for the reward, MAE, Spearman and pair accuracy.

    `rows` have `predictions` (N, D), `targets`, `confidence`, `winners` and `losers` (by place). A figure that
    the targets do not allow (no decided pair) is left out. Beside them `pair_accuracy`, the mean over outputs and
    reward, and how far outputs and targets are correlated.
    """
    batch, predictions_A_D = _join(rows)
    loss, parts = objective.loss(predictions_A_D, batch, progress=1.0)
    found = {"loss": float(loss)}
    if "preference_accuracy" in parts:
        accuracy = float(parts["preference_accuracy"])
        return with_choice(found | {"preference_accuracy": accuracy, "pair_accuracy": accuracy})
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
    found |= correlations(rows)
    accuracies = [value for name, value in found.items() if name.endswith("_pair_accuracy")]
    found["pair_accuracy"] = float(np.nanmean(accuracies)) if not np.isnan(accuracies).all() else math.nan
    return with_choice({name: value for name, value in found.items() if not math.isnan(value)})


def with_choice(found: dict[str, float]) -> dict[str, float]:
    """With the figure that the best checkpoint has most of: pairs in order, and the lower loss where those are equal."""
    if "pair_accuracy" in found:
        found["choice"] = found["pair_accuracy"] - LOSS_COUNTS * found["loss"]
    return found


def correlations(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Do outputs move together? `mean_correlation` within prompts, of outputs and of targets.

    Values are taken minus their prompt's mean, over answers with all targets; NaN where columns do not vary.
    """
    whole = [(row["predictions"].double().numpy(), row["targets"].double().numpy()) for row in rows]
    known = [~np.isnan(targets).any(axis=1) for _, targets in whole]
    sides = {}
    for place, side in enumerate(("output", "target")):
        values = [pair[place][there] for pair, there in zip(whole, known, strict=True) if there.any()]
        centred = np.concatenate([one - one.mean(axis=0) for one in values]) if values else np.empty((0, 1))
        found = mean_correlation(centred)
        sides[f"{side}_correlation"] = math.nan if found is None else found
    return sides


def moving_together(metrics: Mapping[str, float]) -> list[str]:
    """A sentence where held-out outputs move together and their targets do not; nothing where they do not."""
    outputs, targets = (metrics.get(f"eval_{side}_correlation") for side in ("output", "target"))
    if outputs is None or targets is None or outputs - targets <= TOGETHER:
        return []
    return [
        f"The outputs move together more than their targets do: mean correlation within held-out prompts "
        f"{outputs:.2f}, of the targets {targets:.2f}. They tell the dimensions apart less than the labels do."
    ]


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
