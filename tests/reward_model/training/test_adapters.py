"""Settings become PEFT's, the Trainer's and the weights' types."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reward_model.training.adapters import lora_config, weight_options
from reward_model.training.settings import LoraSettings
from reward_model.training.train import training_arguments
from reward_model.training.train_config import TrainConfig


def settings(**changes) -> TrainConfig:
    return TrainConfig(labels=Path("labels"), base_model="m", output=Path("out"), device="cpu", **changes)


def test_lora_settings_reach_peft():
    lora = LoraSettings(rank=3, alpha=7, dropout=0.25, targets=["q_proj", "v_proj"])
    found = lora_config(lora, "CAUSAL_LM", ["score"])
    assert (found.r, found.lora_alpha, found.lora_dropout) == (3, 7, 0.25)
    assert (found.target_modules, found.modules_to_save) == ({"q_proj", "v_proj"}, ["score"])
    assert lora_config(LoraSettings(), "SEQ_CLS").target_modules == "all-linear"


@pytest.mark.parametrize(
    ("method", "precision", "dtype"),
    [
        ("full", "bf16", torch.float32),
        ("lora", "bf16", torch.bfloat16),
        ("lora", "fp32", torch.float32),
    ],
)
def test_weights_are_trained_in_a_type_that_keeps_small_updates(method, precision, dtype):
    assert weight_options(settings(method=method, precision=precision)) == {"dtype": dtype}


def test_every_setting_reaches_the_trainer():
    changes = {"learning_rate": 3e-4, "weight_decay": 0.2, "max_grad_norm": 0.6, "seed": 11, "eval_steps": 8}
    other = {"epochs": 4, "warmup": 0.3, "accumulation": 5, "log_steps": 6}
    args = training_arguments(settings(precision="bf16", **changes, **other), has_held_out=True)
    assert {name: getattr(args, name) for name in changes} == changes
    assert (args.num_train_epochs, args.warmup_steps) == (4, 0.3)
    assert (args.gradient_accumulation_steps, args.logging_steps) == (5, 6)
    assert (args.bf16, args.use_cpu, args.eval_strategy, args.save_steps) == (True, True, "steps", 8)
    assert args.load_best_model_at_end
    assert args.output_dir == "out/checkpoints"
