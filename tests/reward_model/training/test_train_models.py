"""Training models that need more than the plain path: stretched windows, 4-bit weights, no shared prefix."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GptOssConfig,
    GptOssForCausalLM,
)

from judge_pipeline.common.config import main as run_command
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_prompts
from judge_pipeline.common.records import DIMENSIONS
from reward_model.cli import COMMANDS
from reward_model.modeling.model import read_manifest
from reward_model.scoring.score import score_file
from reward_model.scoring.score_config import ScoreConfig
from reward_model.scoring.scorer import RewardModel
from reward_model.training.train import train
from reward_model.training.train_config import TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def settings(run: Path, base: Path, output: Path, **changes) -> TrainConfig:
    values = {"epochs": 1, "learning_rate": 1e-3, "token_budget": 800, "device": "cpu", "eval_fraction": 0.25}
    return TrainConfig(labels=run, base_model=str(base), output=output, **(values | changes))


def plain_points(path: Path, prompts: Path) -> np.ndarray:
    """Plain transformers, an answer at a time."""
    plain = AutoModelForSequenceClassification.from_pretrained(path).eval()
    ours = RewardModel.from_pretrained(path, device="cpu", shared_prefix="off")
    rows = []
    for prompt in read_prompts(prompts):
        prefix = ours.render(prompt.context, prompt.query)
        for response in prompt.responses:
            with torch.no_grad():
                rows.append(plain(torch.tensor([prefix + ours.render_answer(response.text)])).logits[0])
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_stretched_window_reaches_the_saved_model(label_run, tiny_base, tmp_path, method):
    run = label_run(count=4)
    prompts = run.parent / "prompts.jsonl"
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    for row in rows[:2]:  # one document, over the base model's window of 1024
        row["context"] += " and so on" * 110
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"2 of \d prompts are longer than the model's window of 1024 tokens"):
        train(settings(run, tiny_base, tmp_path / "short", method=method))
    out = train(settings(run, tiny_base, tmp_path / "out", method=method, rope_factor=2.0, head_init="mean"))
    assert read_manifest(out).max_length == 2048
    config = json.loads((out / "config.json").read_text())
    assert config["max_position_embeddings"] == 2048
    assert (config["rope_parameters"]["rope_type"], config["rope_parameters"]["factor"]) == ("yarn", 2.0)
    model = RewardModel.from_pretrained(out, device="cpu")
    points = [model.score(p.context, p.query, [r.text for r in p.responses]) for p in read_prompts(prompts)]
    np.testing.assert_allclose(np.concatenate(points), plain_points(out, prompts), atol=1e-4)


def test_a_fifth_dimension_flows_from_labels_to_scores(label_run, tiny_base, tmp_path):
    run = label_run(count=4)
    rows = [json.loads(line) for line in (run / "labels.jsonl").read_text().splitlines()]
    for place, row in enumerate(rows):
        row["scores"]["brevity"] = float(place % 7)
    (run / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    weights = {"brevity": 4.0}
    out = train(settings(run, tiny_base, tmp_path / "out", method="full", weights=weights))
    names = [*DIMENSIONS, "brevity"]
    assert read_manifest(out).dimensions == names
    output = tmp_path / "scored.jsonl"
    score_file(ScoreConfig(model=out, prompts=run.parent / "prompts.jsonl", output=output, device="cpu"))
    for prompt in read_prompts(output):
        for response in prompt.responses:
            points = [response.scores[name] for name in names]
            if all(0 < value < 10 for value in points):
                assert response.reward == pytest.approx(np.dot(points, [1, 1, 1, 1, 4]) / 8, abs=1e-4)


@pytest.fixture
def sinks_base(tiny_base: Path, tmp_path: Path) -> Path:
    """A tiny GPT-OSS: attention sinks cannot share a prefix."""
    path = tmp_path / "sinks"
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,
    )
    GptOssForCausalLM(config).save_pretrained(path)
    return path


def test_a_model_that_cannot_share_runs_one_by_one_when_the_user_says_so(
    label_run, sinks_base, tmp_path, capsys
):
    run = label_run(count=8)
    prompts = run.parent / "prompts.jsonl"
    config = settings(run, sinks_base, tmp_path / "out", method="full", head_init="mean")
    with pytest.raises(UserError, match="attention sinks") as caught:
        train(config.model_copy(update={"output": tmp_path / "refused"}))
    assert "--shared-prefix off" in str(caught.value)
    out = train(config.model_copy(update={"shared_prefix": "off"}))
    assert "head starts at the mean" in capsys.readouterr().err
    scoring = ScoreConfig(model=out, prompts=prompts, output=tmp_path / "scored.jsonl", device="cpu")
    with pytest.raises(UserError, match="attention sinks"):
        score_file(scoring.model_copy(update={"output": tmp_path / "no.jsonl"}))
    score_file(scoring.model_copy(update={"shared_prefix": "off"}))
    scored = [[r.scores[n] for n in DIMENSIONS] for p in read_prompts(scoring.output) for r in p.responses]
    np.testing.assert_allclose(scored, np.clip(plain_points(out, prompts), 0, 10), atol=1e-4)
    words = ["evaluate", out, run, "--output", tmp_path / "fidelity", "--embedding-model", "none"]
    words = [*map(str, words), "--bootstrap", "20"]
    assert run_command("reward-model", COMMANDS, words) == 2
    assert "--shared-prefix off" in capsys.readouterr().err
    assert (
        run_command("reward-model", COMMANDS, [*words, "--shared-prefix", "off", "--existing", "replace"])
        == 0
    )


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_qlora_trains_on_4_bit_weights_and_merges_into_plain_ones(label_run, tiny_base, tmp_path):
    run = label_run(count=6)
    out = train(settings(run, tiny_base, tmp_path / "out", method="qlora", head_init="mean"))
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config
    # Every adapter got a gradient, those behind frozen 4-bit weights too, although the model was evaluated before.
    adapter = load_file(out / "adapter" / "adapter_model.safetensors")
    moved = {name: bool(weight.any()) for name, weight in adapter.items() if "lora_B" in name}
    assert len(moved) == 14
    assert all(moved.values()), moved
    prompts = run.parent / "prompts.jsonl"
    model = RewardModel.from_pretrained(out, device="cpu")
    points = [model.score(p.context, p.query, [r.text for r in p.responses]) for p in read_prompts(prompts)]
    np.testing.assert_allclose(np.concatenate(points), plain_points(out, prompts), atol=1e-4)
    assert np.concatenate(points).std() > 0


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboards_files_stay_when_the_checkpoints_go(label_run, tiny_base, tmp_path):
    out = train(
        settings(label_run(count=4), tiny_base, tmp_path / "out", method="full", report_to="tensorboard")
    )
    assert list((out / "tensorboard").glob("events.out.tfevents.*"))
    assert not (out / "checkpoints").exists()
    assert (out / "metrics.jsonl").is_file()
