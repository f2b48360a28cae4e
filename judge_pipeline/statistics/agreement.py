"""How well one set of scores agrees with another, prompt by prompt and over the whole set.

In: a table of answers, the `target` (judge or people) and the `predicted` scores of each. Out: ratios of per-prompt
sums, so that intervals over documents come cheaply (`bootstrap`). Judge scores are bunched near the top and
tied; a correlation over the whole set mostly shows that some prompts are easier than others. What best-of-N, pairs and
DPO use is the order *within* a prompt, so that is what most figures here are about.

Rules, the same everywhere:

- a prompt counts where the target tells at least two of its answers apart; others carry no order to agree with;
- constant predictions within a prompt correlate 0 with it (not undefined), so that a constant scores 0, and a
  predicted tie on a decided pair counts one half;
- an answer without a target or without a prediction is left out, and the counts show it.

Figures over the whole set compare answers of different prompts, so they also show whether one prompt's 7 means the same
as another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error

from judge_pipeline.common.records import SCORE_RANGE
from judge_pipeline.statistics.bootstrap import DocumentBootstrap, Estimate, Ratio
from judge_pipeline.statistics.table import AnswerTable, Floats, Ints, Pair

PROMPT_METRICS: dict[str, str] = {
    "spearman": "Spearman correlation within a prompt, mean over prompts",
    "kendall": "Kendall τ-b within a prompt, mean over prompts",
    "pairs": "share of decided pairs ordered the same way (a predicted tie counts ½)",
    "somers_d": "Somers' D: the same with chance taken off, 0 for guessing and 1 for every pair right",
    "best_of_n": "share of prompts whose top answer is a top answer of the target",
    "best_above_chance": "best of N with chance taken off: 0 for picking blindly within each prompt, 1 for always right",
    "worst_of_n": "share of prompts whose bottom answer is a bottom answer of the target",
    "same_pair": "share of prompts whose best *and* worst answers are both the target's",
    "pair_direction": "share of chosen best–worst pairs that the target orders the same way (a tie counts ½)",
    "regret": "points of the target lost by taking the predicted best answer instead of the target's best",
}
POINT_METRICS: dict[str, str] = {
    "kappa_within": "quadratic κ against chance within each prompt: 0 for the right points on the wrong answers",
}
"""Figures within prompts of predictions in the target's points."""
SET_METRICS: dict[str, str] = {
    "spearman": "Spearman correlation over all answers",
    "kendall": "Kendall τ-b over all answers",
    "mae": "mean absolute error in points",
    "kappa": "Cohen's κ with quadratic weights over whole points: agreement in points with chance taken off",
    "alpha": "Krippendorff's α for interval data: as κ, for any number of raters and with gaps",
}
SET_REPLICATES = 200
"""Each replicate computes rank correlations of the whole set again, which is slow for large ones."""
LOWER_IS_BETTER = frozenset({"regret", "mae"})


def prompt_metrics(table: AnswerTable, target_R: Floats, predicted_R: Floats) -> dict[str, Ratio]:
    """Every figure of `PROMPT_METRICS`, as per-prompt numerators and denominators (P,)."""
    count = len(table.prompts)
    sums = {name: (np.zeros(count), np.zeros(count)) for name in PROMPT_METRICS}
    for number, rows in table.slices():
        target, predicted = _both(target_R[rows], predicted_R[rows])
        for name, (value, weight) in _prompt_figures(target, predicted).items():
            sums[name][0][number], sums[name][1][number] = value, weight
    return {name: Ratio(*arrays) for name, arrays in sums.items()}


def _both(target: Floats, predicted: Floats) -> tuple[Floats, Floats]:
    known = np.isfinite(target) & np.isfinite(predicted)
    return target[known], predicted[known]


def _prompt_figures(target: Floats, predicted: Floats) -> dict[str, tuple[float, float]]:
    """Figure → (numerator, denominator) for one prompt; empty where the target does not vary."""
    if len(target) < 2 or np.ptp(target) == 0:
        return {}
    won, decided = pair_counts(target, predicted)
    best, worst = _tops(predicted), _tops(-predicted)
    right_best, right_worst = target == target.max(), target == target.min()
    figures = {
        "spearman": (within_correlation(target, predicted, "spearman"), 1.0),
        "kendall": (within_correlation(target, predicted, "kendall"), 1.0),
        "pairs": (won, decided),
        "somers_d": (2 * won - decided, decided),
        "best_of_n": (float(right_best[best].mean()), 1.0),
        "best_above_chance": (
            float(right_best[best].mean() - right_best.mean()),
            1 - float(right_best.mean()),
        ),
        "worst_of_n": (float(right_worst[worst].mean()), 1.0),
        "regret": (float(target.max() - target[best].mean()), 1.0),
    }
    chosen = _chosen_pairs(best, worst)
    figures["same_pair"] = (float(np.mean([right_best[i] and right_worst[j] for i, j in chosen])), 1.0)
    direction = [0.5 + 0.5 * np.sign(target[i] - target[j]) for i, j in chosen]
    figures["pair_direction"] = (float(np.mean(direction)), 1.0)
    return figures


def _tops(values: Floats) -> list[int]:
    """Positions of the highest values: with ties, a random one of them is what would be taken."""
    return [int(i) for i in np.flatnonzero(values == values.max())]


def _chosen_pairs(best: Sequence[int], worst: Sequence[int]) -> list[tuple[int, int]]:
    """The best–worst pairs DPO may be given; all pairs where all answers are predicted alike (a blind choice)."""
    return [(i, j) for i in best for j in worst if i != j]


def correlation(target: Floats, predicted: Floats, kind: str) -> float | None:
    """Spearman's ρ or Kendall's τ-b; None where the target does not vary, 0 for constant predictions."""
    if len(target) < 2 or np.ptp(target) == 0:
        return None
    if np.ptp(predicted) == 0:
        return 0.0
    compute = stats.spearmanr if kind == "spearman" else stats.kendalltau
    return float(compute(target, predicted).statistic)


def within_correlation(target: Floats, predicted: Floats, kind: str) -> float:
    """`correlation` of one prompt's answers, 0 where it has none."""
    return correlation(target, predicted, kind) or 0.0


def pair_counts(target: Floats, predicted: Floats, tie: float = 0.0) -> tuple[float, float]:
    """(pairs ordered as the target orders them, pairs whose targets differ by more than `tie`).

    A predicted tie is half a pair.
    """
    gap = target[:, None] - target[None, :]
    have = np.sign(predicted[:, None] - predicted[None, :])
    upper = np.triu(np.ones_like(gap, dtype=bool), 1) & (np.abs(gap) > tie)
    agreed = (np.sign(gap) == have) + 0.5 * (have == 0)
    return float(agreed[upper].sum()), float(upper.sum())


def mean_spearman(predictions: Sequence[Floats], targets: Sequence[Floats]) -> float:
    """Mean over prompts of Spearman's ρ between their answers' predictions (N,) and targets (N,).

    A prompt counts when at least two of its answers have different targets; NaN when none does.
    """
    pairs = (_both(target, predicted) for predicted, target in zip(predictions, targets, strict=True))
    values = [
        within_correlation(predicted, target, "spearman")
        for target, predicted in pairs
        if len(target) > 1 and np.ptp(target) > 0
    ]
    return float(np.mean(values)) if values else np.nan


def share_of_pairs(predictions: Sequence[Floats], targets: Sequence[Floats], tie: float = 1e-4) -> float:
    """Share of pairs of one prompt whose targets differ that the predictions put in the same order; NaN without any."""
    found = [
        pair_counts(target, predicted, tie) for predicted, target in zip(predictions, targets, strict=True)
    ]
    right, decided = (sum(column) for column in zip(*found, strict=True)) if found else (0.0, 0.0)
    return right / decided if decided else np.nan


def mean_distance(predictions: Sequence[Floats], targets: Sequence[Floats]) -> float:
    """Mean absolute error in points over the targets that are there; NaN when there are none."""
    errors = np.abs(np.concatenate(list(predictions)) - np.concatenate(list(targets)))
    errors = errors[~np.isnan(errors)]
    return float(errors.mean()) if len(errors) else np.nan


def spearman_ceiling(table: AnswerTable, target_R: Floats, predicted_R: Floats | None = None) -> Ratio:
    """The highest mean within-prompt Spearman that predictions without ties can reach, given the target's ties.

    A prediction that orders all n answers, tied ones in any order, has Spearman's ρ = √(1 - Σ(t³ - t) / (n³ - n)) with
    the target, t the sizes of its groups of tied answers (the tie correction of Kendall, "Rank Correlation Methods").
    `predicted_R` names the answers that count: those it has a value for.
    """
    number = len(table.prompts)
    best, counted = np.zeros(number), np.zeros(number)
    for prompt, rows in table.slices():
        target, _ = _both(target_R[rows], target_R[rows] if predicted_R is None else predicted_R[rows])
        if len(target) > 1 and np.ptp(target) > 0:
            best[prompt] = np.sqrt(stats.tiecorrect(stats.rankdata(target)))
            counted[prompt] = 1
    return Ratio(best, counted)


def tie_counts(table: AnswerTable, target_R: Floats, predicted_R: Floats) -> dict[str, int]:
    """Pairs of answers to one prompt: all, tied in the target, tied in the prediction where the target decides."""
    pairs = target_ties = predicted_ties = 0
    for _, rows in table.slices():
        target, predicted = _both(target_R[rows], predicted_R[rows])
        first, second = np.triu_indices(len(target), 1)
        tied = target[first] == target[second]
        pairs += len(tied)
        target_ties += int(tied.sum())
        predicted_ties += int((~tied & (predicted[first] == predicted[second])).sum())
    return {
        "pairs": pairs,
        "target_ties": target_ties,
        "decided": pairs - target_ties,
        "predicted_ties": predicted_ties,
    }


def decided_pairs(table: AnswerTable, target_R: Floats, margin: float = 0.0) -> list[Pair]:
    """The pairs of answers that `target_R` tells apart by more than `margin` points, the better one as winner."""
    found = []
    for number, rows in table.slices():
        for i, j in combinations(range(rows.start, rows.stop), 2):
            gap = target_R[i] - target_R[j]
            if np.isfinite(gap) and abs(gap) > margin:
                found.append(Pair(number, i, j) if gap > 0 else Pair(number, j, i))
    return found


def pair_accuracy(table: AnswerTable, pairs: Iterable[Pair], predicted_R: Floats) -> Ratio:
    """Share of given pairs whose winner has the higher score (a tie counts ½); unscored pairs are left out."""
    won, decided = np.zeros(len(table.prompts)), np.zeros(len(table.prompts))
    for pair in pairs:
        gap = predicted_R[pair.winner] - predicted_R[pair.loser]
        if np.isfinite(gap):
            won[pair.prompt] += 0.5 + 0.5 * np.sign(gap)
            decided[pair.prompt] += 1
    return Ratio(won, decided)


def set_metrics(
    table: AnswerTable,
    target_R: Floats,
    predicted_R: Floats,
    bootstrap: DocumentBootstrap,
    in_points: bool = True,
) -> dict[str, Estimate]:
    """Figures of `SET_METRICS` with intervals over documents; those in points where predictions are."""
    rows = np.flatnonzero(np.isfinite(target_R) & np.isfinite(predicted_R))
    computed: dict[str, Callable[[Ints], float | None]] = {
        "spearman": lambda rows: correlation(target_R[rows], predicted_R[rows], "spearman"),
        "kendall": lambda rows: correlation(target_R[rows], predicted_R[rows], "kendall"),
    }
    if in_points:
        computed["mae"] = lambda rows: (
            float(mean_absolute_error(target_R[rows], predicted_R[rows])) if len(rows) else None
        )
        computed["kappa"] = lambda rows: quadratic_kappa(target_R[rows], predicted_R[rows])
        computed["alpha"] = lambda rows: krippendorff_alpha(np.stack([target_R[rows], predicted_R[rows]]))
    return {
        name: bootstrap.statistic(compute, table.document_R, rows, SET_REPLICATES)
        for name, compute in computed.items()
    }


def quadratic_kappa(target: Floats, predicted: Floats) -> float | None:
    """Cohen's κ with quadratic weights of points 0–10 rounded to whole ones; None where both are one same score.

    1 minus the observed over the expected squared distance, by moments: scikit-learn's `cohen_kappa_score` is the same
    and takes too long for an interval, which computes it again for every resample.
    """
    low, high = (int(end) for end in SCORE_RANGE)
    one, other = (np.clip(np.round(values), low, high) for values in (target, predicted))
    if not len(target) or np.ptp(np.concatenate([one, other])) == 0:
        return None
    expected = np.mean(one**2) + np.mean(other**2) - 2 * np.mean(one) * np.mean(other)
    return float(1 - np.mean((one - other) ** 2) / expected)


def within_kappa(table: AnswerTable, target_R: Floats, predicted_R: Floats) -> Ratio:
    """κ with quadratic weights, its chance that of dealing a prompt's predictions to its answers at random.

    Over the whole set, knowing which prompts are easy counts as agreement; here it does not.
    """
    count = len(table.prompts)
    gained, expected = np.zeros(count), np.zeros(count)
    for number, rows in table.slices():
        target, predicted = _both(target_R[rows], predicted_R[rows])
        if len(target) > 1:
            expected[number] = np.mean((target[:, None] - predicted[None, :]) ** 2)
            gained[number] = expected[number] - np.mean((target - predicted) ** 2)
    return Ratio(gained, expected)


def krippendorff_alpha(values_KR: Floats) -> float | None:
    """Krippendorff's α for interval data: K raters of R answers, NaN where a rater gave none.

    1 minus the observed over the expected squared distance (Krippendorff, "Content Analysis", ch. 12), by variances:
    linear in the ratings, where the `krippendorff` package counts every two distinct values, which judges' decimals
    make many. None where fewer than two ratings can be paired, or all are one value.
    """
    values_KR = values_KR[:, np.isfinite(values_KR).sum(axis=0) > 1]
    known = np.isfinite(values_KR)
    if not known.any() or np.ptp(values_KR[known]) == 0:
        return None
    raters = known.sum(axis=0)
    apart = np.nanvar(values_KR, axis=0, ddof=1)
    return float(1 - (raters @ apart / raters.sum()) / np.var(values_KR[known], ddof=1))


def calibration(target_R: Floats, predicted_R: Floats, bins: int = 10) -> dict[str, Any]:
    """Does a predicted 7 mean a 7? Slope and intercept of target on prediction, and a reliability table.

    Slope 1 and intercept 0 are perfect; a slope under 1 means the predictions spread more than they should. The bins
    hold equal numbers of answers; each gives the mean prediction, the mean target and the count. `expected_error` is
    the mean distance of the two, weighted by count, in points.
    """
    known = np.isfinite(target_R) & np.isfinite(predicted_R)
    target, predicted = target_R[known], predicted_R[known]
    if len(target) < 2 or np.ptp(predicted) == 0:
        return {"slope": None, "intercept": None, "expected_error": None, "bins": []}
    line = LinearRegression().fit(predicted[:, None], target)
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    rows = [
        {
            "predicted": float(predicted[part].mean()),
            "target": float(target[part].mean()),
            "count": len(part),
        }
        for part in parts
    ]
    error = sum(row["count"] * abs(row["predicted"] - row["target"]) for row in rows) / len(target)
    return {
        "slope": float(line.coef_[0]),
        "intercept": float(line.intercept_),
        "expected_error": float(error),
        "bins": rows,
    }
