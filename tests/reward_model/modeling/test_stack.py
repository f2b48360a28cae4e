"""A stack of free baselines on a model's outputs: kept where it is honestly better, the same when it is read back."""

from __future__ import annotations

import numpy as np
import pytest

from judge_pipeline.statistics.agreement import prompt_metrics
from judge_pipeline.statistics.baselines import words
from judge_pipeline.statistics.table import AnswerTable
from reward_model.modeling.stack import baseline_columns, fit_spec, read_baselines
from reward_model.modeling.stack_spec import OUTPUT, StackSpec, describe
from tests.judge_pipeline.statistics.test_separation import table_of


def answers(seed: int = 0) -> AnswerTable:
    rng = np.random.default_rng(seed)
    table = table_of(prompts=30, answers=5)
    for prompt in table.prompts:
        prompt.context = " ".join(rng.choice(["river", "stone", "garden", "winter"], 40))
        for response in prompt.responses:
            response.text = " ".join(rng.choice(["river", "stone", "fire"], rng.integers(3, 12)))
    return table


def test_baselines_are_added_where_they_help_out_of_fold_and_nowhere_else():
    rng = np.random.default_rng(1)
    table = answers()
    support = baseline_columns(table, None)["bigram support"]
    knows, guesses = rng.normal(size=table.rows), rng.normal(size=table.rows)
    targets = {
        "faithfulness": np.clip(5 + 4 * (support - support.mean()) + 0.2 * knows, 0, 10),
        "logicality": np.clip(5 + knows, 0, 10),
    }
    outputs = {"faithfulness": 5 + 0.2 * knows + 0.1 * guesses, "logicality": targets["logicality"]}
    spec = fit_spec(table, outputs, targets)
    assert set(spec.outputs) == {"faithfulness"}
    alone, stacked = spec.outputs["faithfulness"].pairs
    assert alone == prompt_metrics(table, targets["faithfulness"], outputs["faithfulness"])["pairs"].value
    assert stacked > alone + 0.1
    points = np.stack(list(outputs.values()), axis=1)
    columns = baseline_columns(table, None)
    found = spec.apply(points, np.stack([columns[name] for name in spec.baselines], axis=1), list(outputs))
    assert (found[:, 1] == points[:, 1]).all()
    assert found[:, 0].mean() == pytest.approx(targets["faithfulness"].mean())
    assert prompt_metrics(table, targets["faithfulness"], found[:, 0])["pairs"].value > alone + 0.1
    assert "faithfulness" in describe(spec)


def test_a_stack_of_noise_is_not_kept_however_well_it_fits_its_training_answers():
    """The leak test: in sample these weights would win."""
    rng = np.random.default_rng(2)
    table = answers()
    target = np.clip(rng.normal(5, 2, table.rows), 0, 10)
    perfect = {"faithfulness": target}
    spec = fit_spec(table, perfect, {"faithfulness": target})
    assert not spec.outputs
    assert "none is added" in describe(spec)


def test_scoring_reads_the_same_baselines_one_prompt_at_a_time_and_the_manifest_holds_it_all():
    rng = np.random.default_rng(3)
    table = answers()
    support = baseline_columns(table, None)["bigram support"]
    target = np.clip(5 + 4 * support + rng.normal(0, 0.1, table.rows), 0, 10)
    spec = fit_spec(table, {"faithfulness": rng.normal(size=table.rows)}, {"faithfulness": target})
    again = StackSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    columns = baseline_columns(table, None)
    for number, rows in table.slices():
        prompt = table.prompts[number]
        own = read_baselines(again, prompt.context, prompt.query, [item.text for item in prompt.responses])
        assert own == pytest.approx(np.stack([columns[name][rows] for name in spec.baselines], axis=1))
    assert set(spec.outputs["faithfulness"].weights) == {f"{OUTPUT}faithfulness", *spec.baselines}
    withheld = read_baselines(again, "", "Q?", ["river stone", "stone river"])
    assert withheld[:, spec.baselines.index("bigram support")].tolist() == [0.0, 0.0]
    empty = read_baselines(again, "A river.", "Q?", ["", "river"])
    assert empty[0] == pytest.approx(0)
    assert empty[1][spec.baselines.index("longer answer")] == len(words("river"))
