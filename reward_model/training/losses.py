"""Losses that turn an answer's judge scores into gradients: pure functions, each returning `(loss, metrics)`.

In: predicted and target scores of all answers of a batch, and which prompt each answer belongs to. Out: a scalar
loss and a dictionary of detached scalars. Nothing here knows about models, batches of tokens or processes.

A missing score is NaN in the targets and takes no part: it is neither a zero nor a mean. Every loss is a sum
divided by a `normaliser` (how many terms the *whole* optimiser step has, over all processes and accumulated
batches), so adding up the parts gives exactly the loss of one big batch; by default the batch is the step.

Names: A answers of the batch, D dimensions, P pairs. Scores are standardised (`Standardizer`), so that one
dimension with a wide spread does not drown the others.

Deviation from the paper: LongReward (arXiv 2410.21252) uses the judge's scores directly and trains no reward
model. The scaled pairwise loss and the order "regression first, pairwise second" follow HelpSteer2-Preference
(arXiv 2410.01257, sections 3 and 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Metrics = dict[str, Tensor]
RegressionKind = Literal["huber", "mse"]


@dataclass(frozen=True)
class Standardizer:
    """Maps points 0–10 to mean 0 and spread 1 of the training targets, per dimension, and the reward likewise."""

    mean_D: Tensor
    std_D: Tensor
    weights_D: Tensor
    """Weights of the dimensions in the reward; they need not sum to 1."""

    @classmethod
    def fit(cls, targets_A_D: Tensor, weights_D: Tensor) -> Standardizer:
        """Mean and population spread over the targets that are there; a constant or empty dimension gets 1."""
        there = ~targets_A_D.isnan()
        count = there.sum(0).clamp(min=1)
        filled = targets_A_D.nan_to_num(0.0)
        mean = filled.sum(0) / count
        variance = (torch.where(there, filled - mean, 0.0) ** 2).sum(0) / count
        std = variance.sqrt()
        return cls(mean, torch.where(std > 1e-6, std, torch.ones_like(std)), weights_D)

    def apply(self, scores_A_D: Tensor) -> Tensor:
        """Points → standardised scores; NaN stays NaN."""
        return (scores_A_D - self.mean_D.to(scores_A_D)) / self.std_D.to(scores_A_D)

    def with_reward(self, scores_A_D: Tensor) -> Tensor:
        """Standardised scores (A, D) and, as column D, the reward in units of the mean spread.

        The reward is the weighted mean *of points*; where a weighted dimension is missing it is NaN.
        """
        reward = weighted_mean(scores_A_D, self.weights_D)
        centre = weighted_mean(self.mean_D.to(scores_A_D)[None], self.weights_D)
        scaled = (reward - centre) / self.spread_R().to(scores_A_D)[-1]
        return torch.cat([self.apply(scores_A_D), scaled[:, None]], dim=1)

    def spread_R(self) -> Tensor:
        """(D + 1,) points that one standardised unit is worth: of each dimension, and of the reward."""
        return torch.cat([self.std_D, weighted_mean(self.std_D[None], self.weights_D)])


def weighted_mean(scores_A_D: Tensor, weights_D: Tensor) -> Tensor:
    """Reward (A,) of scores (A, D) (LongReward, section 3.1); a dimension of weight 0 may be missing."""
    used = weights_D != 0
    weights = weights_D[used].to(scores_A_D)
    return (scores_A_D[:, used] * weights).sum(-1) / weights.sum()


def count_targets(targets_A_D: Tensor, confidence_A_D: Tensor | None = None) -> Tensor:
    """How many terms the regression has: targets that are there, or the sum of their confidences."""
    there = ~targets_A_D.isnan()
    return (there if confidence_A_D is None else there * confidence_A_D).sum().float()


def regression_loss(
    predictions_A_D: Tensor,
    targets_A_D: Tensor,
    *,
    confidence_A_D: Tensor | None = None,
    kind: RegressionKind = "huber",
    delta: float = 1.0,
    normaliser: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """Huber (quadratic up to `delta`, then linear) or squared error over the targets that are there.

    `confidence_A_D` weighs each target (judge votes that disagree count for less). Without any target the loss
    is 0 and still connected to the predictions, so that every process has a gradient to reduce.
    """
    there = ~targets_A_D.isnan()
    # The mask goes in before the difference: NaN times zero would still be NaN in the gradient.
    error = torch.where(there, predictions_A_D, 0.0) - targets_A_D.nan_to_num(0.0)
    terms = _error(error, kind, delta)
    weight = there.to(terms) if confidence_A_D is None else there * confidence_A_D.to(terms)
    total = count_targets(targets_A_D, confidence_A_D) if normaliser is None else normaliser
    loss = (terms * weight).sum() / _at_least_tiny(total, terms)
    return loss, {"regression": loss.detach()}


def _error(difference: Tensor, kind: RegressionKind, delta: float) -> Tensor:
    """Huber's or half the squared error, element by element."""
    if kind == "mse":
        return 0.5 * difference**2
    return F.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=delta)


def split_by_prompt(scores_A_D: Tensor, weights_A_D: Tensor, groups_A: Tensor) -> tuple[Tensor, Tensor]:
    """(level, residual), (A, D) each: every answer's prompt mean, weighted, and its distance from that mean.

    A weight of 0 leaves a score out of the mean; a prompt without any weight has level 0.
    """
    prompts, place_A = groups_A.unique(return_inverse=True)
    zeros = scores_A_D.new_zeros(len(prompts), scores_A_D.shape[1])
    weights = weights_A_D.to(scores_A_D)
    total = zeros.index_add(0, place_A, weights)
    level = zeros.index_add(0, place_A, weights * scores_A_D) / torch.where(total > 0, total, 1.0)
    return level[place_A], scores_A_D - level[place_A]


def split_regression_loss(
    predictions_A_D: Tensor,
    targets_A_D: Tensor,
    groups_A: Tensor,
    *,
    confidence_A_D: Tensor | None = None,
    kind: RegressionKind = "huber",
    delta: float = 1.0,
    level_weight: float = 1.0,
    residual_weight: float = 1.0,
    normaliser: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """The regression in two parts with a weight each: the mean of a prompt's answers, and what each differs from it.

    A prompt's mean counts once for each of its targets (by their confidence), so that squared errors of both parts
    add up to `regression_loss` exactly. A prompt with one answer has only a level; which answer
    is better is a question of the residual alone.
    """
    there = ~targets_A_D.isnan()
    weight = there.to(predictions_A_D)
    if confidence_A_D is not None:
        weight = weight * confidence_A_D.to(predictions_A_D)
    error = torch.where(there, predictions_A_D, 0.0) - targets_A_D.nan_to_num(0.0)
    total = count_targets(targets_A_D, confidence_A_D) if normaliser is None else normaliser
    # Means are linear: the error's mean is the difference of the means.
    parts = split_by_prompt(error, weight, groups_A)
    level, residual = (
        (_error(part, kind, delta) * weight).sum() / _at_least_tiny(total, error) for part in parts
    )
    loss = level_weight * level + residual_weight * residual
    return loss, {"level": level.detach(), "residual": residual.detach()}


def _pair_gaps(targets_A_D: Tensor, groups_A: Tensor, min_gap: Tensor | float) -> Tensor:
    """(A, A, D) gap of targets where both answers share a prompt and the first is clearly better, else 0."""
    gaps = targets_A_D[:, None] - targets_A_D[None, :]
    if isinstance(min_gap, Tensor):
        min_gap = min_gap.to(gaps)
    same_prompt = groups_A[:, None] == groups_A[None, :]
    return torch.where(same_prompt[..., None] & (gaps > min_gap), gaps, 0.0).nan_to_num(0.0)


def count_pairs(targets_A_D: Tensor, groups_A: Tensor, min_gap: Tensor | float = 0.0) -> Tensor:
    """How many decided pairs (answers of one prompt whose targets differ) there are over all columns."""
    return (_pair_gaps(targets_A_D, groups_A, min_gap) > 0).sum().float()


def pairwise_loss(
    predictions_A_D: Tensor,
    targets_A_D: Tensor,
    groups_A: Tensor,
    *,
    min_gap: Tensor | float = 0.0,
    normaliser: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """Scaled Bradley-Terry over the pairs of one prompt: gap · −log σ(prediction₁ − prediction₂).

    The judge's gap, in standardised units, scales each pair (HelpSteer2-Preference, eq. 3); ties (gap of at
    most `min_gap`, per column) and pairs with a missing score take no part. Columns may include the reward (`Standardizer.with_reward`).
    `groups_A` names the prompt of each answer. Metric `pair_accuracy`: share of decided pairs in order.
    """
    gaps = _pair_gaps(targets_A_D, groups_A, min_gap)
    decided = gaps > 0
    margins = predictions_A_D[:, None] - predictions_A_D[None, :]
    total = _at_least_tiny(decided.sum() if normaliser is None else normaliser, margins)
    loss = (gaps * F.softplus(-margins)).sum() / total
    right = ((margins > 0) & decided).sum() / total
    return loss, {"pairwise": loss.detach(), "pair_accuracy": right.detach()}


def preference_loss(
    rewards_A: Tensor,
    winners_P: Tensor,
    losers_P: Tensor,
    *,
    normaliser: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """Bradley-Terry on people's choices: −log σ(reward of the winner − reward of the loser).

    Rewards are in points, so one point of difference is one logit. `winners_P`, `losers_P` index into A.
    """
    margins = rewards_A[winners_P] - rewards_A[losers_P]
    total = _at_least_tiny(winners_P.numel() if normaliser is None else normaliser, rewards_A)
    # The empty sum of a batch without preferences is tied to the predictions for the sake of reduction.
    loss = (F.softplus(-margins).sum() + 0.0 * rewards_A.sum()) / total
    accuracy = (margins > 0).sum() / total
    return loss, {"preference": loss.detach(), "preference_accuracy": accuracy.detach()}


def _at_least_tiny(total: Tensor | float, like: Tensor) -> Tensor:
    """`total` as a tensor that is safe to divide by: with no terms the numerator is 0 as well."""
    return torch.as_tensor(total, dtype=like.dtype, device=like.device).clamp(min=1e-12)
