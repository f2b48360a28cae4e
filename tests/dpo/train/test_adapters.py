"""An adapter as the model to train: it is gone on from, against the reference that the user names; and `dpo merge`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dpo_helpers import pair_rows, read_jsonl, train, write_jsonl
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dpo.cli import main

ALL = ("--eval-fraction", "0", "--warmup-steps", "0")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("start")
    pairs = write_jsonl(folder / "pairs.jsonl", pair_rows(4))
    assert (
        train(pairs, tiny_model, folder / "adapter", *ALL, "--num-train-epochs", "2", "--lora.rank", "4") == 0
    )
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(("reference", "moved"), [("start", False), ("base", True)])
def test_training_goes_on_from_an_adapter(tmp_path, tiny_model, start, reference, moved):
    flags = (*ALL, "--max-steps", "2", "--reference-weights", reference)
    assert train(start / "pairs.jsonl", start / "adapter", tmp_path / "out", *flags) == 0
    first = next(row for row in read_jsonl(tmp_path / "out" / "metrics.jsonl") if "loss" in row)
    assert (abs(first["rewards/margins"]) > 1e-2) is moved  # nothing has moved yet from the adapter itself
    before, after = weights(start / "adapter"), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(float((before[name] - after[name]).abs().max()) < 3e-3 for name in before)  # two steps of 1e-3
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == (str(tiny_model), 4)
    assert not (tmp_path / "out" / "ref").exists()


def test_what_an_adapter_cannot_start_is_refused(tmp_path, start, capsys):
    pairs, adapter = start / "pairs.jsonl", start / "adapter"
    assert train(pairs, adapter, tmp_path / "out", *ALL, "--method", "full") == 2
    assert "dpo merge" in capsys.readouterr().err
    flags = ("--reference-weights", "base", "--reference", "precompute")
    assert train(pairs, adapter, tmp_path / "out", *ALL, *flags) == 2
    assert "--reference model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_merged_adapter_is_a_plain_model_of_the_same_numbers(tmp_path, start, capsys):
    out = tmp_path / "merged"
    assert main(["merge", str(start / "adapter"), "--output", str(out), "--dtype", "float32"]) == 0
    assert not (out / "adapter_config.json").exists()
    assert (out / "run.yaml").is_file()
    assert (out / "tokenizer_config.json").is_file()
    ids = torch.randint(3, 400, (1, 20))
    with torch.no_grad():
        found, expected = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits
            for path in (out, start / "adapter")
        )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert main(["merge", str(out), "--output", str(tmp_path / "again")]) == 2
    assert "is no adapter" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
    assert main(["merge", str(start / "adapter"), "--output", str(out), "--dtype", "bfloat16"]) == 2
    assert "dtype" in capsys.readouterr().err
