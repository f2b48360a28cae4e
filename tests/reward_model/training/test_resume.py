"""A run that was stopped ends in the same weights as one that was not."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reward_model.modeling.model import MANIFEST, load_reward_model
from reward_model.training.callbacks import ProgressLine, read_metrics
from reward_model.training.run import last_checkpoint
from reward_model.training.train import train
from reward_model.training.train_config import TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def settings(run: Path, base: Path, output: Path, **changes) -> TrainConfig:
    values = {
        "epochs": 3,
        "learning_rate": 1e-3,
        "token_budget": 400,
        "accumulation": 2,
        "device": "cpu",
        "eval_fraction": 0.25,
        "early_stopping": 0,
    }
    return TrainConfig(labels=run, base_model=str(base), output=output, **(values | changes))


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Press Ctrl-C when a step is done."""
    original = ProgressLine.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(ProgressLine, "on_step_end", on_step_end)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "full", "loss": "sequence"},
        {"method": "lora", "lora": {"dropout": 0.2}, "loss": "regression+pairwise"},
    ],
    ids=["full", "lora with dropout"],
)
@pytest.mark.parametrize("step", [2, 3])
def test_resumed_equals_uninterrupted(label_run, tiny_base, tmp_path, monkeypatch, changes, step):
    run = label_run(count=14, answers=4)
    whole = train(settings(run, tiny_base, tmp_path / "whole", **changes))
    config = settings(run, tiny_base, tmp_path / "stopped", **changes)
    with monkeypatch.context() as patch:
        interrupt_after(patch, step)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert not (config.output / MANIFEST).exists()
    checkpoint = last_checkpoint(config.output / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{step}"
    # A checkpoint that kill -9 left half written is not taken up.
    (config.output / "checkpoints" / "checkpoint-99").mkdir()
    train(config)
    one, other = (load_reward_model(path).model.state_dict() for path in (whole, config.output))
    for name, value in one.items():
        assert torch.equal(other[name], value), name
    losses = [
        {row["step"]: row["loss"] for row in read_metrics(path / "metrics.jsonl") if "loss" in row}
        for path in (whole, config.output)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) > step


def test_metrics_of_a_torn_file_are_read(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(file) == [{"step": 1, "loss": 2.0}]


def held_out_losses(path: Path) -> dict[int, float]:
    return {
        row["step"]: row["eval_loss"] for row in read_metrics(path / "metrics.jsonl") if "eval_loss" in row
    }


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_stops_early_with_the_best_checkpoint_whenever_it_was_interrupted(
    label_run, contrary_labels, tiny_base, tmp_path, monkeypatch, method
):
    run = label_run(count=14, answers=4)
    changes = {
        "method": method,
        "epochs": 9,
        "early_stopping": 2,
        "learning_rate": 1e-2,
        "loss": "regression",
    }
    changes |= contrary_labels | {"keep_checkpoints": True, "best_metric": "loss", "head_init": "mean"}
    whole = train(settings(run, tiny_base, tmp_path / "whole", **changes))
    losses = held_out_losses(whole)
    *_, best, _, last = losses  # two evaluations without a better one end the run
    assert len(losses) < 9
    assert min(losses, key=lambda step: losses[step]) == best
    weights = load_reward_model(whole).model.state_dict()
    if method == "full":
        saved = load_file(whole / "checkpoints" / f"checkpoint-{best}" / "model.safetensors")
        assert all(torch.equal(weights[name], value) for name, value in saved.items())

    # Stopped after the first of the two: it still counts.
    config = settings(run, tiny_base, tmp_path / "stopped", **changes)
    with monkeypatch.context() as patch:
        interrupt_after(patch, last - 1)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    train(config)
    # Killed when training was over and the model not yet saved.
    killed = config.model_copy(update={"output": tmp_path / "killed"})
    with monkeypatch.context() as patch:
        patch.setattr("reward_model.training.train.export", lambda *_: None)
        train(killed)
    assert not (killed.output / MANIFEST).exists()
    train(killed)
    for path in (config.output, killed.output):
        assert held_out_losses(path) == losses
        again = load_reward_model(path).model.state_dict()
        assert all(torch.equal(again[name], value) for name, value in weights.items())
