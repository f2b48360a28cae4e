"""Rounds: every model answers, is scored, checked and trained into the next; stopped runs go on; bad settings are known first."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from dpo_helpers import make_model, prompt_rows, read_jsonl, write_jsonl
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from dpo.cli import main
from reward_model.modeling.model import load_backbone_for_rm, save_reward_model


@pytest.fixture
def plan(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    backbone = load_backbone_for_rm(str(tiny_model), dtype=torch.float32)
    torch.nn.init.normal_(backbone.model.score.weight, std=0.3)
    save_reward_model(backbone.model, backbone.tokenizer, tmp_path / "rm", backbone.manifest)
    quick = {"device": "cpu", "dtype": "float32"}
    return {
        "prompts": str(write_jsonl(tmp_path / "prompts.jsonl", prompt_rows(3))),
        "eval_prompts": str(write_jsonl(tmp_path / "held.jsonl", [{**prompt_rows(5)[4], "id": "held"}])),
        "model": str(tiny_model),
        "reward_model": str(tmp_path / "rm"),
        "output": str(tmp_path / "rounds"),
        "rounds": 1,
        "sample": {**quick, "n": 3, "max_new_tokens": 6, "engine": "transformers"},
        "score": {"device": "cpu"},
        "pairs": {"min_responses": 2, "keep_flagged": ["truncated"]},
        "train": {
            "device": "cpu",
            "precision": "fp32",
            "max_steps": 1,
            "eval_fraction": 0,
            "learning_rate": 1e-2,
        },
    }


def rounds(tmp_path: Path, plan: dict[str, Any], *flags: str) -> int:
    path = tmp_path / "round.yaml"
    path.write_text(yaml.safe_dump(plan))
    return main(["round", "--config", str(path), *flags])


def test_each_rounds_model_is_made_of_the_one_before(tmp_path: Path, plan: dict[str, Any], capsys):
    assert rounds(tmp_path, plan) == 0
    folder = tmp_path / "rounds"
    table = json.loads((folder / "rounds.json").read_text())["rounds"]
    assert [row["model"] for row in table] == [plan["model"], str(folder / "round-0" / "model")]
    assert [(row["prompts"], row["answers"]) for row in table] == [(1, 3), (1, 3)]  # the held-out prompt
    scored = read_jsonl(folder / "round-1" / "eval.scored.jsonl")
    rewards = [answer["reward"] for answer in scored[0]["responses"]]
    assert table[1]["reward"] == pytest.approx(sum(rewards) / 3)
    assert table[1]["length"] == pytest.approx(sum(len(a["text"]) for a in scored[0]["responses"]) / 3)
    assert not (folder / "round-1" / "answers.jsonl").exists()  # nothing is trained on them
    said = capsys.readouterr().out
    assert "judge (answers)" in said
    begun = (folder / "round-0" / "answers.jsonl").stat().st_mtime_ns
    trained = (folder / "round-0" / "model" / "model.safetensors").stat().st_mtime_ns

    assert rounds(tmp_path, plan, "--rounds", "2") == 0  # more rounds go on from those that are there
    assert (folder / "round-0" / "answers.jsonl").stat().st_mtime_ns == begun
    assert (folder / "round-0" / "model" / "model.safetensors").stat().st_mtime_ns == trained
    run = yaml.safe_load((folder / "round-1" / "model" / "run.yaml").read_text())["config"]
    assert (run["model"], run["seed"], run["merge"]) == (str(folder / "round-0" / "model"), 1, True)
    sampled = yaml.safe_load((folder / "round-1" / "answers.jsonl.run.yaml").read_text())["config"]
    assert (sampled["model"], sampled["seed"], sampled["n"]) == (str(folder / "round-0" / "model"), 1, 3)
    assert len(json.loads((folder / "rounds.json").read_text())["rounds"]) == 3


def test_the_judge_checks_the_same_prompts_in_every_round(tmp_path: Path, plan: dict[str, Any]):
    sys.path.append(str(Path(__file__).parents[2] / "judge_pipeline"))
    from judge_servers import JudgeServer

    plan |= {"eval_prompts": None, "check": 2, "label": {"retrieval": "bm25", "dimensions": ["helpfulness"]}}
    with JudgeServer() as server:
        plan["judge"] = {"base_url": [server.url], "model": "judge"}
        assert rounds(tmp_path, plan) == 0
    for row in json.loads((tmp_path / "rounds" / "rounds.json").read_text())["rounds"]:
        assert row["checked"] == 2
        assert 0 <= row["judge"] <= 10
        checked = read_jsonl(tmp_path / "rounds" / f"round-{row['round']}" / "check.jsonl")
        assert [(prompt["id"], len(prompt["responses"])) for prompt in checked] == [("p0", 1), ("p1", 1)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": {"beat": 0.2}}, "train: unknown key 'beat'"),
        ({"pairs": {"min_margin": -1}}, "pairs: --min-margin"),
        ({"sample": {"model": "m"}}, "sample: 'model' is set by the round"),
        ({"smaple": {"n": 2}}, "unknown key 'smaple.n'"),
    ],
)
def test_a_wrong_setting_is_known_before_anything_is_sampled(tmp_path, plan, capsys, changes, words):
    assert rounds(tmp_path, {**plan, **changes}) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "rounds").exists()


def test_training_goes_through_the_launcher(tmp_path: Path, plan: dict[str, Any]):
    script = tmp_path / "launch.py"
    script.write_text(
        "import pathlib, sys\npathlib.Path(sys.argv[1]).write_text(' '.join(sys.argv[2:]))\nsys.exit(3)\n"
    )
    note = tmp_path / "asked"
    plan |= {"eval_prompts": None, "launch": f"{sys.executable} {script} {note}"}
    assert rounds(tmp_path, plan) == 2
    settings = tmp_path / "rounds" / "round-0" / "train.yaml"
    assert note.read_text() == f"-m dpo.cli train --config {settings}"
    given = yaml.safe_load(settings.read_text())
    assert (given["model"], given["max_steps"]) == (plan["model"], 1)


def test_rounds_begin_from_another_model(tmp_path: Path, plan: dict[str, Any]):
    make_model(seed=1).save_pretrained(tmp_path / "other")
    assert rounds(tmp_path, plan) == 0
    assert (
        rounds(tmp_path, {**plan, "model": str(tmp_path / "other")}) == 2
    )  # not over the rounds of the first


def test_rounds_begin_from_an_adapter(tmp_path: Path, plan: dict[str, Any], tiny_model: Path):
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    )
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")  # without a tokenizer: its base's is taken
    assert rounds(tmp_path, {**plan, "model": str(tmp_path / "adapter"), "eval_prompts": None}) == 0
    start = tmp_path / "rounds" / "start"
    ids = torch.randint(3, 400, (1, 20))
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(start)(ids).logits
        torch.testing.assert_close(merged, adapted(ids).logits, atol=1e-4, rtol=1e-4)
    table = json.loads((tmp_path / "rounds" / "rounds.json").read_text())["rounds"]
    assert table[0]["model"] == str(start)
