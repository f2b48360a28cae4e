"""Every setting of `dpo train` decides what it says: each test fails when its setting is ignored.

What TRL takes is compared in `test_by_hand`, `test_every_setting_reaches_trl`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dpo_helpers import pair_rows, read_jsonl, train, write_jsonl
from safetensors.torch import load_file

from dpo.cli import main
from dpo.train.train import build_trainer, read_inputs
from dpo.train.train_config import TrainConfig
from dpo.train.trl_settings import trl_config

ALL = ("--eval-fraction", "0")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", pair_rows())


def settings(pairs: Path, model: Path, **changes) -> TrainConfig:
    return TrainConfig(
        pairs=pairs,
        model=str(model),
        output=pairs.parent / "out",
        **{"device": "cpu", "precision": "fp32"} | changes,
    )


def trainer_of(pairs: Path, model: Path, **changes):
    config = settings(pairs, model, **changes)
    inputs = read_inputs(config)
    return build_trainer(config, trl_config(config, evaluates=bool(inputs.held_out)), inputs)[0]


@pytest.mark.parametrize(("method", "rate"), [("full", 1e-6), ("lora", 1e-5), ("qlora", 1e-5)])
def test_the_papers_settings_are_the_defaults(pairs, tiny_model, method, rate):
    args = trl_config(settings(pairs, tiny_model, method=method), evaluates=True)
    assert (args.beta, args.loss_type, args.loss_weights) == (0.15, ["sigmoid", "sft"], [1.0, 0.1])
    assert args.learning_rate == rate


def test_steps_are_taken_at_the_rate_of_the_method(tmp_path, tiny_model, pairs):
    how = ("--device", "cpu", "--precision", "fp32", *ALL, "--max-steps", "1")
    how += ("--lr-scheduler-type", "constant", "--warmup-steps", "0")
    for name, flags in {
        "lora": (),
        "full": ("--method", "full"),
        "told": ("--learning-rate", "3e-4"),
    }.items():
        output = ["--output", str(tmp_path / name)]
        assert main(["train", str(pairs), "--model", str(tiny_model), *output, *how, *flags]) == 0
    rates = [
        read_jsonl(tmp_path / name / "metrics.jsonl")[0]["learning_rate"] for name in ("lora", "full", "told")
    ]
    assert rates == [1e-5, 1e-6, 3e-4]


def test_documents_are_held_out_and_not_their_rows(tmp_path, tiny_model):
    """Two pairs have each document: both are trained on, or both are held out."""
    rows = [{**row, "document_id": f"d{i // 2}-{j}"} for j in range(5) for i, row in enumerate(pair_rows())]
    pairs, counts = write_jsonl(tmp_path / "pairs.jsonl", rows), []
    for share in (0.2, 0.6):
        inputs = read_inputs(settings(pairs, tiny_model, eval_fraction=share))
        held_out, trained = ({item.document for item in items} for items in (inputs.held_out, inputs.train))
        assert not held_out & trained
        assert len(held_out | trained) == 20
        counts.append(len(held_out))
    assert 1 <= counts[0] <= 7 < counts[1] <= 17


def test_the_seed_draws_the_order_and_the_adapter(tmp_path, tiny_model, pairs):
    orders, starts = [], []
    for number, seed in enumerate(("0", "1", "0")):
        output = tmp_path / str(number)
        assert train(pairs, tiny_model, output, *ALL, "--seed", seed, "--learning-rate", "1e-12") == 0
        orders.append([row["ce/chosen"] for row in read_jsonl(output / "metrics.jsonl") if "loss" in row])
        weights = load_file(output / "adapter_model.safetensors")
        starts.append(next(value for name, value in sorted(weights.items()) if "lora_A" in name))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == pytest.approx(sorted(orders[1]), abs=1e-4)
    assert torch.equal(starts[0], starts[2])
    assert not torch.allclose(starts[0], starts[1])


def test_the_adapter_has_the_shape_that_was_asked_for(pairs, tiny_model):
    shape = {"rank": 3, "alpha": 7.0, "dropout": 0.25, "targets": ["v_proj", "up_proj"]}
    found = trainer_of(pairs, tiny_model, lora=shape).model.peft_config["default"]
    assert (found.r, found.lora_alpha, found.lora_dropout) == (3, 7.0, 0.25)
    assert set(found.target_modules) == {"v_proj", "up_proj"}


def test_the_method_says_which_weights_are_trained(pairs, tiny_model):
    full = trainer_of(pairs, tiny_model, method="full").model
    assert all(weight.requires_grad for weight in full.parameters())
    lora = trainer_of(pairs, tiny_model, method="lora", existing="replace").model
    assert {"lora_" in name for name, weight in lora.named_parameters() if weight.requires_grad} == {True}


def test_the_forward_is_computed_as_told(pairs, tiny_model, monkeypatch):
    from dpo.train import shared_forward

    tiles = []
    original = shared_forward.token_stats
    monkeypatch.setattr(
        shared_forward, "token_stats", lambda *args: tiles.append(args[-1]) or original(*args)
    )
    for shared, tile in (("on", 5), ("on", None), ("off", 5)):
        trainer = trainer_of(pairs, tiny_model, shared_prefix=shared, tile=tile, max_steps=1)
        trainer.train()
    assert set(tiles) == {5, None}
    assert trainer.tokens_saved == 0


def test_the_longest_pair_is_what_the_user_says(tmp_path, tiny_model, pairs, capsys):
    flags = (*ALL, "--max-steps", "1")
    assert train(pairs, tiny_model, tmp_path / "out", *flags, "--max-length", "40") == 2
    assert "of 8 pairs are over 40 tokens" in capsys.readouterr().err
    assert train(pairs, tiny_model, tmp_path / "out", *flags, "--max-length", "600") == 2
    assert "--max-length 600 is over the window" in capsys.readouterr().err
    assert train(pairs, tiny_model, tmp_path / "out", *flags, "--max-length", "41", "--overflow", "skip") == 0
    skipped = json.loads((tmp_path / "out" / "summary.json").read_text())["skipped"]["train"]
    assert 0 < skipped < 8


def test_checkpoints_are_written_and_kept_as_told(tmp_path, tiny_model, pairs):
    flags = (*ALL, "--max-steps", "5", "--save-steps", "2", "--keep-checkpoints")
    assert train(pairs, tiny_model, tmp_path / "out", *flags) == 0
    kept = {path.name for path in (tmp_path / "out" / "checkpoints").glob("checkpoint-*")}
    assert kept == {"checkpoint-4", "checkpoint-5"}  # two are kept at a time; the last step is always one


def test_lines_of_metrics_and_evaluations_come_as_often_as_told(tmp_path, tiny_model, pairs):
    flags = ("--eval-fraction", "0.25", "--max-steps", "6", "--logging-steps", "3", "--eval-steps", "2")
    assert train(pairs, tiny_model, tmp_path / "out", *flags) == 0
    rows = read_jsonl(tmp_path / "out" / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [3, 6]
    assert [row["step"] for row in rows if "eval_loss" in row] == [2, 4, 6]


def test_a_run_that_is_there_is_resumed_or_replaced_as_told(tmp_path, tiny_model, pairs):
    output, flags = tmp_path / "out", (*ALL, "--max-steps", "2", "--beta", "0.3")
    assert train(pairs, tiny_model, output, *flags) == 0
    (output / "mine.txt").write_text("kept")
    first = (output / "summary.json").read_text()
    assert train(pairs, tiny_model, output, *ALL, "--max-steps", "3") == 2
    assert train(pairs, tiny_model, output, *flags, "--existing", "resume") == 0
    assert (output / "summary.json").read_text() == first
    assert train(pairs, tiny_model, output, *ALL, "--max-steps", "3", "--existing", "replace") == 0
    assert json.loads((output / "summary.json").read_text())["steps"] == 3
    assert not (output / "mine.txt").exists()


def test_a_gpu_is_used_unless_told_otherwise(pairs, tiny_model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for device, gpu in (("auto", True), ("cpu", False)):
        config = settings(pairs, tiny_model, device=device, precision="auto")
        found = config.trainer_arguments(has_held_out=False)
        assert (not found["use_cpu"], found["bf16"], config.resolved_checkpointing()) == (gpu, gpu, gpu)
