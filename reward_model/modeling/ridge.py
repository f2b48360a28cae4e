"""Ridge regression in closed form, its penalty chosen by folds over documents or given.

In: features of answers and what they are fitted to (`Rows`). Out: out-of-fold predictions, the share of within-prompt
variance they explain, a fit. A row is an answer, fitted to its points, or the difference of two answers, fitted to
the gap between them; differences need no intercept. A target that is missing has weight zero.

The linear system is as large as the smaller of rows and features, so any number of answers will do. scikit-learn's
`RidgeCV` chooses a penalty for each target by leaving out single rows only, never documents, so this is our own.

Shape suffixes: A answers, R rows, F features, D targets, P penalties.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

Tensor = torch.Tensor
PENALTIES = tuple(10.0 ** (power / 2) for power in range(-4, 6))
"""In mean squared lengths of a feature vector; 0.01 to about 300, where next to nothing is left of the features."""


@dataclass(frozen=True)
class LinearProbe:
    """Points as a linear function of features."""

    weight_D_H: Tensor
    bias_D: Tensor

    def __call__(self, features_N_H: Tensor) -> Tensor:
        """Points ``(N, D)`` fp64."""
        return features_N_H.double() @ self.weight_D_H.T + self.bias_D


@dataclass(frozen=True)
class Rows:
    """What is fitted: answers to their points, and pairs of answers to the gap between them."""

    first_R: Tensor
    """Answer of each row."""
    second_R: Tensor
    """Answer whose features are subtracted, -1 for none."""
    targets_R_D: Tensor
    """Points, or gaps, fp64; NaN where there is none."""
    weights_R_D: Tensor
    """0 where there is no target."""
    prompt_R: Tensor
    """Number of the prompt."""
    fold_R: Tensor

    @classmethod
    def of_answers(cls, targets_A_D: Tensor) -> Rows:
        """Every answer by itself, all in one fold: for a fit of a penalty that is known."""
        answers = torch.arange(len(targets_A_D))
        none = torch.full_like(answers, -1)
        weights = (~targets_A_D.isnan()).double()
        return cls(answers, none, targets_A_D.double(), weights, answers, torch.zeros_like(answers))

    @property
    def level_R(self) -> Tensor:
        """Rows that are single answers: those that have a level."""
        return self.second_R < 0

    def keep(self, kept_R: Tensor) -> Rows:
        """Some of the rows."""
        return replace(self, **{name: value[kept_R] for name, value in vars(self).items()})

    def scaler(self, features_A_F: Tensor, emphasis_F: Tensor | None = None) -> Scaler:
        """Of the answers that stand in a row: what is not fitted must not be looked at."""
        there = torch.cat([self.first_R, self.second_R[~self.level_R]]).unique()
        found = Scaler.fit(features_A_F[there])
        return found if emphasis_F is None else replace(found, scale_F=found.scale_F / emphasis_F)

    def features(self, features_A_F: Tensor) -> Tensor:
        """Features (R, F) of the rows."""
        rows = features_A_F[self.first_R]
        pairs = ~self.level_R
        if pairs.any():
            rows[pairs] -= features_A_F[self.second_R[pairs]]
        return rows


@dataclass(frozen=True)
class Scaler:
    """Mean and spread of features; the spread of a constant feature counts as 1."""

    centre_F: Tensor
    scale_F: Tensor

    @classmethod
    def fit(cls, features_A_F: Tensor) -> Scaler:
        """Of all answers."""
        scale = features_A_F.std(0, correction=0)
        # What varies by rounding alone is constant.
        still = scale <= 1e-6 * features_A_F.abs().amax(0)
        return cls(features_A_F.mean(0), torch.where(still, 1.0, scale))

    def __call__(self, features_A_F: Tensor) -> Tensor:
        """Standardised."""
        return (features_A_F - self.centre_F) / self.scale_F


def fit_predictions(rows: Rows, features_R_F: Tensor, train_R: Tensor, penalties: Sequence[float]) -> Tensor:
    """Predictions (P, R, D) fp64 for all rows, fitted to the rows of `train_R` with each penalty.

    Args:
        rows: what is fitted.
        features_R_F: standardised features of the rows.
        train_R: mask of the rows to fit.
        penalties: in mean squared lengths of a feature vector.
    """
    size, count = features_R_F.shape[1], int(train_R.sum())
    found = torch.empty(
        len(penalties), *rows.targets_R_D.shape, dtype=torch.float64, device=features_R_F.device
    )
    unit = _mean_square(features_R_F)
    # Products in fp32, sums and solutions in fp64: the smallest penalty is far above fp32's rounding.
    gram = (features_R_F @ features_R_F.T).double() if count <= size else None
    for columns, weights in _columns(rows, train_R):
        level = rows.level_R.double()
        share = weights * level / (weights * level).sum().clamp_min(1e-300)
        targets = rows.targets_R_D[:, columns].nan_to_num()
        middle = share @ targets
        root = weights.sqrt()
        wanted = root[:, None] * (targets - level[:, None] * middle)
        if gram is not None:
            inside = weights > 0
            mean = gram @ share
            centred = gram - level[:, None] * mean - mean[:, None] * level
            centred += level[:, None] * level * (share @ mean)
            system = root[inside, None] * centred[inside][:, inside] * root[inside]
            for place, penalty in enumerate(penalties):
                solution = root[inside, None] * _solve(system, penalty * unit, wanted[inside])
                found[place, :, columns] = centred[:, inside] @ solution + level[:, None] * middle
        else:
            centred = features_R_F.double()
            centred = centred - level[:, None] * (share @ centred)
            weighted = root[:, None] * centred
            system, right = weighted.T @ weighted, weighted.T @ wanted
            for place, penalty in enumerate(penalties):
                solution = _solve(system, penalty * unit, right)
                found[place, :, columns] = centred @ solution + level[:, None] * middle
    return found


def _mean_square(features_R_F: Tensor) -> float:
    return max(float(features_R_F.square().sum(1, dtype=torch.float64).mean()), 1e-12)


def _columns(rows: Rows, train_R: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Targets (mask (D,)) that share their weights, and these (R,): they share one system."""
    weights_R_D = torch.where(train_R[:, None], rows.weights_R_D, 0.0)
    patterns, pattern_D = weights_R_D.unique(dim=1, return_inverse=True)
    for number, weights in enumerate(patterns.T):
        yield pattern_D == number, weights


def _solve(system: Tensor, penalty: float, right: Tensor) -> Tensor:
    regular = system.clone()
    regular.diagonal().add_(penalty)
    return torch.cholesky_solve(right, torch.linalg.cholesky(regular))


def fold_predictions(
    rows: Rows,
    features_A_F: Tensor,
    penalties: Sequence[float] = PENALTIES,
    emphasis_F: Tensor | None = None,
) -> Tensor:
    """Predictions (P, R, D) of every row by the fits that saw no row of its fold.

    `emphasis_F` multiplies standardised features: those above 1 are shrunk less.
    """
    features = rows.features(rows.scaler(features_A_F, emphasis_F)(features_A_F))
    found = torch.empty(len(penalties), *rows.targets_R_D.shape, dtype=torch.float64, device=features.device)
    for fold in rows.fold_R.unique():
        held = rows.fold_R == fold
        found[:, held] = fit_predictions(rows, features, ~held, penalties)[:, held]
    return found


def explained_within(predictions_R_D: Tensor, rows: Rows) -> Tensor:
    """Share (D,) of the targets' variance within prompts that predictions explain; below 0 where they mislead.

    Only answers count where there are any, else the gaps do, about zero. Where the targets of no prompt differ (one
    answer each), the variance over everything takes its place; NaN where there is none either.
    """
    known = rows.keep(rows.level_R) if rows.level_R.any() else rows
    predicted = predictions_R_D[rows.level_R] if rows.level_R.any() else predictions_R_D
    weights, targets = known.weights_R_D, known.targets_R_D.nan_to_num()
    if not rows.level_R.any():
        return 1 - (weights * (targets - predicted) ** 2).sum(0) / (weights * targets**2).sum(0)

    def spread(values: Tensor, group: Tensor) -> Tensor:
        count = int(group.max()) + 1
        sums = values.new_zeros(count, values.shape[1]).index_add(0, group, weights * values)
        total = values.new_zeros(count, values.shape[1]).index_add(0, group, weights)
        return (weights * (values - (sums / total.clamp_min(1e-300))[group]) ** 2).sum(0)

    within, overall = known.prompt_R, torch.zeros_like(known.prompt_R)
    total = spread(targets, within)
    varies = total > 1e-9
    total = torch.where(varies, total, spread(targets, overall))
    left = torch.where(varies, spread(targets - predicted, within), spread(targets - predicted, overall))
    return torch.where(total > 1e-9, 1 - left / total.clamp_min(1e-300), torch.nan)


@dataclass(frozen=True)
class Choice:
    """The best penalty of each target, and what it explains of rows out of its fold."""

    penalties: tuple[float, ...]
    explained: tuple[float, ...]
    """NaN for a target that never varies."""
    ordered: float | None = None
    """Share of answers made worse on purpose that come out below what they were; None where there are none."""

    @property
    def score(self) -> float:
        """Explained, mean over the targets that vary, and how far `ordered` is above chance."""
        there = [value for value in self.explained if value == value]
        explained = sum(there) / len(there) if there else 0.0
        return explained + (0.0 if self.ordered is None else self.ordered - 0.5)


def choose_penalties(
    rows: Rows,
    features_A_F: Tensor,
    penalties: Sequence[float] = PENALTIES,
    emphasis_F: Tensor | None = None,
) -> Choice:
    """The penalty of each target that explains most of held-out folds; a target that never varies gets the largest."""
    predictions = fold_predictions(rows, features_A_F, penalties, emphasis_F)
    explained_P_D = torch.stack([explained_within(one, rows) for one in predictions])
    # From the largest down, so that of equals the larger penalty wins.
    best_D = len(penalties) - 1 - explained_P_D.flip(0).nan_to_num(-torch.inf).argmax(0)
    columns = range(len(best_D))
    chosen_R_D = torch.stack([predictions[int(best), :, column] for column, best in enumerate(best_D)], dim=1)
    return Choice(
        tuple(penalties[int(best)] for best in best_D),
        tuple(float(explained_P_D[int(best), column]) for best, column in zip(best_D, columns, strict=True)),
        ordered_share(chosen_R_D, rows),
    )


def ordered_share(predictions_R_D: Tensor, rows: Rows) -> float | None:
    """Share of the gaps beside answers with points that are predicted the right way round; None where there are none."""
    if not rows.level_R.any():
        return None
    gaps = (~rows.level_R)[:, None] & (rows.weights_R_D > 0) & (rows.targets_R_D.nan_to_num() > 0)
    return float((predictions_R_D[gaps] > 0).double().mean()) if gaps.any() else None


def fit_rows(
    rows: Rows, features_A_F: Tensor, penalties_D: Sequence[float], emphasis_F: Tensor | None = None
) -> LinearProbe:
    """Weights and bias on features as they come (standardisation folded in), with each target's own penalty.

    Where all rows are differences the bias is such that the mean over answers is zero.
    """
    scaler = rows.scaler(features_A_F, emphasis_F)
    scaled = rows.features(scaler(features_A_F))
    unit = _mean_square(scaled)
    level = rows.level_R.double()
    weight_D_F = scaled.new_zeros(rows.targets_R_D.shape[1], scaled.shape[1], dtype=torch.float64)
    bias_D = scaled.new_zeros(rows.targets_R_D.shape[1], dtype=torch.float64)
    everything = torch.ones_like(rows.level_R)
    for columns, weights in _columns(rows, everything):
        share = weights * level / (weights * level).sum().clamp_min(1e-300)
        targets = rows.targets_R_D[:, columns].nan_to_num()
        middle = share @ targets
        mean_F = share @ scaled.double()
        weighted = weights.sqrt()[:, None] * (scaled.double() - level[:, None] * mean_F)
        wanted = weights.sqrt()[:, None] * (targets - level[:, None] * middle)
        few = weighted.shape[0] <= weighted.shape[1]
        system = weighted @ weighted.T if few else weighted.T @ weighted
        for place, column in enumerate(columns.nonzero()[:, 0].tolist()):
            penalty, own = penalties_D[column] * unit, wanted[:, place : place + 1]
            right = own if few else weighted.T @ own
            solution = _solve(system, penalty, right)
            weight_D_F[column] = (weighted.T @ solution if few else solution)[:, 0]
            bias_D[column] = middle[place] - weight_D_F[column] @ mean_F
    weight_D_F = weight_D_F / scaler.scale_F.double()
    return LinearProbe(weight_D_F, bias_D - weight_D_F @ scaler.centre_F.double())


def fit_answers(features_A_F: Tensor, targets_A_D: Tensor, alpha: float) -> LinearProbe:
    """scikit-learn's ``Ridge`` of strength `alpha` on standardised features; an answer counts for the targets it has.

    Raises:
        ValueError: a target is missing everywhere.
    """
    known_A_D = ~targets_A_D.isnan()
    if not known_A_D.any(0).all():
        raise ValueError("a target has no value at all")
    weight_D_F = features_A_F.new_empty(targets_A_D.shape[1], features_A_F.shape[1], dtype=torch.float64)
    bias_D = weight_D_F.new_empty(len(weight_D_F))
    patterns, pattern_D = known_A_D.unique(dim=1, return_inverse=True)
    for number, there in enumerate(
        patterns.T
    ):  # targets of the same answers are standardised and fitted together
        columns = pattern_D == number
        own, rows = features_A_F[there].double(), Rows.of_answers(targets_A_D[there][:, columns])
        unit = _mean_square(Scaler.fit(own)(own))
        fitted = fit_rows(rows, own, [alpha / unit] * int(columns.sum()))
        weight_D_F[columns], bias_D[columns] = fitted.weight_D_H, fitted.bias_D
    return LinearProbe(weight_D_F, bias_D)
