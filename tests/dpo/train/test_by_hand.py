"""What `dpo train` minimises and reports, computed by hand from the saved model and its base (LongReward, section 4.1)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from dpo_helpers import make_tokenizer, pair_rows, read_jsonl, train, write_jsonl
from transformers import AutoModelForCausalLM

from dpo.train.train import read_inputs
from dpo.train.train_config import TrainConfig
from dpo.train.trl_settings import trl_config


@torch.no_grad()
def answer_log_probs(folder: Path, row: dict, side: str) -> torch.Tensor:
    """Log-probability of each answer token (C,) after the prompt, from plain transformers."""
    tokenizer = make_tokenizer()
    text = {"tokenize": True, "return_dict": True}
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **text)["input_ids"]
    whole = tokenizer.apply_chat_template([*row["prompt"], *row[side]], **text)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    log_probs = F.log_softmax(model(torch.tensor([whole])).logits[0, :-1], -1)
    return log_probs.gather(-1, torch.tensor(whole[1:])[:, None])[len(prompt) - 1 :, 0]


@pytest.mark.parametrize(
    ("method", "beta", "sft", "smoothing"),
    [("lora", 0.15, 0.1, 0.0), ("full", 0.15, 0.1, 0.0), ("lora", 0.6, 0.7, 0.2)],
)
def test_loss_and_rewards_of_held_out_pairs(tmp_path, tiny_model, method, beta, sft, smoothing):
    rows = pair_rows()
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows[:4])
    held_out = write_jsonl(tmp_path / "held.jsonl", rows[4:])
    flags = ("--method", method, "--eval-pairs", str(held_out), "--learning-rate", "3e-3",
             "--beta", str(beta), "--trainer-args", f"label_smoothing={smoothing}")  # fmt: skip
    kinds = ("--loss-type", "robust" if smoothing else "sigmoid", "sft", "--loss-weights", "1.0", str(sft))
    assert train(pairs, tiny_model, tmp_path / "out", *flags, *kinds) == 0
    found = next(row for row in read_jsonl(tmp_path / "out" / "metrics.jsonl") if "eval_loss" in row)
    rewards: dict[str, list[float]] = {"chosen": [], "rejected": []}
    losses, cross_entropies = [], []
    for row in rows[4:]:
        for side, values in rewards.items():
            policy, reference = (
                answer_log_probs(folder, row, side) for folder in (tmp_path / "out", tiny_model)
            )
            values.append(beta * float(policy.sum() - reference.sum()))
        cross_entropies.append(-float(answer_log_probs(tmp_path / "out", row, "chosen").mean()))
        margin = rewards["chosen"][-1] - rewards["rejected"][-1]
        preferred, other = (math.log1p(math.exp(-sign * margin)) for sign in (1, -1))
        robust = ((1 - smoothing) * preferred - smoothing * other) / (1 - 2 * smoothing)  # arXiv 2403.00409
        losses.append(robust + sft * cross_entropies[-1])
    count = len(losses)
    assert abs(sum(rewards["chosen"]) - sum(rewards["rejected"])) > 1e-2  # it did learn something
    assert found["eval_loss"] == pytest.approx(sum(losses) / count, abs=1e-4)
    assert found["eval_ce/chosen"] == pytest.approx(sum(cross_entropies) / count, abs=1e-4)
    for side, values in rewards.items():
        assert found[f"eval_rewards/{side}"] == pytest.approx(sum(values) / count, abs=1e-4)


def settings(tmp_path: Path, model: Path, **changes) -> TrainConfig:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", pair_rows())
    return TrainConfig(pairs=pairs, model=str(model), output=tmp_path / "out", device="cpu", **changes)


def test_every_setting_reaches_trl(tmp_path, tiny_model):
    changes = {
        "beta": 0.37, "loss_type": ["ipo", "sft"], "loss_weights": [0.5, 0.3], "learning_rate": 3e-4,
        "lr_scheduler_type": "linear", "warmup_steps": 7, "weight_decay": 0.2, "max_grad_norm": 0.6,
        "num_train_epochs": 4, "max_steps": 9, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 3,
        "gradient_accumulation_steps": 5, "gradient_checkpointing": True, "logging_steps": 6, "eval_steps": 8,
        "save_steps": 10, "seed": 11,
    }  # fmt: skip
    args = trl_config(settings(tmp_path, tiny_model, precision="bf16", **changes), evaluates=True)
    assert {name: getattr(args, name) for name in changes} == changes
    assert (args.bf16, args.max_length, args.use_cpu) == (True, None, True)
    assert (args.eval_strategy, args.output_dir) == ("steps", str(tmp_path / "out" / "checkpoints"))
    own = {"label_smoothing": "0.2", "run_name": "mine"}
    args = trl_config(settings(tmp_path, tiny_model, trainer_args=own), evaluates=False)
    assert (args.label_smoothing, args.run_name, args.eval_strategy) == (0.2, "mine", "no")


@pytest.mark.parametrize(
    ("method", "reference", "expected"),
    [("lora", "auto", False), ("full", "auto", True), ("lora", "precompute", True), ("full", "model", False)],
)
def test_where_the_reference_comes_from(tmp_path, tiny_model, method, reference, expected):
    config = settings(tmp_path, tiny_model, method=method, reference=reference)
    assert trl_config(config, evaluates=False).precompute_ref_log_probs is expected


def test_the_seed_draws_the_split(tmp_path, tiny_model):
    held_out = [
        {
            item.document
            for item in read_inputs(
                settings(tmp_path, tiny_model, eval_fraction=0.4, seed=seed, method="full")
            ).held_out
        }
        for seed in (*range(5), 0)
    ]
    assert held_out[0] == held_out[-1]
    assert len({frozenset(names) for names in held_out}) > 1
