"""The command line: defaults in the help, flags and YAML, errors without tracebacks."""

from __future__ import annotations

import json

import pytest
import yaml

from judge_pipeline.common.config import leaves
from reward_model.cli import COMMANDS, main
from reward_model.training.train_config import TrainConfig


def test_every_command_has_an_example_and_describes_its_settings():
    found = {command.name: command for command in COMMANDS}
    assert {"train", "score", "evaluate", "doctor"} <= set(found)
    for command in found.values():
        assert command.example.startswith(f"reward-model {command.name}")
        for leaf in leaves(command.config):
            assert leaf.field.description, leaf.dotted


@pytest.mark.parametrize("name", ["train", "score"])
def test_help_states_every_default(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    command = next(item for item in COMMANDS if item.name == name)
    for leaf in leaves(command.config):
        if not leaf.extra.get("positional"):
            assert leaf.flag in text
    assert text.count("(default: ") + text.count("(required)") >= len(list(leaves(command.config)))


def test_train_and_score_from_the_command_line(label_run, tiny_base, tmp_path, capsys):
    run = label_run(count=6)
    settings = {"base_model": str(tiny_base), "epochs": 1, "method": "full", "loss_options": {"kind": "mse"}}
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(settings | {"learning-rate": 1e-3}))
    words = ["train", str(run), "--config", str(file), "--output", str(tmp_path / "rm"), "--device", "cpu"]
    assert main([*words, "--seed", "7"]) == 0
    kept = yaml.safe_load((tmp_path / "rm" / "run.yaml").read_text())["config"]
    assert (kept["seed"], kept["learning_rate"], kept["loss_options"]["kind"]) == (7, 1e-3, "mse")
    prompts = run.parent / "prompts.jsonl"
    output = tmp_path / "scored.jsonl"
    assert main(["score", str(tmp_path / "rm"), str(prompts), "--output", str(output)]) == 0
    assert "18 of 18 answers to 6 prompts scored" in capsys.readouterr().out
    first = json.loads(output.read_text().splitlines()[0])
    assert {"scores", "reward"} <= set(first["responses"][0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "x", "--base-model", "m"], "--output: is missing"),
        (["train", "nowhere.jsonl", "--base-model", "m", "--output", "o"], "nowhere.jsonl is not there"),
        (["train", "x", "--base-model", "m", "--output", "o", "--learn-rate", "1"], "--learning-rate"),
        (
            ["train", "x", "--base-model", "m", "--output", "o", "--method", "lora", "--freeze-layers", "3"],
            "freeze_layers goes with method=full",
        ),
        (["score", "/nowhere", "p.jsonl", "--output", "o"], "not a finished reward model"),
    ],
)
def test_what_a_user_gets_wrong_is_named(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_yaml_key_that_is_not_known_names_the_nearest(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("epoch: 3\n")
    assert main(["train", "--config", str(file)]) == 2
    assert "did you mean 'epochs'?" in capsys.readouterr().err


def test_defaults_are_a_valid_configuration(tmp_path):
    config = TrainConfig(labels=tmp_path, base_model="m", output=tmp_path / "o")
    assert config.resolved_learning_rate() == 1e-4
    assert config.model_copy(update={"method": "full"}).resolved_learning_rate() == 1e-5
    assert config.rope_parameters() is None
    assert config.model_copy(update={"rope_factor": 4.0}).rope_parameters() == {
        "rope_type": "yarn",
        "factor": 4.0,
    }
