"""The learning curve: nested subsets, one held-out side, resume, and a forecast that is a least-squares line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from judge_pipeline.common.config import main
from reward_model.cli import COMMANDS
from reward_model.fidelity.curve_report import advice, forecast
from reward_model.fidelity.learning_curve import nested_subsets
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


def test_the_command_trains_every_size_once_and_measures_on_the_same_documents(
    label_run, tiny_base, tmp_path, capsys
):
    output = tmp_path / "curve"
    words = ["learning-curve", label_run(count=24), "--base-model", tiny_base, "--output", output]
    words += ["--sizes", "4", "12", "500", "--epochs", "2", "--method", "full", "--learning-rate", "0.01"]
    words += ["--bootstrap", "20"]
    run = [str(word) for word in words]
    assert main("reward-model", COMMANDS, run) == 0
    first = capsys.readouterr().out
    assert "sizes [500] are left out" in first
    curve = json.loads((output / "curve.json").read_text())
    assert [point["size"] for point in curve["points"]] == [4, 12]
    ids = [
        {json.loads(line)["id"] for line in (output / f"size-{size:05d}" / "prompts.jsonl").open()}
        for size in (4, 12)
    ]
    assert ids[0] < ids[1]
    measured = [json.loads((output / f"size-{size:05d}" / "fidelity.json").read_text()) for size in (4, 12)]
    assert measured[0]["prompts"] == measured[1]["prompts"] == curve["held_out"]["prompts"] > 0
    assert np.isfinite(curve["points"][1]["main"]["value"])
    assert not list(output.glob("size-*/model"))  # weights go once they are measured
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
