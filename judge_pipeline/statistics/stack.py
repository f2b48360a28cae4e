"""A ridge on several scores of an answer: what all baselines know together, and whether they add to a model.

In: score columns of an answer table, and points or people's choices to learn from. Out: one column for each target.
Columns are brought to one spread, and scikit-learn's ridge finds weights, its penalty by folds over documents. What is
learnt is the order within a prompt (columns and targets lose their prompt's mean, `graded_rows`) or order and level
together (they lose their mean over all answers, `levelled_rows`). Columns predicted out of fold were never fitted to the
document they are for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GroupKFold

from judge_pipeline.statistics.table import AnswerTable, Floats, Ints, Pair

PENALTIES = tuple(float(10.0 ** (power / 2)) for power in range(-2, 9))
"""In spreads of a column, which are one; 0.1 to 10,000."""
FOLDS = 5


@dataclass(frozen=True)
class Rows:
    """Differences to learn: features (n, F), what they should come to (n,), and their documents."""

    features: Floats
    wanted: Floats
    document: Ints


@dataclass(frozen=True)
class Weights:
    """A linear score: Σ weight · column, in the target's units; without a level of its own."""

    names: tuple[str, ...]
    weight: Floats
    penalty: float

    def apply(self, columns: Mapping[str, Floats]) -> Floats:
        """The score (R,); NaN where a column is."""
        return np.asarray(_matrix(columns, self.names) @ self.weight)


def graded_rows(table: AnswerTable, columns: Mapping[str, Floats], target_R: Floats) -> Rows:
    """Answers with points, minus their prompt's mean."""
    values, known = _known(columns, target_R)
    values[~known] = np.nan
    centred = table.centred(values)[known]
    return Rows(centred[:, :-1], centred[:, -1], table.document_R[known])


def levelled_rows(table: AnswerTable, columns: Mapping[str, Floats], target_R: Floats) -> Rows:
    """Answers with points, minus the mean over all of them."""
    values, known = _known(columns, target_R)
    centred = values[known] - values[known].mean(axis=0)
    return Rows(centred[:, :-1], centred[:, -1], table.document_R[known])


def _known(columns: Mapping[str, Floats], target_R: Floats) -> tuple[Floats, np.ndarray]:
    """(columns and, last, target (R, F + 1), which rows have all of them (R,))."""
    values = np.column_stack([*columns.values(), target_R])
    return values, np.asarray(np.isfinite(values).all(axis=1))


def preferred_rows(table: AnswerTable, columns: Mapping[str, Floats], pairs: Sequence[Pair]) -> Rows:
    """People's choices, each as a difference that should be 1, and -1 the other way round."""
    features = _matrix(columns, tuple(columns))
    gaps = np.array([features[pair.winner] - features[pair.loser] for pair in pairs]).reshape(
        -1, len(columns)
    )
    document = np.array([table.document_P[pair.prompt] for pair in pairs], dtype=np.int64)
    known = np.isfinite(gaps).all(axis=1)
    gaps, document = gaps[known], document[known]
    ones = np.ones(len(gaps))
    return Rows(np.concatenate([gaps, -gaps]), np.concatenate([ones, -ones]), np.tile(document, 2))


def fit_stack(rows: Rows, names: Sequence[str], folds: int = FOLDS) -> Weights:
    """Weights whose penalty does best on documents out of the fit; the middle one with a single document."""
    spread = np.sqrt(np.mean(rows.features**2, axis=0))
    spread = np.where(spread > 0, spread, 1.0)
    features, documents = rows.features / spread, len(np.unique(rows.document))
    if documents < 2:
        penalty = PENALTIES[len(PENALTIES) // 2]
    else:
        splits = list(GroupKFold(min(folds, documents)).split(features, groups=rows.document))
        penalty = float(
            RidgeCV(PENALTIES, fit_intercept=False, cv=splits, scoring="neg_mean_squared_error")
            .fit(features, rows.wanted)
            .alpha_
        )
    fitted = Ridge(penalty, fit_intercept=False).fit(features, rows.wanted)
    return Weights(tuple(names), np.asarray(fitted.coef_, dtype=float) / spread, penalty)


def out_of_fold(
    table: AnswerTable, columns: Mapping[str, Floats], rows: Rows, folds: int = FOLDS, seed: int = 0
) -> Floats | None:
    """The stack's score (R,) of every answer by weights fitted to other documents; None with fewer than two.

    Documents without a row to learn from are scored by weights of all that have one.
    """
    documents = np.unique(rows.document)
    if len(documents) < 2:
        return None
    names = tuple(columns)
    found = fit_stack(rows, names).apply(columns)
    splitter = GroupKFold(min(folds, len(documents)), shuffle=True, random_state=seed)
    for train, test in splitter.split(rows.features, groups=rows.document):
        fitted = fit_stack(Rows(rows.features[train], rows.wanted[train], rows.document[train]), names)
        inside = np.isin(table.document_R, rows.document[test])
        found[inside] = fitted.apply(columns)[inside]
    return found


def _matrix(columns: Mapping[str, Floats], names: Sequence[str]) -> Floats:
    return np.stack([columns[name] for name in names], axis=1)
