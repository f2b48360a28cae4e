"""Training end to end on a tiny model: what is saved, what is refused, what is written."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_prompts
from judge_pipeline.common.records import DIMENSIONS
from judge_pipeline.statistics.agreement import mean_spearman, share_of_pairs
from reward_model.modeling.model import MANIFEST, load_reward_model, read_manifest
from reward_model.scoring.scorer import RewardModel
from reward_model.training.guards import TRAINING_KNOBS, explain_out_of_memory
from reward_model.training.train import train
from reward_model.training.train_config import TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def settings(run: Path, base: Path, output: Path, **changes) -> TrainConfig:
    values = {"epochs": 2, "learning_rate": 3e-3, "token_budget": 800, "device": "cpu", "eval_fraction": 0.25}
    values["head_init"] = "mean"
    return TrainConfig(labels=run, base_model=str(base), output=output, **(values | changes))


def all_points(path: Path, run: Path) -> np.ndarray:
    model = RewardModel.from_pretrained(path, device="cpu")
    prompts = read_prompts(run.parent / "prompts.jsonl")
    return np.concatenate([model.score(p.context, p.query, [r.text for r in p.responses]) for p in prompts])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_is_trained_saved_and_loads_in_plain_transformers(label_run, tiny_base, tmp_path, method):
    run = label_run(count=12, answers=4)
    out = train(
        settings(run, tiny_base, tmp_path / "out", method=method, epochs=6, loss="regression+pairwise")
    )
    manifest = read_manifest(out)
    assert manifest.dimensions == list(DIMENSIONS)
    assert not manifest.adapter
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    held = [row for row in rows if "eval_loss" in row]
    assert min(losses[-3:]) < losses[0]
    assert held[-1]["eval_reward_pair_accuracy"] > 0.8  # "yes" and "no" are easily told apart
    assert not (out / "checkpoints").exists()
    card = (out / "README.md").read_text()
    assert f"| reward | {held[-1]['eval_reward_spearman']:.3f} |" in card
    assert yaml.safe_load((out / "run.yaml").read_text())["config"]["method"] == method

    ours = RewardModel.from_pretrained(out, device="cpu")
    plain = AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert plain.config.problem_type == "regression"
    assert plain.config.id2label == dict(enumerate(DIMENSIONS))
    prompt = next(read_prompts(run.parent / "prompts.jsonl"))
    answers = [item.text for item in prompt.responses]
    prefix = ours.render(prompt.context, prompt.query)
    with torch.no_grad():
        alone = [plain(torch.tensor([prefix + ours.render_answer(text)])).logits for text in answers]
    shared = ours.score(prompt.context, prompt.query, answers)
    np.testing.assert_allclose(shared, torch.cat(alone).numpy(), atol=1e-4)
    if method == "lora":  # the adapter beside it, with its head, gives the same
        np.testing.assert_allclose(all_points(out / "adapter", run), all_points(out, run), atol=1e-4)


def test_lora_without_merge_is_an_adapter_with_its_head(label_run, tiny_base, tmp_path):
    run = label_run(count=6)
    out = train(settings(run, tiny_base, tmp_path / "out", merge=False, epochs=1))
    assert read_manifest(out).adapter
    assert "# Long-context reward model" in (out / "README.md").read_text()
    assert not (out / "adapter").exists()
    loaded = load_reward_model(out).model
    names = dict(loaded.named_parameters())
    assert any("score" in name and "modules_to_save" in name for name in names)
    assert all_points(out, run).std() > 0


def test_a_finished_run_is_not_repeated_and_another_one_is_refused(label_run, tiny_base, tmp_path, capsys):
    run = label_run(count=4)
    config = settings(run, tiny_base, tmp_path / "out", epochs=1, method="full")
    train(config)
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    train(config)
    assert "nothing to do" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before
    other = config.model_copy(update={"learning_rate": 1e-3})
    with pytest.raises(UserError, match="learning_rate"):
        train(other)
    train(other.model_copy(update={"existing": "replace"}))
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns != before


def test_frozen_layers_stay_as_they_are(label_run, tiny_base, tmp_path):
    run = label_run(count=4)
    out = train(settings(run, tiny_base, tmp_path / "out", method="full", freeze_layers=1, epochs=1))
    before = AutoModelForSequenceClassification.from_pretrained(tiny_base).state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(out).state_dict()
    moved = {name for name in after if name != "score.weight" and not torch.equal(after[name], before[name])}
    assert any(name.startswith("model.layers.1.") for name in moved)
    assert not any(name.startswith(("model.layers.0.", "model.embed_tokens")) for name in moved)
    with pytest.raises(UserError, match="the model has 2 layers"):
        train(settings(run, tiny_base, tmp_path / "other", method="full", freeze_layers=2))


def test_human_preferences_train_one_output(tiny_base, tmp_path):
    rows = []
    for index in range(16):
        texts = [("good", "yes yes yes"), ("bad", "no no no")]
        rows.append(
            {
                "id": f"p{index}",
                "context": f"document {index}",
                "query": "?",
                "responses": [{"id": name, "text": text} for name, text in texts[:: 1 if index % 2 else -1]],
                "preferences": [{"winner": "good", "loser": "bad"}],
            }
        )
    path = tmp_path / "human.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = train(
        settings(
            path,
            tiny_base,
            tmp_path / "out",
            targets="preferences",
            method="full",
            epochs=6,
            token_budget=200,
            learning_rate=1e-3,
        )
    )
    assert read_manifest(out).dimensions == ["overall"]
    assert "People's choices predicted: 100.0%" in (out / "README.md").read_text()
    points = RewardModel.from_pretrained(out, device="cpu").score(
        "a new document", "?", ["yes yes yes", "no no no"]
    )
    assert points[0, 0] > points[1, 0]
    with pytest.raises(UserError, match="--loss regression needs scores"):
        train(settings(path, tiny_base, tmp_path / "o2", targets="preferences", loss="regression"))
    with pytest.raises(UserError, match="needs preferences"):
        train(settings(out_labels(tmp_path), tiny_base, tmp_path / "o3", loss="preference"))


def out_labels(tmp_path: Path) -> Path:
    row = {"id": "p", "context": "c", "query": "q"}
    responses = [{"id": str(i), "text": "t", "human": {"overall": i}} for i in (1, 2)]
    path = tmp_path / "scored.jsonl"
    path.write_text(json.dumps(row | {"responses": responses}) + "\n")
    return path


def test_weights_and_dimensions_are_stored(label_run, tiny_base, tmp_path):
    run = label_run(count=4)
    out = train(
        settings(
            run,
            tiny_base,
            tmp_path / "out",
            method="full",
            epochs=1,
            dimensions=["faithfulness", "helpfulness"],
            weights={"faithfulness": 3},
        )
    )
    manifest = read_manifest(out)
    assert manifest.dimensions == ["faithfulness", "helpfulness"]
    assert manifest.weight_list() == [3.0, 1.0]
    with pytest.raises(UserError, match="--weights: 'style' is no dimension"):
        train(settings(run, tiny_base, tmp_path / "o2", weights={"style": 1}))


def test_one_by_one_training_gives_the_same_weights(label_run, tiny_base, tmp_path):
    run = label_run(count=4)
    common = {"method": "full", "epochs": 1, "head_init": "mean", "loss": "regression"}
    common |= {"learning_rate": 3e-4, "head_learning_rate": 3e-3}
    shared = train(settings(run, tiny_base, tmp_path / "on", **common))
    alone = train(settings(run, tiny_base, tmp_path / "off", shared_prefix="off", **common))
    one = load_reward_model(shared).model.state_dict()
    other = load_reward_model(alone).model.state_dict()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-4, rtol=1e-3)


def test_gradient_checkpointing_changes_nothing(label_run, tiny_base, tmp_path):
    run = label_run(count=4)
    common = {"method": "full", "epochs": 1}
    plain = train(settings(run, tiny_base, tmp_path / "plain", gradient_checkpointing=False, **common))
    again = train(settings(run, tiny_base, tmp_path / "again", gradient_checkpointing=True, **common))
    np.testing.assert_allclose(all_points(again, run), all_points(plain, run), atol=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_sharded_weights_are_saved_by_way_of_a_file(label_run, tiny_base, tmp_path, monkeypatch, method):
    """The path that FSDP and ZeRO-3 take at the end of a run, walked here by one process."""
    run = label_run(count=4)
    common = {"method": method, "epochs": 1}
    plain = train(settings(run, tiny_base, tmp_path / "plain", **common))
    monkeypatch.setattr("reward_model.training.export.weights_are_sharded", lambda: True)
    gathered = train(settings(run, tiny_base, tmp_path / "gathered", **common))
    np.testing.assert_array_equal(all_points(gathered, run), all_points(plain, run))


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_bf16_trains_on_fp32_weights(label_run, tiny_base, tmp_path, device):
    run = label_run(count=4)
    out = tmp_path / "out"
    train(settings(run, tiny_base, out, method="full", epochs=1, precision="bf16", device=device))
    assert load_reward_model(out).model.dtype == torch.float32


# Refused, with the reason


def test_a_leak_between_explicit_files_is_refused(label_run, tiny_base, tmp_path):
    run = label_run(count=4)
    with pytest.raises(UserError, match="reads the same document as training prompt"):
        train(settings(run, tiny_base, tmp_path / "out", eval_labels=run))
    assert not (tmp_path / "out").exists()


def test_constant_labels_are_refused(label_run, tiny_base, tmp_path):
    run = label_run(count=4)
    file = run / "labels.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["scores"]["logicality"] = 10.0
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"targets of 'logicality' are 10: there is nothing to learn"):
        train(settings(run, tiny_base, tmp_path / "out"))
    out = train(
        settings(run, tiny_base, tmp_path / "out", allow_constant=True, learning_rate=3e-4, method="full")
    )
    assert all_points(out, run)[:, 1].mean() == pytest.approx(10, abs=1)


def test_missing_scores_are_masked_not_zero(label_run, tiny_base, tmp_path):
    """One score out of many in a dimension: its outputs stay near it instead of falling to 0."""
    run = label_run(count=6)
    file = run / "labels.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for index, row in enumerate(rows):
        row["scores"]["completeness"] = 8.0 + index % 2 if index % 3 == 0 else None
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = train(settings(run, tiny_base, tmp_path / "out", method="full", eval_fraction=0))
    assert all_points(out, run)[:, 3].min() > 6


def test_documents_over_the_window(label_run, tiny_base, tmp_path, capsys):
    run = label_run(count=4)
    with pytest.raises(UserError, match=r"prompts are longer than the model's window of 150 tokens"):
        train(settings(run, tiny_base, tmp_path / "out", max_length=150))
    prompts = list(read_prompts(run.parent / "prompts.jsonl"))
    prompts[0].context *= 30
    prompts[1].context = prompts[0].context
    lines = [item.model_dump_json(exclude_unset=True) + "\n" for item in prompts]
    (run.parent / "prompts.jsonl").write_text("".join(lines))
    out = train(
        settings(run, tiny_base, tmp_path / "out", overflow="skip", epochs=1, eval_fraction=0, method="full")
    )
    assert "2 over the window left out" in capsys.readouterr().err
    assert "2 prompts over the window were left out" in (out / "README.md").read_text()


def test_a_loss_that_is_not_finite_stops_with_the_batch_named(label_run, tiny_base, tmp_path):
    """One step of this size, and the weights overflow in the next forward pass."""
    changes = {"method": "full", "learning_rate": 1e30, "warmup": 0, "token_budget": 400}
    config = settings(label_run(count=14), tiny_base, tmp_path / "out", **changes)
    with pytest.raises(UserError, match=r"the loss is nan at step 2, in the batch of prompts: p\d+"):
        train(config)
    assert not (tmp_path / "out" / MANIFEST).exists()
    # One step an epoch: the held-out prompts meet these weights first.
    other = config.model_copy(update={"token_budget": 10_000, "output": tmp_path / "other"})
    with pytest.raises(
        UserError, match=r"the held-out loss is nan at step \d, in the batch of prompts: p\d+"
    ):
        train(other)


def test_out_of_memory_names_the_knobs():
    with (
        pytest.raises(UserError, match=r"out of memory while training(.|\n)*--token-budget(.|\n)*lora"),
        explain_out_of_memory("training", TRAINING_KNOBS),
    ):
        torch.empty(2**52, dtype=torch.uint8)
    with (
        pytest.raises(RuntimeError, match="something else"),
        explain_out_of_memory("training", TRAINING_KNOBS),
    ):
        raise RuntimeError("something else")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_qlora_without_bitsandbytes_says_how_to_install_it(label_run, tiny_base, tmp_path):
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        train(settings(label_run(count=4), tiny_base, tmp_path / "out", method="qlora"))


@pytest.mark.skipif(importlib.util.find_spec("trackio") is not None, reason="trackio is installed")
def test_a_tracker_that_is_not_installed_is_named(label_run, tiny_base, tmp_path):
    with pytest.raises(UserError, match="pip install trackio"):
        train(settings(label_run(count=4), tiny_base, tmp_path / "out", report_to="trackio"))


# Metrics


def test_metrics_within_prompts():
    predictions = [np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0]), np.array([1.0, 2.0])]
    targets = [np.array([1.0, 3.0, 2.0]), np.array([1.0, 2.0]), np.array([4.0, 4.0])]
    # ρ = 1 - 6·2/(3·8) = 0.5; constant predictions count as 0; a tied prompt does not count.
    assert mean_spearman(predictions, targets) == pytest.approx((0.5 + 0.0) / 2)
    assert share_of_pairs(predictions, targets) == pytest.approx((2 + 0.5) / 4)
    assert np.isnan(share_of_pairs([np.array([1.0])], [np.array([2.0])]))
