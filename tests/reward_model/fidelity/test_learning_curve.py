"""The learning curve: nested subsets, one held-out side, resume, and a forecast that is a least-squares line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from judge_pipeline.common.config import main
from reward_model.cli import COMMANDS
from reward_model.data.examples import load_examples
from reward_model.fidelity.curve_report import advice, curve_rows, forecast, summarise
from reward_model.fidelity.learning_curve import nested_subsets, plan_runs, split_sides
from reward_model.fidelity.learning_curve_config import LearningCurveConfig


def test_subsets_are_nested_and_depend_on_the_seed():
    names = [f"p{i}" for i in range(50)]
    found = nested_subsets(names, [5, 10, 40, 60], 0)
    assert list(found) == [5, 10, 40]
    assert set(found[5]) < set(found[10]) < set(found[40])
    assert nested_subsets(list(reversed(names)), [5], 0)[5] == found[5]
    assert nested_subsets(names, [5], 1)[5] != found[5]


def test_the_forecast_is_a_line_through_figure_against_log_size():
    found = forecast([(10, 0.2), (20, 0.3), (40, 0.4)])
    assert found["gain_per_doubling"] == pytest.approx(0.1)
    assert found["scatter"] == pytest.approx(0, abs=1e-9)
    assert (found["next_size"], found["expected_there"]) == (80, pytest.approx(0.5))
    assert forecast([(10, 0.2)]) is None


def test_advice_says_when_a_gain_is_within_the_noise_and_what_it_costs():
    curve = {
        "main_figure": "reward, Spearman within prompts",
        "forecast": forecast([(50, 0.40), (100, 0.41)]),
        "points": [{"size": 100, "main": {"value": 0.41, "low": 0.3, "high": 0.5}}],
        "judge_cost_per_prompt": {"calls": 58, "input_tokens": 208_000},
    }
    text = advice(curve)
    assert "smaller than the uncertainty" in text
    assert "5,800 more judge calls and 20,800,000 input tokens" in text


def test_every_size_may_take_the_steps_of_the_largest_with_every_seed():
    runs = plan_runs([f"p{i}" for i in range(40)], [10, 40, 90], seeds=2, seed=5)
    assert [(len(run.ids), run.seed, run.longer) for run in runs] == [
        (10, 5, 4.0),
        (10, 6, 4.0),
        (40, 5, 1.0),
        (40, 6, 1.0),
    ]
    assert set(runs[0].ids) != set(runs[1].ids)


def test_documents_to_stop_by_are_neither_trained_on_nor_measured(label_run, tiny_base, tmp_path):
    given = {"labels": label_run(count=24), "base_model": str(tiny_base), "output": tmp_path}
    config = LearningCurveConfig.model_validate(given)
    items = list(load_examples(config.labels).items)
    sides = split_sides(items, config)
    document = {item.prompt_id: item.document_id for item in items}
    parts = [{document[name] for name in side} for side in (sides.train, sides.stop, sides.held_out)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts))
    probe = split_sides(items, config.model_copy(update={"method": "probe"}))
    assert not probe.stop
    assert probe.held_out == sides.held_out


def test_a_point_is_the_mean_over_its_seeds_with_their_range():
    def step(seed: int, value: float) -> dict:
        figure = {"value": value, "low": value - 0.1, "high": value + 0.1, "count": 9}
        row = {"name": "m", "kind": "model", "within": {"spearman": figure}}
        found = {"prompts": 9, "documents": 6, "results": [{"target": "reward", "rows": [row]}]}
        return {"size": 10, "seed": seed, "steps": 5 + seed, "fidelity": found}

    (point,) = (curve := summarise([step(0, 0.3), step(1, 0.5)], {}))["points"]
    assert point["main"] == {
        "value": pytest.approx(0.4),
        "low": pytest.approx(0.3),
        "high": pytest.approx(0.5),
        "range": [0.3, 0.5],
        "count": 9,
    }
    assert curve_rows(curve)[1] == [["10", "5–6", "0.40 ±0.10"]]


@pytest.mark.parametrize("method", ["probe", "full"])
def test_the_command_trains_every_size_once_and_measures_on_the_same_documents(
    label_run, tiny_base, tmp_path, capsys, method
):
    output = tmp_path / "curve"
    words = ["learning-curve", label_run(count=32), "--base-model", tiny_base, "--output", output]
    words += ["--sizes", "4", "10", "500", "--epochs", "1", "--method", method, "--learning-rate", "0.01"]
    words += ["--bootstrap", "20", "--seeds", "2" if method == "probe" else "1"]
    run = [str(word) for word in words]
    assert main("reward-model", COMMANDS, run) == 0
    first = capsys.readouterr().out
    assert "sizes [500] are left out" in first
    curve = json.loads((output / "curve.json").read_text())
    assert [point["size"] for point in curve["points"]] == [4, 10]
    assert len(curve["points"][0]["seeds"]) == (2 if method == "probe" else 1)
    folders = [output / f"size-{size:05d}" / "seed-0" for size in (4, 10)]
    ids = [{json.loads(line)["id"] for line in (folder / "prompts.jsonl").open()} for folder in folders]
    assert ids[0] < ids[1]
    steps = [json.loads((folder / "step.json").read_text()) for folder in folders]
    measured = [step["fidelity"] for step in steps]
    assert measured[0]["prompts"] == measured[1]["prompts"] == curve["held_out"]["prompts"] > 0
    assert [step["steps"] > 0 for step in steps] == [method == "full"] * 2
    assert np.isfinite(curve["points"][1]["main"]["value"])
    assert not list(output.glob("size-*/*/model"))  # weights go once they are measured
    assert "Fidelity" in (output / "report.html").read_text()
    # Again: nothing is trained.
    assert main("reward-model", COMMANDS, run) == 0
    assert "training on" not in capsys.readouterr().out


def test_settings_of_training_are_taken_whole_but_for_its_own_split(tmp_path):
    given = {"labels": tmp_path, "base_model": "b", "output": tmp_path}
    config = LearningCurveConfig.model_validate({**given, "lora": {"rank": 4}, "warmup": 0.2})
    assert (config.lora.rank, config.warmup, config.eval_fraction) == (4, 0.2, 0.25)
    with pytest.raises(ValueError, match="--eval-fraction"):
        LearningCurveConfig.model_validate({**given, "eval_labels": tmp_path})
