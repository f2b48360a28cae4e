"""Outputs as separate as their targets, as far as the order within prompts allows.

A ridge keeps of every output what is easy to predict, which is much the same for all of them: its outputs move together
more than the judge's scores do. Of all linear maps that give outputs the correlations of their targets within prompts,
each output keeping its own spread, the one used here moves them least (optimal transport between Gaussians: Olkin and
Pukelsheim, "The distance between two random vectors with given dispersion matrices", 1982). It goes only a part of the way where
that is enough (outputs within half of `TOGETHER` of their targets), and no further than costs `COST` of the correlation
between outputs and targets on documents out of the fold. A linear map of outputs is a linear map of the readout's weights, so nothing is left to apply later.

Shape suffixes: R answers, D outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from judge_pipeline.statistics.separation import TOGETHER, mean_correlation
from reward_model.modeling.ridge import Choice, LinearProbe, Rows, explained_within, fold_predictions

Tensor = torch.Tensor
Strength = float | Literal["auto"]
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
COST = 0.04
"""Correlation with the targets, mean over outputs, that may be given for separate outputs: what the reward, their mean,
does not notice."""
FEWEST_ROWS = 40
"""Answers below which correlations are not worth matching."""


@dataclass(frozen=True)
class Separation:
    """A map of outputs: ``middle + (outputs − middle) @ map``, and what it is known to do."""

    map_D_D: Tensor
    middle_D: Tensor
    strength: float

    @classmethod
    def none(cls, outputs: int) -> Separation:
        """Outputs as they are."""
        return cls(torch.eye(outputs, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64), 0.0)

    def __call__(self, points_R_D: Tensor) -> Tensor:
        """Points, separated."""
        return self.middle_D + (points_R_D - self.middle_D) @ self.map_D_D

    def fold(self, probe: LinearProbe) -> LinearProbe:
        """The probe whose outputs are separated."""
        return LinearProbe(self.map_D_D.T @ probe.weight_D_H, self(probe.bias_D))


def transport(outputs_R_D: Tensor, targets_R_D: Tensor) -> Tensor:
    """The map (D, D), symmetric, that gives outputs the correlations of targets; both centred within prompts."""
    have = torch.cov(outputs_R_D.T)
    spread = have.diagonal().sqrt()
    want = torch.corrcoef(targets_R_D.T) * torch.outer(spread, spread)
    root, inverse = _power(have, 0.5), _power(have, -0.5)
    return inverse @ _power(root @ want @ root, 0.5) @ inverse


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    # Directions in which nothing varies by more than rounding must not be blown up.
    return vectors * values.clamp_min(1e-6 * float(values.max())) ** exponent @ vectors.T


def separate(
    rows: Rows,
    features_A_F: Tensor,
    choice: Choice,
    strength: Strength = "auto",
    emphasis_F: Tensor | None = None,
) -> tuple[Separation, Choice]:
    """How a probe's outputs are separated, and what they explain afterwards, by predictions out of their fold.

    Args:
        rows: what is fitted; answers whose targets are all known count.
        features_A_F: of the answers.
        choice: the probe's penalties.
        strength: 0 leaves outputs as they are, 1 gives them the targets' correlations; auto chooses.
        emphasis_F: of the features, as the probe is fitted.
    """
    outputs, folds = rows.targets_R_D.shape[1], rows.fold_R.unique()
    known = rows.level_R & (rows.weights_R_D > 0).all(1)
    varies = _spread(rows.targets_R_D[known], rows.prompt_R[known]).amin() > 0 if known.any() else False
    if strength == 0 or outputs < 2 or len(folds) < 3 or known.sum() < FEWEST_ROWS or not varies:
        return Separation.none(outputs), choice
    penalties = sorted(set(choice.penalties))
    by_penalty = fold_predictions(rows, features_A_F, penalties, emphasis_F)
    columns = range(outputs)
    predicted = torch.stack(
        [by_penalty[penalties.index(choice.penalties[column]), :, column] for column in columns], dim=1
    )
    if _spread(predicted[known], rows.prompt_R[known]).amin() <= 0:
        return Separation.none(outputs), choice
    found, after = Separation.none(outputs), choice
    worst = _agreement(predicted, rows, known) - COST
    goal = _together(rows.targets_R_D, rows, known) + TOGETHER / 2
    if strength == "auto" and _together(predicted, rows, known) <= goal:
        return found, after
    for one in STRENGTHS if strength == "auto" else (strength,):
        mapped = predicted.clone()
        for fold in folds:
            held = rows.fold_R == fold
            mapped[held] = _fit(predicted, rows, known & ~held, one)(predicted[held])
        if strength == "auto" and _agreement(mapped, rows, known) < worst:
            break
        found = _fit(predicted, rows, known, one)
        after = replace(choice, explained=tuple(explained_within(mapped, rows).tolist()))
        if _together(mapped, rows, known) <= goal:
            break
    return found, after


def _fit(predicted_R_D: Tensor, rows: Rows, kept_R: Tensor, strength: float) -> Separation:
    own, targets, prompts = predicted_R_D[kept_R], rows.targets_R_D[kept_R], rows.prompt_R[kept_R]
    whole = transport(centred(own, prompts), centred(targets, prompts))
    some = strength * whole + (1 - strength) * torch.eye(len(whole), dtype=whole.dtype)
    return Separation(some, own.mean(0), strength)


def centred(values_R_D: Tensor, prompt_R: Tensor) -> Tensor:
    """Values minus their prompt's mean."""
    count = int(prompt_R.max()) + 1
    sums = values_R_D.new_zeros(count, values_R_D.shape[1]).index_add(0, prompt_R, values_R_D)
    sizes = prompt_R.bincount(minlength=count).clamp_min(1)[:, None]
    return values_R_D - (sums / sizes)[prompt_R]


def _spread(values_R_D: Tensor, prompt_R: Tensor) -> Tensor:
    return centred(values_R_D, prompt_R).square().mean(0)


def _together(points_R_D: Tensor, rows: Rows, known_R: Tensor) -> float:
    return mean_correlation(centred(points_R_D[known_R], rows.prompt_R[known_R]).numpy()) or 0.0


def _agreement(points_R_D: Tensor, rows: Rows, known_R: Tensor) -> float:
    """Correlation of outputs with their targets within prompts, mean over outputs."""
    prompts = rows.prompt_R[known_R]
    own, target = centred(points_R_D[known_R], prompts), centred(rows.targets_R_D[known_R], prompts)
    return float(torch.nn.functional.cosine_similarity(own, target, dim=0).mean())
