"""Wins that are length, and judges that a model was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from dpo_helpers import prompt_rows, write_jsonl

from dpo.cli import main


def compare(tmp_path: Path, votes: list[float], lengths: list[int], *flags: str) -> dict[str, Any]:
    """An evaluation of prompts with given votes for A, whose answers are so many characters longer than B's."""
    sides: list[list[dict[str, Any]]] = [prompt_rows(len(votes)), prompt_rows(len(votes))]
    for number, (vote, longer) in enumerate(zip(votes, lengths, strict=True)):
        for side, (reward, extra) in enumerate(((vote * 10, longer), (5.0, 0))):
            text = f"{number} " + "x" * (100 + extra)
            sides[side][number]["responses"] = [{"id": "r", "text": text, "reward": reward}]
    a, b = (write_jsonl(tmp_path / f"{name}.jsonl", rows) for name, rows in zip("ab", sides, strict=True))
    output = tmp_path / "out"
    assert main(["evaluate", str(a), str(b), "--output", str(output), "--existing", "replace", *flags]) == 0
    found: dict[str, Any] = json.loads((output / "evaluation.json").read_text())
    return found


def test_wins_that_come_with_length_are_taken_out(tmp_path: Path, capsys):
    rng = np.random.default_rng(0)
    lengths = rng.integers(-20, 80, 80).tolist()
    wins_by_length = [float(rng.random() < 1 / (1 + np.exp(-longer / 15))) for longer in lengths]
    found = compare(tmp_path, wins_by_length, lengths)
    assert found["preference"]["value"] > 0.7
    assert found["length_controlled"]["value"] == pytest.approx(0.5, abs=0.15)
    assert found["length_controlled"]["low"] < 0.5 < found["length_controlled"]["high"]
    assert "won at equal lengths" in capsys.readouterr().out
    assert "at equal lengths" in (tmp_path / "out" / "report.html").read_text()


def test_wins_that_do_not_are_left(tmp_path: Path):
    rng = np.random.default_rng(1)
    votes = rng.choice([1.0, 0.5, 0.0], 80, p=[0.6, 0.2, 0.2]).tolist()
    found = compare(tmp_path, votes, rng.integers(-50, 50, 80).tolist())
    assert found["length_controlled"]["value"] == pytest.approx(found["preference"]["value"], abs=0.05)
    always = compare(tmp_path, [1.0] * 6, [0, 5, 10, 3, 2, 1])
    assert always["length_controlled"]["value"] == 1.0


def recorded(path: Path, command: str, **config: Any) -> None:
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in config.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"command": command, "config": settings}))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A's model was trained from one that was trained on the rewards of `rm`, itself on the labels of a judge."""
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "reward_model.json").write_text("{}")
    recorded(tmp_path / "labels" / "run.yaml", "judge-pipeline label", judge={"model": "gpt"})
    recorded(
        tmp_path / "scored1.jsonl.run.yaml", "reward-model score", model=tmp_path / "rm", prompts="s.jsonl"
    )
    recorded(tmp_path / "pairs1.jsonl.run.yaml", "dpo pairs", scored=tmp_path / "scored1.jsonl", labels=None)
    recorded(tmp_path / "first" / "run.yaml", "dpo train", pairs=tmp_path / "pairs1.jsonl", model="smollm2")
    recorded(
        tmp_path / "pairs2.jsonl.run.yaml",
        "dpo pairs",
        scored=tmp_path / "x.jsonl",
        labels=tmp_path / "labels",
    )
    recorded(
        tmp_path / "second" / "run.yaml",
        "dpo train",
        pairs=tmp_path / "pairs2.jsonl",
        model=tmp_path / "first",
    )
    recorded(tmp_path / "drawn.jsonl.run.yaml", "dpo sample", model=tmp_path / "second")
    recorded(
        tmp_path / "a.jsonl.run.yaml",
        "reward-model score",
        model=tmp_path / "rm",
        prompts=tmp_path / "drawn.jsonl",
    )
    return tmp_path


def test_the_reward_that_was_trained_on_does_not_decide_without_a_word(runs: Path, capsys):
    found = compare(
        runs, [1.0, 0.0], [0, 0]
    )  # the rewards in A's file are those of the model's own reward model
    assert len(found["warnings"]) == 1
    assert "A was trained on the rewards of the reward model" in capsys.readouterr().err
    assert "Warning: A was trained" in (runs / "out" / "report.html").read_text()


@pytest.mark.parametrize(("judge", "warned"), [("gpt", True), ("another", False)])
def test_the_judge_whose_labels_were_trained_on(runs: Path, judge: str, warned: bool):
    labels = [
        {"prompt_id": f"p{i}", "response_id": "r", "scores": {}, "reward": 5.0 + i, "status": "labelled"}
        for i in range(2)
    ]
    for side in "ab":
        recorded(runs / side / "run.yaml", "judge-pipeline label", judge={"model": judge})
        write_jsonl(runs / side / "labels.jsonl", labels)
    found = compare(runs, [1.0, 0.0], [0, 0], "--labels-a", str(runs / "a"), "--labels-b", str(runs / "b"))
    assert bool(found["warnings"]) == warned


def test_other_rewards_are_no_matter(tmp_path: Path):
    assert compare(tmp_path, [1.0, 0.0], [0, 0])["warnings"] == []
