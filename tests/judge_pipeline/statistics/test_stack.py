"""The ridge on several scores: against scikit-learn's own, out of fold only, and no leak between documents."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from judge_pipeline.statistics.agreement import prompt_metrics
from judge_pipeline.statistics.stack import fit_stack, graded_rows, levelled_rows, out_of_fold, preferred_rows
from judge_pipeline.statistics.table import Pair
from tests.judge_pipeline.statistics.test_separation import table_of


def test_weights_are_a_ridge_on_what_differs_within_prompts():
    rng = np.random.default_rng(0)
    table = table_of()
    level = np.repeat(9 * rng.normal(size=20), 6)
    columns = {"a": rng.normal(size=120) + level, "b": 40 * rng.normal(size=120)}
    target = 2 * columns["a"] + 0.1 * columns["b"] + 7 * level + rng.normal(size=120)
    rows = graded_rows(table, columns, target)
    found = fit_stack(rows, list(columns))
    centred = {
        name: values - np.repeat(values.reshape(20, 6).mean(1), 6)
        for name, values in (*columns.items(), ("y", target))
    }
    scale = np.array([np.sqrt(np.mean(centred[name] ** 2)) for name in columns])
    peer = Ridge(found.penalty, fit_intercept=False).fit(
        np.column_stack([centred["a"], centred["b"]]) / scale, centred["y"]
    )
    assert found.weight == pytest.approx(peer.coef_ / scale)
    assert found.weight == pytest.approx([2, 0.1], rel=0.2)
    assert prompt_metrics(table, target, found.apply(columns))["spearman"].value > 0.8


def test_order_and_level_together_are_a_ridge_with_an_intercept():
    rng = np.random.default_rng(3)
    table = table_of()
    columns = {"a": rng.normal(size=120) + 4, "b": 40 * rng.normal(size=120)}
    target = 2 * columns["a"] + 0.1 * columns["b"] + rng.normal(size=120) - 30
    target[:5] = np.nan
    found = fit_stack(levelled_rows(table, columns, target), list(columns))
    features = np.column_stack(list(columns.values()))[5:]
    scale = features.std(axis=0)
    peer = Ridge(found.penalty).fit(features / scale, target[5:])
    assert found.weight == pytest.approx(peer.coef_ / scale)


def test_answers_are_scored_by_weights_that_never_saw_their_document():
    """Columns that name single documents order a target of noise only where they were fitted to it."""
    rng = np.random.default_rng(1)
    table = table_of()
    target = rng.normal(size=120)
    columns = {f"document {n}": np.where(table.document_R == n, target, 0.0) for n in range(20)}
    rows = graded_rows(table, columns, target)
    leaked = fit_stack(rows, list(columns)).apply(columns)
    honest = out_of_fold(table, columns, rows)
    assert prompt_metrics(table, target, leaked)["pairs"].value > 0.99
    assert prompt_metrics(table, target, honest)["pairs"].value == 0.5


def test_peoples_choices_teach_too_and_missing_scores_drop_rows():
    rng = np.random.default_rng(2)
    table = table_of()
    columns = {"a": rng.normal(size=120), "b": rng.normal(size=120)}
    pairs = []
    for number, part in table.slices():
        better, worse = sorted((part.start, part.start + 1), key=lambda row: -columns["a"][row])
        pairs.append(Pair(number, better, worse))
    columns["b"][pairs[0].winner] = np.nan
    rows = preferred_rows(table, columns, pairs)
    assert len(rows.wanted) == 2 * 19
    weights = fit_stack(rows, list(columns)).weight
    assert weights[0] > 3 * abs(weights[1])
    found = out_of_fold(table, columns, rows)
    assert np.isnan(found[pairs[0].winner])
    assert np.mean([found[p.winner] > found[p.loser] for p in pairs[1:]]) > 0.85


def test_one_document_has_no_fold_to_be_left_out_of():
    table = table_of(prompts=1)
    columns = {"a": np.arange(6.0)}
    rows = graded_rows(table, columns, np.arange(6.0))
    assert out_of_fold(table, columns, rows) is None
    assert fit_stack(rows, ["a"]).weight[0] > 0
