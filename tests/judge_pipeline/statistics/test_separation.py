"""Correlations between outputs against numpy and pandas-free references; one number in four columns is called so."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from judge_pipeline.common.records import DIMENSIONS, Prompt, Response
from judge_pipeline.statistics.bootstrap import DocumentBootstrap
from judge_pipeline.statistics.separation import mean_correlation, partial_correlation, remarks, separation
from judge_pipeline.statistics.table import AnswerTable, build_table


def table_of(prompts: int = 20, answers: int = 6) -> AnswerTable:
    return build_table(
        [
            Prompt(
                id=f"p{n}",
                document_id=f"d{n}",
                context="c",
                query="q",
                responses=[Response(id=str(i), text="t") for i in range(answers)],
            )
            for n in range(prompts)
        ]
    )


def test_partial_correlation_equals_that_of_the_inverse_covariance():
    """Another road to the same figure: -P_ij / √(P_ii P_jj) of the precision matrix P."""
    rng = np.random.default_rng(0)
    given = rng.normal(size=(200, 3))
    first = given @ [1.0, 0.5, 0.0] + rng.normal(size=200)
    second = given @ [0.2, 0.0, -1.0] + 0.7 * first + rng.normal(size=200)
    precision = np.linalg.inv(np.cov(np.column_stack([first, second, given]).T))
    wanted = -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])
    assert partial_correlation(first, second, given) == pytest.approx(wanted)
    assert partial_correlation(first, given[:, 0], given) is None  # nothing of it is left


def test_columns_that_move_against_each_other_do_not_make_up_for_those_that_move_together():
    """Four columns that are one number, two of them turned round: the mean of signed correlations is -1/3."""
    one = np.random.default_rng(2).normal(size=50)
    columns = np.stack([one, 3 * one, -one, 1 - one], axis=1)
    assert mean_correlation(columns) == pytest.approx(1.0)
    free = np.random.default_rng(3).normal(size=(60, 3))
    free[7] = np.nan
    wanted = np.abs(np.corrcoef(np.delete(free, 7, axis=0).T)[np.triu_indices(3, 1)]).mean()
    assert mean_correlation(free) == pytest.approx(wanted)
    assert mean_correlation(columns[:, :1]) is None


def test_one_number_in_four_columns_is_called_so_and_four_scores_are_not():
    rng = np.random.default_rng(1)
    table = table_of()
    targets = {name: rng.normal(size=table.rows) for name in DIMENSIONS}
    boot = DocumentBootstrap(table.document_P, 100)
    total = np.mean(list(targets.values()), axis=0)
    same = {name: total + 0.01 * rng.normal(size=table.rows) for name in DIMENSIONS}
    found = separation(table, targets, same, boot)
    assert len(found["pairs"]) == 6
    assert all(pair["together"] for pair in found["pairs"])
    assert "move together" in remarks(found)[0]
    assert "helpfulness and logicality 1.00" in remarks(found)[0]
    own = {name: column + 0.5 * rng.normal(size=table.rows) for name, column in targets.items()}
    found = separation(table, targets, own, boot)
    assert remarks(found) == []
    for name in DIMENSIONS:
        assert found["partial"][name]["value"] > 0.8
        assert (
            found["partial"][name]["low"] < found["partial"][name]["value"] < found["partial"][name]["high"]
        )


def test_figures_are_within_prompts_and_over_all_and_leave_missing_answers_out():
    rng = np.random.default_rng(2)
    table = table_of()
    level = np.repeat(5 * rng.normal(size=20), 6)
    targets = {name: rng.normal(size=table.rows) + level for name in ("a", "b")}
    outputs = {name: rng.normal(size=table.rows) + level for name in ("a", "b", "c")}
    outputs["b"][:3] = np.nan
    found = separation(table, targets, outputs, DocumentBootstrap(table.document_P, 20))
    assert found["answers"] == table.rows - 3
    (pair,) = found["pairs"]
    known = slice(3, None)
    assert pair["overall"]["outputs"] == pytest.approx(
        stats.pearsonr(outputs["a"][known], outputs["b"][known]).statistic
    )
    centred = {
        name: np.concatenate([values[rows] - values[rows].mean() for rows in _rows(table, 3)])
        for name, values in outputs.items()
    }
    assert pair["within"]["outputs"] == pytest.approx(stats.pearsonr(centred["a"], centred["b"]).statistic)
    assert abs(pair["within"]["targets"]) < 0.3 < pair["overall"]["targets"]
    assert separation(table, targets, {"a": outputs["a"]}, DocumentBootstrap(table.document_P, 20)) == {}


def _rows(table: AnswerTable, first: int) -> list[np.ndarray]:
    return [np.arange(max(part.start, first), part.stop) for _, part in table.slices()]
