"""`--stack` through the commands: fitted, stored, used by score and evaluate, told in the card, absent when plain."""

from __future__ import annotations

import json

import numpy as np
import pytest

from judge_pipeline.common.config import main
from judge_pipeline.common.record_files import write_records
from reward_model.cli import COMMANDS
from reward_model.modeling.model import read_manifest
from reward_model.modeling.stack import baseline_columns, read_baselines
from reward_model.scoring.scorer import RewardModel
from reward_model.training.stacking import answers_of
from tests.reward_model.conftest import WORDS, make_prompts


def command(*words: object) -> int:
    return main("reward-model", COMMANDS, [str(word) for word in words])


@pytest.fixture
def labelled(tmp_path):
    """Answers whose points are their overlap with the document, which a tiny random model cannot see."""
    rng = np.random.default_rng(0)
    prompts = make_prompts(40, answers=4)
    labels = []
    for row in prompts:
        row["document_id"], row["context"] = row["id"], f"{row['context']} {row['id']}"
        pieces = row["context"].split()
        for place, response in enumerate(row["responses"]):
            start = rng.integers(0, len(pieces) - 7)
            copied = pieces[start : start + 1 + 2 * place]
            response["text"] = " ".join([*copied, *rng.choice(WORDS, 8 - len(copied))])
            labels.append(
                {
                    "prompt_id": row["id"],
                    "response_id": response["id"],
                    "scores": {"faithfulness": 2.0 * place + 1, "logicality": float(rng.integers(0, 10))},
                    "reward": None,
                    "status": "labelled",
                }
            )
        rng.shuffle(row["responses"])
    write_records(tmp_path / "prompts.jsonl", prompts)
    write_records(tmp_path / "labels" / "labels.jsonl", labels)
    (tmp_path / "labels" / "run.yaml").write_text(f"config: {{prompts: {tmp_path / 'prompts.jsonl'}}}\n")
    return tmp_path / "labels"


def test_stack_of_a_probe(labelled, tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr("reward_model.training.stacking.stack_embedding", lambda: None)
    model_dir = tmp_path / "rm"
    run = ("train", labelled, "--base-model", tiny_base, "--output", model_dir, "--method", "probe")
    assert command(*run, "--stack", "--eval-fraction", "0.3") == 0
    spec = read_manifest(model_dir).stack
    assert "faithfulness" in spec.outputs
    card = (model_dir / "README.md").read_text()
    assert "Free baselines" in card
    assert "with baselines" in card
    report = json.loads((model_dir / "probe.json").read_text())
    held = report["stack_held_out"]["faithfulness"]["spearman"]
    assert held["difference"]["value"] == pytest.approx(held["with"]["value"] - held["without"]["value"])
    # Scores are those of the readout with the baselines added; the plain head has none.
    model = RewardModel.from_pretrained(model_dir)
    context, query, texts = "river stone lantern garden", "How is it?", ["river stone lantern", "other words"]
    points = model.score(context, query, texts)
    model.stack = None
    alone = model.score(context, query, texts)
    wanted = spec.apply(alone, read_baselines(spec, context, query, texts), model.dimensions)
    assert points == pytest.approx(wanted, abs=1e-4)
    assert not np.allclose(points, alone)
    assert RewardModel.from_pretrained(model_dir, readout="plain").stack is None
    flags = ("--embedding-model", "none", "--bootstrap", "20", "--likelihood", "off")
    assert command("evaluate", model_dir, labelled, "--output", tmp_path / "o", *flags) == 0
    found = json.loads((tmp_path / "o" / "fidelity.json").read_text())
    rows = {row["name"]: row for row in found["results"][0]["rows"]}
    assert "without the baselines" in rows
    assert any("Free baselines" in note for note in found["notes"])
    assert "Free baselines" in (model_dir / "README.md").read_text()
    assert (
        command("score", model_dir, labelled.parent / "prompts.jsonl", "--output", tmp_path / "s.jsonl") == 0
    )


def test_stack_is_for_the_probe(labelled, tiny_base, tmp_path, capsys):
    run = ("train", labelled, "--base-model", tiny_base, "--output", tmp_path / "rm", "--method", "full")
    assert command(*run, "--stack") == 2
    assert "stack goes with method=probe" in capsys.readouterr().err


def test_baselines_are_those_of_the_answers_in_their_order():
    from dataclasses import dataclass

    @dataclass
    class Item:
        prompt_id: str
        document_id: str
        context: str
        query: str
        responses: tuple[str, ...]

    items = [
        Item("a", "d", "a b c", "q", ("a b", "")),
        Item("b", "e", "x y z", "q", ("x y z",)),
    ]
    table = answers_of(items[::-1], items)
    assert baseline_columns(table, None)["bigram support"].tolist() == [1.0, 1.0, 0.0]
