"""Settings of training change what they say they change."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_prompts
from reward_model.data.batches import EncodedExample, StepOrder, passes_per_step, step_count
from reward_model.data.examples import load_examples
from reward_model.data.splits import split_by_document
from reward_model.modeling.model import Backbone, read_manifest
from reward_model.training import metrics
from reward_model.training.callbacks import read_metrics
from reward_model.training.losses import Standardizer
from reward_model.training.objective import Objective
from reward_model.training.run import last_checkpoint
from reward_model.training.run_data import make_objective, read_data
from reward_model.training.train import train, training_arguments
from reward_model.training.train_config import TrainConfig
from reward_model.training.trainable import head_start

pytestmark = pytest.mark.usefixtures("one_thread")


def settings(run: Path, base: Path | str = "m", output: Path = Path("out"), **changes) -> TrainConfig:
    values = {"epochs": 1, "token_budget": 800, "device": "cpu", "eval_fraction": 0.25, "head_init": "mean"}
    return TrainConfig(labels=run, base_model=str(base), output=output, **(values | changes))


# The head's own learning rate


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_head_moves_at_its_own_rate(label_run, tiny_base, tmp_path, method):
    """One step of Adam from the same start, the other weights held: the head's way is proportional to its rate."""
    run = label_run(count=4)
    heads = []
    for rate in (0.01, 0.2, 0.39):
        out = train(
            settings(
                run,
                tiny_base,
                tmp_path / str(rate),
                method=method,
                learning_rate=1e-12,
                head_learning_rate=rate,
                eval_fraction=0,
                token_budget=10_000,
            )
        )
        heads.append(load_file(out / "model.safetensors")["score.weight"].double())
    assert (heads[1] - heads[0]).abs().max() > 1e-3
    torch.testing.assert_close(heads[2] - heads[0], 2 * (heads[1] - heads[0]), atol=1e-6, rtol=1e-4)


def test_training_from_a_probe_keeps_what_the_probe_knows(label_run, tiny_base, tmp_path):
    """At LoRA's default rate, without a warm-up, the loss of the first steps stays where the probe left it."""
    run = label_run(count=24, answers=4)
    options = {"head_init": "probe", "warmup": 0, "prompts_per_step": 3}
    out = train(settings(run, tiny_base, tmp_path / "out", **options))
    rows = read_metrics(out / "metrics.jsonl")
    held = [row["eval_loss"] for row in rows if "eval_loss" in row]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) >= 5
    assert max(losses) < 2 * np.median(losses)
    assert held[-1] < 1.1 * json.loads((out / "probe.json").read_text())["metrics"]["plain"]["loss"]


def test_a_rate_for_the_head_is_refused_where_the_head_learns_with_the_rest(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    objective = Objective("regression", Standardizer.fit(torch.rand(5, 2), torch.ones(2)))
    backbone = Backbone(torch.nn.Linear(1, 1), None, None)
    assert head_start(settings(tmp_path), backbone, objective, None, False) is None
    with pytest.raises(UserError, match="--head-learning-rate"):
        head_start(settings(tmp_path, head_learning_rate=0.1), backbone, objective, None, False)


# Prompts per step


def prompts(lengths: list[int]) -> list[EncodedExample]:
    return [
        EncodedExample(
            np.arange(length - 2, dtype=np.int32),
            (np.array([1], np.int32), np.array([2], np.int32)),
            f"p{number}",
            np.ones((2, 4)),
            np.ones((2, 4)),
        )
        for number, length in enumerate(lengths)
    ]


@pytest.mark.parametrize(("per_step", "world"), [(4, 1), (4, 2), (5, 3), (2, 4), (50, 2)])
def test_a_step_has_so_many_prompts_however_they_are_packed(per_step, world):
    items = prompts([10, 30, 20, 90, 15, 12, 44, 40, 25, 31, 17, 60, 9])
    budget, steps = 64, step_count(len(items), len(items), per_step)
    passes = passes_per_step(items, per_step, budget, seed=3, epochs=2, world=world)
    seen = []
    for epoch in range(2):
        ranks = []
        for rank in range(world):
            order = StepOrder(items, per_step, passes, seed=3, rank=rank, world=world)
            order.set_epoch(epoch)
            ranks.append(list(order))
            assert len(ranks[-1]) == len(order) == steps * passes
        found = []
        for step in range(steps):
            sequences = [one for rank in ranks for one in rank[step * passes : (step + 1) * passes]]
            real = [[index for index in one if index < len(items)] for one in sequences]
            assert all(sequences)
            assert all(len(one) < 2 or sum(items[i].shape.total for i in one) <= budget for one in real)
            found.append(sorted(index for one in real for index in one))
        assert sorted(index for step in found for index in step) == list(range(len(items)))
        assert max(map(len, found)) - min(map(len, found)) <= 1
        assert abs(len(items) / steps - per_step) < per_step / 2 or per_step > len(items)
        alone = StepOrder(items, per_step, 50, seed=3)
        alone.set_epoch(epoch)
        batches = list(alone)
        assert found == [
            sorted(i for one in batches[step * 50 : (step + 1) * 50] for i in one if i < len(items))
            for step in range(steps)
        ]
        seen.append(found)
    assert seen[0] != seen[1] or steps == 1


def test_prompts_per_step_set_the_number_of_steps(label_run, tiny_base, tmp_path):
    run = label_run(count=12)
    counts = {}
    for per_step in (None, 3, 6):
        out = train(
            settings(
                run,
                tiny_base,
                tmp_path / str(per_step),
                prompts_per_step=per_step,
                eval_fraction=0,
                token_budget=20_000,
            )
        )
        counts[per_step] = len([row for row in read_metrics(out / "metrics.jsonl") if "loss" in row])
    assert counts == {None: 1, 3: 4, 6: 2}


def test_long_runs_take_sixteen_prompts_a_step_unless_sequences_are_added_up(tmp_path):
    config = settings(tmp_path)
    assert [config.resolved_prompts_per_step(count) for count in (159, 160)] == [None, 16]
    assert settings(tmp_path, accumulation=2).resolved_prompts_per_step(1000) is None
    assert settings(tmp_path, prompts_per_step=32).resolved_prompts_per_step(10) == 32
    with pytest.raises(ValidationError, match="one or the other"):
        settings(tmp_path, accumulation=2, prompts_per_step=8)


# Objective and best checkpoint


def test_loss_settings_reach_the_objective(label_run):
    run = label_run(count=4)
    options = {"kind": "mse", "huber_delta": 0.3, "pairwise_weight": 2.5, "min_gap": 0.5, "switch": 0.25}
    options |= {"anchor": 0.75, "level_weight": 0.5, "residual_weight": 4.0}
    config = settings(run, loss_options=options)
    objective = make_objective(config, read_data(config), [1.0] * 4)
    assert objective.name == "level+order"
    found = {name: getattr(objective, "delta" if name == "huber_delta" else name) for name in options}
    assert found == options


@pytest.mark.parametrize("metric", ["pair_accuracy", "loss"])
def test_the_best_checkpoint_is_the_best_in_the_metric_asked_for(
    label_run, contrary_labels, tiny_base, tmp_path, metric
):
    run = label_run(count=14, answers=4)
    changes = {
        "method": "full",
        "learning_rate": 1e-2,
        "epochs": 3,
        "early_stopping": 0,
        "best_metric": metric,
    }
    out = train(
        settings(run, tiny_base, tmp_path / "out", keep_checkpoints=True, **changes, **contrary_labels)
    )
    state = json.loads((last_checkpoint(out / "checkpoints") / "trainer_state.json").read_text())
    rows = [row for row in state["log_history"] if "eval_loss" in row]
    name, best = ("eval_choice", max) if metric == "pair_accuracy" else ("eval_loss", min)
    assert state["best_metric"] == best(row[name] for row in rows)
    accuracies = [
        value for key, value in rows[0].items() if key.endswith("_pair_accuracy") and key.count("_") > 2
    ]
    assert len(accuracies) == 5  # four outputs and the reward
    assert rows[0]["eval_pair_accuracy"] == pytest.approx(np.mean(accuracies))
    assert rows[0]["eval_choice"] == pytest.approx(np.mean(accuracies) - rows[0]["eval_loss"] / 1000)


def test_without_an_order_to_measure_the_loss_chooses(tmp_path):
    args = training_arguments(settings(tmp_path), has_held_out=True, has_order=False)
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)
    args = training_arguments(settings(tmp_path), has_held_out=True)
    assert (args.metric_for_best_model, args.greater_is_better) == ("choice", True)


# Outputs that move together


def row(predictions: list[list[float]], targets: list[list[float]]) -> dict:
    return {"predictions": torch.tensor(predictions), "targets": torch.tensor(targets)}


def test_correlations_are_within_prompts():
    """Two prompts of very different level; within them outputs are opposed, targets go together but for one answer.

    Opposed outputs are one number as much as equal ones are, and are said to be."""
    nan = float("nan")
    rows = [
        row([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]], [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]]),
        row([[9.0, 8.0], [8.0, 9.0], [5.0, 5.0]], [[8.0, 9.0], [9.0, 8.0], [nan, 1.0]]),
    ]
    found = metrics.correlations(rows)
    first = np.array([-1.0, 0, 1, 0.5, -0.5])
    assert found["output_correlation"] == pytest.approx(abs(np.corrcoef(first, -first)[0, 1]))
    targets = np.array([[-1.0, 0, 1, -0.5, 0.5], [-1.0, 0, 1, 0.5, -0.5]])
    assert found["target_correlation"] == pytest.approx(np.corrcoef(targets)[0, 1])
    assert metrics.moving_together({f"eval_{name}": value for name, value in found.items()})
    assert metrics.moving_together({"eval_output_correlation": 0.49, "eval_target_correlation": 0.4}) == []
    said = metrics.moving_together({"eval_output_correlation": 0.99, "eval_target_correlation": 0.4})
    assert "0.99, of the targets 0.40" in said[0]


def test_outputs_that_move_together_are_said_on_the_terminal_and_in_the_card(
    label_run, tiny_base, tmp_path, capsys, monkeypatch
):
    """The labels of these prompts move together as one, so nothing is to be said until the bar is lowered."""
    run = label_run(count=8)
    quiet = train(settings(run, tiny_base, tmp_path / "quiet"))
    rows = [row for row in read_metrics(quiet / "metrics.jsonl") if "eval_loss" in row]
    assert rows[-1]["eval_target_correlation"] > 0.99
    assert -1 <= rows[-1]["eval_output_correlation"] <= 1
    sentence = "outputs move together more than their targets do"
    assert sentence not in capsys.readouterr().err + (quiet / "README.md").read_text()
    monkeypatch.setattr(metrics, "TOGETHER", -3)
    loud = train(settings(run, tiny_base, tmp_path / "loud"))
    assert sentence in capsys.readouterr().err
    assert sentence in (loud / "README.md").read_text()


# What the model was trained on


@pytest.mark.parametrize("method", ["full", "lora", "probe"])
def test_the_manifest_names_the_training_documents(label_run, tiny_base, tmp_path, method):
    run = label_run(count=8)
    changes = {"head_init": "auto"} if method == "probe" else {}
    out = train(settings(run, tiny_base, tmp_path / "out", method=method, **changes))
    learnt, held_out = split_by_document(load_examples(run).items, 0.25, 0)
    assert held_out

    def digests(items) -> set[str]:
        texts = [" ".join(item.context.lower().split()) for item in items]
        names = [f"text:{hashlib.sha256(text.encode()).hexdigest()}" for text in texts]
        names += [f"id:{item.document_id}" for item in items]
        return {hashlib.sha256(name.encode()).hexdigest()[:16] for name in names}

    found = read_manifest(out).trained_documents
    assert found == sorted(digests(learnt))
    assert not digests(held_out) & set(found)
    if method == "lora":
        assert read_manifest(out / "adapter").trained_documents == found


def test_a_prompt_that_was_left_out_is_no_training_document(label_run, tiny_base, tmp_path):
    run = label_run(count=6)
    file = run.parent / "prompts.jsonl"
    items = list(read_prompts(file))
    for item in items[:2]:
        item.context = items[0].context * 40
    file.write_text("".join(item.model_dump_json(exclude_unset=True) + "\n" for item in items))
    out = train(settings(run, tiny_base, tmp_path / "out", eval_fraction=0, overflow="skip"))
    assert len(read_manifest(out).trained_documents) == 4
