"""Several judges of the same answers: read side by side, and held against each other.

In: label runs or scored files, by name. Out: predictors for the tables of agreement, and how far the judges agree
among themselves, raw and with chance taken off.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from judge_pipeline.evaluation.inputs import ScoredAnswers, read_onto
from judge_pipeline.statistics.agreement import krippendorff_alpha, prompt_metrics, quadratic_kappa
from judge_pipeline.statistics.bootstrap import DocumentBootstrap
from judge_pipeline.statistics.table import AnswerTable, Floats, Ints

REPLICATES = 200
"""Figures over the whole set are computed again on each resample."""
RAW_AND_CHANCE = ("pairs", "somers_d", "best_of_n", "best_above_chance")

Columns = Mapping[str, Floats]
"""Dimension → scores (R,), the reward among them."""


def read_judges(table: AnswerTable, judges: Mapping[str, Path]) -> tuple[dict[str, Columns], list[str]]:
    """Name → columns of each further judge, and what the reader should know of their files."""
    found: dict[str, ScoredAnswers] = {name: read_onto(table, path) for name, path in judges.items()}
    notes = [f"{name}: {note}" for name, scored in found.items() for note in scored.notes]
    return {name: scored.columns for name, scored in found.items()}, notes


def between_judges(
    table: AnswerTable, judges: Mapping[str, Columns], bootstrap: DocumentBootstrap
) -> dict[str, Any]:
    """Dimension → α over all judges, and every two of them: order within prompts and points over the set."""
    names = dict.fromkeys(name for columns in judges.values() for name in columns)
    found: dict[str, Any] = {}
    for name in names:
        columns = {judge: given[name] for judge, given in judges.items() if name in given}
        if len(columns) < 2:
            continue
        values_KR = np.stack(list(columns.values()))
        rows = np.flatnonzero(np.isfinite(values_KR).sum(axis=0) > 1)
        alpha = bootstrap.statistic(_alpha_of(values_KR), table.document_R, rows, REPLICATES)
        found[name] = {
            "alpha": alpha.as_json(),
            "pairs": [_two(table, *two, bootstrap) for two in itertools.combinations(columns.items(), 2)],
        }
    return found


def _alpha_of(values_KR: Floats) -> Callable[[Ints], float | None]:
    return lambda rows: krippendorff_alpha(values_KR[:, rows])


def _two(
    table: AnswerTable, one: tuple[str, Floats], other: tuple[str, Floats], bootstrap: DocumentBootstrap
) -> dict[str, Any]:
    """Two judges: the second as a prediction of the first, on answers that both scored."""
    rows = np.flatnonzero(np.isfinite(one[1]) & np.isfinite(other[1]))
    metrics = prompt_metrics(table, one[1], other[1])
    kappa = bootstrap.statistic(
        lambda rows: quadratic_kappa(one[1][rows], other[1][rows]), table.document_R, rows, REPLICATES
    )
    return {
        "judges": [one[0], other[0]],
        "answers": len(rows),
        **{name: bootstrap.ratio(metrics[name]).as_json() for name in RAW_AND_CHANCE},
        "kappa": kappa.as_json(),
    }
