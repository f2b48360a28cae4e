"""Agreement over the whole set of answers: rank correlation, error in points, and calibration.

These compare answers of different prompts with each other, so they also show whether one prompt's 7 means the same
as another's; `agreement` looks within prompts. scikit-learn does the fits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error

from judge_pipeline.statistics.agreement import correlation
from judge_pipeline.statistics.bootstrap import DocumentBootstrap, Estimate
from judge_pipeline.statistics.table import AnswerTable, Floats, Ints

SET_METRICS: dict[str, str] = {
    "spearman": "Spearman correlation over all answers",
    "kendall": "Kendall τ-b over all answers",
    "mae": "mean absolute error in points",
}
SET_REPLICATES = 200
"""Each replicate computes rank correlations of the whole set again, which is slow for large ones."""


def set_metrics(
    table: AnswerTable, target_R: Floats, predicted_R: Floats, bootstrap: DocumentBootstrap
) -> dict[str, Estimate]:
    """Every figure of `SET_METRICS` with an interval over documents."""
    rows = np.flatnonzero(np.isfinite(target_R) & np.isfinite(predicted_R))
    document_R = np.repeat(table.document_P, table.end_P - table.start_P)
    computed: dict[str, Callable[[Ints], float | None]] = {
        "spearman": lambda rows: correlation(target_R[rows], predicted_R[rows], "spearman"),
        "kendall": lambda rows: correlation(target_R[rows], predicted_R[rows], "kendall"),
        "mae": lambda rows: (
            float(mean_absolute_error(target_R[rows], predicted_R[rows])) if len(rows) else None
        ),
    }
    return {
        name: bootstrap.statistic(compute, document_R, rows, SET_REPLICATES)
        for name, compute in computed.items()
    }


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
