"""Fitted weights against scikit-learn, known generating weights, and held-out accuracy."""

from __future__ import annotations

import numpy as np
import pytest

from judge_pipeline.common.records import Prompt, Response
from judge_pipeline.statistics.bootstrap import DocumentBootstrap
from judge_pipeline.statistics.table import AnswerTable, Pair, build_table
from judge_pipeline.statistics.weights_fit import (
    accuracy,
    fit_free,
    fit_non_negative,
    fitted_weights,
    leave_one_out,
    pair_data,
    weights_flag,
)


def world(truth: list[float], prompts: int = 120, noise: float = 0.3) -> tuple[AnswerTable, list[Pair], dict]:
    rng = np.random.default_rng(0)
    table = build_table(
        [
            Prompt(
                id=f"p{n}",
                document_id=f"d{n // 2}",
                context="c",
                query="q",
                responses=[Response(id=str(i), text="t") for i in range(4)],
            )
            for n in range(prompts)
        ]
    )
    scores = rng.integers(0, 11, (table.rows, len(truth))).astype(float)
    liking = scores @ np.array(truth) + rng.normal(0, noise, table.rows)
    pairs = []
    for number, rows in table.slices():
        first, second = rows.start, rows.start + 1
        pairs.append(
            Pair(number, first, second) if liking[first] > liking[second] else Pair(number, second, first)
        )
    columns = {f"dim{i}": scores[:, i] for i in range(len(truth))}
    return table, pairs, columns


def test_non_negative_equals_the_free_fit_where_no_bound_is_met():
    table, pairs, columns = world([1.0, 0.4, 0.2])
    gaps = pair_data(table, pairs, columns).gaps
    assert fit_non_negative(gaps) == pytest.approx(fit_free(gaps), abs=2e-3)


def test_a_dimension_people_dislike_gets_weight_zero_and_a_negative_coefficient():
    table, pairs, columns = world([1.0, -0.8])
    gaps = pair_data(table, pairs, columns).gaps
    assert fit_free(gaps)[1] < -0.1
    assert fit_non_negative(gaps)[1] == 0.0


def test_fitted_weights_beat_equal_ones_on_other_documents_when_dimensions_differ():
    table, pairs, columns = world([1.0, 0.0, 0.0])
    found = fitted_weights(table, pair_data(table, pairs, columns), DocumentBootstrap(table.document_P, 200))
    rows = {row["weights"]: row for row in found["held_out"]}
    assert rows["fitted, non-negative"]["accuracy"]["value"] > 0.9
    assert rows["fitted, non-negative"]["gain"]["low"] > 0
    assert found["weights"]["dim0"] > 2.5
    assert np.mean(list(found["weights"].values())) == pytest.approx(1.0)
    assert found["flag"] == weights_flag(found["weights"])
    assert found["flag"].startswith("--weights dim0=")


def test_leaving_out_the_dimension_that_matters_costs_accuracy():
    table, pairs, columns = world([1.0, 0.0])
    rows = {
        row["reward"]: row
        for row in leave_one_out(
            table, pair_data(table, pairs, columns), DocumentBootstrap(table.document_P, 200)
        )
    }
    assert set(rows) == {"all dimensions", "without dim0", "without dim1", "only dim0", "only dim1"}
    assert rows["without dim0"]["loss"]["low"] > 0
    assert rows["only dim0"]["accuracy"]["value"] == rows["without dim1"]["accuracy"]["value"] > 0.95


def test_ties_count_half_and_missing_scores_drop_a_pair():
    assert accuracy(np.array([[1.0, -1.0], [2.0, 0.0], [-3.0, 1.0]]), np.ones(2)).tolist() == [0.5, 1.0, 0.0]
    table, pairs, columns = world([1.0, 1.0], prompts=4)
    columns["dim0"][pairs[0].winner] = np.nan
    data = pair_data(table, pairs, columns)
    assert (len(data.gaps), data.dropped) == (3, 1)
    assert fitted_weights(table, data, DocumentBootstrap(table.document_P, 10)) is None
