"""A run of `dpo train` is opened, refused, resumed and saved as the reward model's runs are."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml
from dpo_helpers import pair_rows, read_jsonl, train, write_jsonl
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dpo.train.trainer import SharedPromptDPOTrainer

ALL = ("--eval-fraction", "0")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", pair_rows())


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def test_a_checkpoint_that_a_kill_left_half_written_is_not_taken_up(tmp_path, tiny_model, pairs):
    (tmp_path / "out" / "checkpoints" / "checkpoint-99").mkdir(parents=True)
    flags = (*ALL, "--max-steps", "2", "--existing", "resume")
    assert train(pairs, tiny_model, tmp_path / "out", *flags) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["steps"] == 2


def test_what_is_refused_leaves_no_run_behind(tmp_path, tiny_model, capsys):
    rows = [*pair_rows(3), {"prompt": "word " * 600, "chosen": "b", "rejected": "c"}]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows)
    flags = (*ALL, "--max-steps", "1")
    assert train(pairs, tiny_model, tmp_path / "out", *flags) == 2
    assert "pairs are over 512 tokens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert train(pairs, tiny_model, tmp_path / "out", *flags, "--overflow", "skip") == 0


def test_an_empty_directory_is_left_empty_by_what_is_refused(tmp_path, tiny_model):
    rows = [*pair_rows(3), {"prompt": "word " * 600, "chosen": "b", "rejected": "c"}]
    (tmp_path / "out").mkdir()
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows)
    assert train(pairs, tiny_model, tmp_path / "out", *ALL) == 2
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_that_mixes_answers_is_found_out_on_its_weights(
    tmp_path, tiny_model, pairs, capsys, monkeypatch
):
    """Its configuration says nothing of it: a layer adds what all tokens of the sequence have in common."""
    from dpo.train import train as module

    def mixing(config, path):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        model.model.layers[0].mlp.register_forward_hook(
            lambda *args: args[-1] + args[-1].mean(1, keepdim=True)
        )
        return model

    monkeypatch.setattr(module, "load_policy", mixing)
    assert train(pairs, tiny_model, tmp_path / "out", *ALL, "--max-steps", "1") == 2
    assert "gives other numbers in a shared sequence than alone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert train(pairs, tiny_model, tmp_path / "out", *ALL, "--max-steps", "1", "--shared-prefix", "off") == 0


def test_one_adapter_target_is_a_layers_name_and_no_pattern(tmp_path, tiny_model, pairs):
    flags = (*ALL, "--max-steps", "1", "--lora.targets", "q_proj")
    assert train(pairs, tiny_model, tmp_path / "out", *flags) == 0
    names = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert names
    assert all(".q_proj." in name for name in names)


def test_out_of_memory_names_the_settings_that_help(tmp_path, tiny_model, pairs, capsys, monkeypatch):
    def training_step(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(SharedPromptDPOTrainer, "training_step", training_step)
    assert train(pairs, tiny_model, tmp_path / "out", *ALL) == 2
    error = capsys.readouterr().err
    assert "out of memory while training" in error
    assert "--gradient-checkpointing" in error


@pytest.mark.skipif(importlib.util.find_spec("trackio") is not None, reason="trackio is installed")
def test_a_tracker_that_is_not_installed_is_named(tmp_path, tiny_model, pairs, capsys):
    assert train(pairs, tiny_model, tmp_path / "out", *ALL, "--report-to", "trackio") == 2
    assert "pip install trackio" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@needs("tensorboard")
def test_tensorboards_files_stay_when_the_checkpoints_go(tmp_path, tiny_model, pairs):
    flags = (*ALL, "--max-steps", "1", "--report-to", "tensorboard")
    assert train(pairs, tiny_model, tmp_path / "out", *flags) == 0
    assert list((tmp_path / "out" / "tensorboard").glob("events.out.tfevents.*"))
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path, tiny_model, pairs, capsys, monkeypatch):
    original = SharedPromptDPOTrainer.training_step

    def training_step(self, model, *args, **kwargs):
        loss = original(self, model, *args, **kwargs)
        next(weight for weight in model.parameters() if weight.grad is not None).grad.fill_(torch.inf)
        return loss

    monkeypatch.setattr(SharedPromptDPOTrainer, "training_step", training_step)
    assert train(pairs, tiny_model, tmp_path / "out", *ALL) == 2
    assert "the gradient is nan at step 1" in capsys.readouterr().err.replace("inf", "nan")
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_share_of_warm_up_takes_no_whole_run(tmp_path, tiny_model, pairs):
    """The Trainer rounds a share up, and the first step of a warm-up has a learning rate of 0."""
    assert train(pairs, tiny_model, tmp_path / "out", *ALL, "--max-steps", "1") == 0
    moved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any(bool(value.any()) for name, value in moved.items() if "lora_B" in name)


@needs("bitsandbytes")
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_qlora_computes_and_stores_in_the_runs_precision(tmp_path, tiny_model, pairs, precision, dtype):
    from dpo.train.train import load_policy
    from dpo.train.train_config import TrainConfig

    config = TrainConfig(
        pairs=pairs, model="tiny", output=tmp_path / "out", method="qlora", precision=precision, device="cpu"
    )
    four_bit = load_policy(config, str(tiny_model)).config.quantization_config
    assert (four_bit.bnb_4bit_compute_dtype, four_bit.bnb_4bit_quant_storage) == (dtype, dtype)


@needs("bitsandbytes")
def test_qlora_trains_on_4_bit_weights_and_merges_into_plain_ones(tmp_path, tiny_model, pairs):
    flags = ("--method", "qlora", "--merge", "--eval-fraction", "0.3", "--num-train-epochs", "2")
    assert train(pairs, tiny_model, tmp_path / "out", *flags) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not hasattr(model.config, "quantization_config")
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())
    losses = [row["loss"] for row in read_jsonl(tmp_path / "out" / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < losses[0]


def test_a_run_is_described_and_can_be_repeated_from_its_description(tmp_path, tiny_model, pairs):
    assert train(pairs, tiny_model, tmp_path / "one", *ALL, "--max-steps", "2", "--seed", "3") == 0
    described = tmp_path / "one" / "run.yaml"
    assert yaml.safe_load(described.read_text())["config"]["seed"] == 3
    assert train(pairs, tiny_model, tmp_path / "two", "--config", str(described)) == 0
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two")]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


def test_a_single_document_is_for_training(tmp_path, tiny_model):
    rows = [{**row, "document_id": "one"} for row in pair_rows(2)]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows)
    flags = ("--eval-fraction", "0.999", "--max-steps", "1")
    assert train(pairs, tiny_model, tmp_path / "out", *flags) == 0


def test_held_out_pairs_with_the_text_of_training_ones_are_a_leak(tmp_path, tiny_model, pairs, capsys):
    held_out = write_jsonl(tmp_path / "held.jsonl", [{**pair_rows()[3], "document_id": "another name"}])
    assert train(pairs, tiny_model, tmp_path / "out", "--eval-pairs", str(held_out)) == 2
    assert "its document is among the training pairs" in capsys.readouterr().err
