"""What training minimises: which losses, in which phase of the run, on which scale.

In: predictions in points and a batch's targets (`batches.collate`). Out: a scalar loss and metrics. The scale
(`Standardizer`) is used here and nowhere else: the model's own outputs are points 0–10 all along, so there is
nothing to undo when it is saved.

Phases: `sequence` learns the scores first (regression) and then their order (pairwise), as
HelpSteer2-Preference (arXiv 2410.01257, section 4) found best. Deviation: its second phase keeps a small share
of the regression (`anchor`), because a pairwise loss alone lets all scores of a prompt drift together, and what
is served must stay in points.

`level+order`, the default for scores, has both from the first step on, and its regression in two parts: a prompt's mean,
and what its answers differ by, each with a weight. Most of a regression's gradient is about the mean, which says nothing
of which answer is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reward_model.options import LossName
from reward_model.training.contrast_loss import contrast_loss, count_contrasts
from reward_model.training.losses import (
    Metrics,
    RegressionKind,
    Standardizer,
    count_pairs,
    count_targets,
    pairwise_loss,
    preference_loss,
    regression_loss,
    split_regression_loss,
    weighted_mean,
)

PARTS = ("regression", "pairwise", "preference", "contrast")
ROUNDING = 1e-4
"""Points within which two targets are the same."""


@dataclass(frozen=True)
class Objective:
    """The losses of a run."""

    name: LossName
    standardizer: Standardizer
    kind: RegressionKind = "huber"
    delta: float = 1.0
    pairwise_weight: float = 1.0
    min_gap: float = 0.0
    """Pairs whose targets differ by this much or less, in points, are ties."""
    switch: float = 0.5
    """`sequence`: share of the run that regression alone has."""
    anchor: float = 1.0
    """`sequence`: weight of the regression in the second phase."""
    level_weight: float = 1.0
    """`level+order`: weight of the error of a prompt's mean."""
    residual_weight: float = 1.0
    """`level+order`: weight of the error of an answer's distance from its prompt's mean."""

    contrast_weight: float = 0.0
    """Weight of the loss on answers changed on purpose, beside whatever else is minimised; 0 where there are none."""

    def shares(self, progress: float) -> dict[str, float]:
        """Weight of each loss at `progress` (0 start, 1 end of the run)."""
        match self.name:
            case "regression":
                return {"regression": 1.0}
            case "pairwise":
                return {"pairwise": 1.0}
            case "regression+pairwise":
                return {"regression": 1.0, "pairwise": self.pairwise_weight}
            case "level+order":
                return {"split": 1.0, "pairwise": self.pairwise_weight}
            case "preference":
                return {"preference": 1.0}
            case "sequence":
                if progress < self.switch:
                    return {"regression": 1.0}
                return {"regression": self.anchor, "pairwise": self.pairwise_weight}

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """(4,) how many terms each of `PARTS` has in a batch; counts of several batches add up."""
        targets_A_D = batch["targets_A_D"]
        return torch.stack(
            [
                count_targets(targets_A_D, batch["confidence_A_D"]),
                count_pairs(self._ranked(targets_A_D), batch["groups_A"], self._ties()),
                torch.tensor(float(batch["winners_P"].numel()), device=targets_A_D.device),
                count_contrasts(batch["gaps_C_D"])
                if "gaps_C_D" in batch
                else torch.zeros(()).to(targets_A_D),
            ]
        )

    def _ranked(self, scores_A_D: Tensor) -> Tensor:
        """Columns the pairwise loss orders: every dimension and the reward, standardised."""
        return self.standardizer.with_reward(scores_A_D)

    def _ties(self) -> Tensor:
        """Largest gap that is a tie, per column; means of equal scores differ by rounding, which is no gap."""
        return (self.min_gap + ROUNDING) / self.standardizer.spread_R()

    def loss(
        self, predictions_A_D: Tensor, batch: Mapping[str, Any], progress: float, counts: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        """Loss of a batch; `counts` are the terms of the whole optimiser step (default: this batch's)."""
        counts = self.count(batch) if counts is None else counts
        normaliser = dict(zip(PARTS, counts.to(predictions_A_D.device), strict=True))
        normaliser["split"] = normaliser["regression"]  # the same targets
        total = 0.0 * predictions_A_D.float().sum()
        metrics: Metrics = {}
        shares = self.shares(progress)
        if self.contrast_weight and "gaps_C_D" in batch:  # held-out prompts have none
            shares = {**shares, "contrast": self.contrast_weight}
        for part, share in shares.items():
            loss, found = self._part(part, predictions_A_D.float(), batch, normaliser[part])
            total = total + share * loss
            metrics |= found
        return total, metrics

    def _part(
        self, part: str, predictions_A_D: Tensor, batch: Mapping[str, Any], normaliser: Tensor
    ) -> tuple[Tensor, Metrics]:
        targets_A_D = batch["targets_A_D"]
        if part == "regression":
            return regression_loss(
                self.standardizer.apply(predictions_A_D),
                self.standardizer.apply(targets_A_D),
                confidence_A_D=batch["confidence_A_D"],
                kind=self.kind,
                delta=self.delta,
                normaliser=normaliser,
            )
        if part == "split":
            return split_regression_loss(
                self.standardizer.apply(predictions_A_D),
                self.standardizer.apply(targets_A_D),
                batch["groups_A"],
                confidence_A_D=batch["confidence_A_D"],
                kind=self.kind,
                delta=self.delta,
                level_weight=self.level_weight,
                residual_weight=self.residual_weight,
                normaliser=normaliser,
            )
        if part == "pairwise":
            return pairwise_loss(
                self._ranked(predictions_A_D),
                self._ranked(targets_A_D),
                batch["groups_A"],
                min_gap=self._ties(),
                normaliser=normaliser,
            )
        if part == "contrast":
            return contrast_loss(
                self.standardizer.apply(predictions_A_D),
                batch["better_C"],
                batch["worse_C"],
                batch["gaps_C_D"],
                normaliser=normaliser,
            )
        rewards_A = weighted_mean(predictions_A_D, self.standardizer.weights_D)
        return preference_loss(rewards_A, batch["winners_P"], batch["losers_P"], normaliser=normaliser)
