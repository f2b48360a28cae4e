"""Which dimensions earn their place, and what weights people's choices imply.

In: the scores of each dimension and pairs that people decided. Out: accuracy with all dimensions and with each left
out (LongReward, section 4.4), and weights from a logistic model on score differences, cross-validated by document.
The reward is a weighted mean, so a weight below zero has no meaning there: the non-negative fit is what `--weights`
takes, the free fit is shown beside it because it tells which dimension speaks against the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from judge_pipeline.statistics.bootstrap import DocumentBootstrap, Ratio
from judge_pipeline.statistics.table import AnswerTable, Floats, Ints, Pair

MIN_PAIRS = 20
"""With fewer decided pairs no weights are fitted: they would be noise."""


@dataclass(frozen=True)
class PairData:
    """Score differences (n, dimensions), winner minus loser, of pairs with every score there."""

    names: tuple[str, ...]
    gaps: Floats
    prompt: Ints
    document: Ints
    dropped: int
    """Pairs left out because a score is missing."""


def pair_data(table: AnswerTable, pairs: Sequence[Pair], columns: dict[str, Floats]) -> PairData:
    """Differences of each dimension's score over the given pairs."""
    names = tuple(columns)
    gaps = np.array([[columns[name][p.winner] - columns[name][p.loser] for name in names] for p in pairs])
    gaps = gaps.reshape(len(pairs), len(names))
    known = np.isfinite(gaps).all(axis=1)
    prompt = np.array([pair.prompt for pair in pairs], dtype=np.int64)[known]
    return PairData(names, gaps[known], prompt, table.document_P[prompt], int((~known).sum()))


def accuracy(gaps: Floats, weights: Floats) -> Floats:
    """1, ½ or 0 for each pair (n,): does the weighted mean prefer the winner?"""
    margin = gaps @ weights
    # Equal weights on tied scores must be a tie, whatever the order of summation.
    return np.asarray(0.5 + 0.5 * np.sign(np.where(np.abs(margin) < 1e-9, 0.0, margin)))


def _ratio(data: PairData, correct: Floats, prompts: int) -> Ratio:
    won, counted = np.zeros(prompts), np.zeros(prompts)
    np.add.at(won, data.prompt, correct)
    np.add.at(counted, data.prompt, 1.0)
    return Ratio(won, counted)


def leave_one_out(table: AnswerTable, data: PairData, bootstrap: DocumentBootstrap) -> list[dict[str, Any]]:
    """Accuracy with all dimensions (equal weights), with each left out, and with each alone."""
    count, total = len(data.names), len(table.prompts)
    everything = _ratio(data, accuracy(data.gaps, np.ones(count)), total)
    rows = [{"reward": "all dimensions", "accuracy": bootstrap.ratio(everything).as_json(), "loss": None}]
    for kind, choose in (("without", 1.0), ("only", 0.0)):
        if kind == "without" and count == 1:
            continue
        for position, name in enumerate(data.names):
            weights = np.full(count, choose)
            weights[position] = 1.0 - choose
            ratio = _ratio(data, accuracy(data.gaps, weights), total)
            rows.append(
                {
                    "reward": f"{kind} {name}",
                    "accuracy": bootstrap.ratio(ratio).as_json(),
                    "loss": bootstrap.difference(everything, ratio).as_json(),
                }
            )
    return rows


def fit_free(gaps: Floats, strength: float = 1.0) -> Floats:
    """Logistic regression on differences, without intercept (a pair has no first place); scikit-learn."""
    # Each pair both ways round: two classes, and a solution symmetric under swapping.
    both = np.concatenate([gaps, -gaps])
    labels = np.repeat([1, 0], len(gaps))
    fitted = LogisticRegression(fit_intercept=False, C=strength).fit(both, labels)
    return np.asarray(fitted.coef_[0], dtype=float)


def fit_non_negative(gaps: Floats, strength: float = 1.0) -> Floats:
    """The same objective with every weight at least 0 (bounded L-BFGS); equal weights where all would be 0."""
    both = np.concatenate([gaps, -gaps])
    labels = np.repeat([1.0, 0.0], len(gaps))

    def loss(weights: Floats) -> tuple[float, Floats]:
        margin = both @ weights
        value = -(labels * log_expit(margin) + (1 - labels) * log_expit(-margin)).sum() * strength
        slope = strength * both.T @ (expit(margin) - labels) + weights
        return float(value + 0.5 * weights @ weights), slope

    count = gaps.shape[1]
    found = minimize(loss, np.full(count, 0.1), jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * count)
    weights = np.asarray(found.x, dtype=float)
    return weights if weights.sum() > 1e-9 else np.ones(count)


def fitted_weights(
    table: AnswerTable, data: PairData, bootstrap: DocumentBootstrap, folds: int = 5
) -> dict[str, Any] | None:
    """Weights fitted to all pairs, and the accuracy of such weights on documents they were not fitted to.

    None with fewer than `MIN_PAIRS` pairs or fewer than two documents. Non-negative weights are scaled to a mean of
    1, and written as `--weights` takes them.
    """
    documents = len(set(data.document.tolist()))
    if len(data.gaps) < MIN_PAIRS or documents < 2:
        return None
    held_out = {"fitted, non-negative": np.zeros(len(data.gaps)), "fitted, free": np.zeros(len(data.gaps))}
    splitter = GroupKFold(n_splits=min(folds, documents), shuffle=True, random_state=0)
    for train, test in splitter.split(data.gaps, groups=data.document):
        for name, fit in (("fitted, non-negative", fit_non_negative), ("fitted, free", fit_free)):
            held_out[name][test] = accuracy(data.gaps[test], fit(data.gaps[train]))
    total = len(table.prompts)
    equal = _ratio(data, accuracy(data.gaps, np.ones(len(data.names))), total)
    rows = [{"weights": "equal", "accuracy": bootstrap.ratio(equal).as_json(), "gain": None}]
    for name, correct in held_out.items():
        ratio = _ratio(data, correct, total)
        gain = bootstrap.difference(ratio, equal).as_json()
        rows.append({"weights": name, "accuracy": bootstrap.ratio(ratio).as_json(), "gain": gain})
    best = fit_non_negative(data.gaps)
    weights = dict(zip(data.names, (best / best.mean()).tolist(), strict=True))
    return {
        "pairs": len(data.gaps),
        "pairs_with_a_missing_score": data.dropped,
        "documents": documents,
        "folds": min(folds, documents),
        "weights": weights,
        "free_coefficients": dict(zip(data.names, fit_free(data.gaps).tolist(), strict=True)),
        "flag": weights_flag(weights),
        "held_out": rows,
    }


def weights_flag(weights: dict[str, float]) -> str:
    """`--weights helpfulness=0.8,…` as the commands take it."""
    return "--weights " + ",".join(f"{name}={value:.3g}" for name, value in weights.items())
