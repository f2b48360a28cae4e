"""`dpo train` as a user runs it: checks, resume, cache, adapters, merging, two processes, stock TRL on our pairs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from dpo_helpers import FAST, make_model, make_tokenizer, pair_rows, read_jsonl, train, write_jsonl
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from dpo.chat import template_id
from dpo.cli import main
from tests.torchrun import two_processes


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", pair_rows())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def test_lora_writes_an_adapter_metrics_and_a_summary(tmp_path: Path, tiny_model: Path, pairs: Path, capsys):
    output = tmp_path / "out"
    assert train(pairs, tiny_model, output, "--eval-fraction", "0.3", "--num-train-epochs", "2") == 0
    assert (output / "adapter_model.safetensors").is_file()
    rows = read_jsonl(output / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    for name in (
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "ce/chosen",
        "num_tokens",
        "tokens_saved",
    ):
        assert name in steps[-1], name
    evaluation = [row for row in rows if "eval_loss" in row]
    assert len(evaluation) == 2
    assert "eval_rewards/margins" in evaluation[0]
    summary = json.loads((output / "summary.json").read_text())
    assert summary["pairs"] + summary["held_out_pairs"] == 8
    assert summary["held_out_documents"] >= 1
    assert 0 < summary["tokens_saved"] < summary["tokens_seen"] / 2
    assert not (output / "checkpoints").exists()
    assert steps[-1]["rewards/margins"] > steps[0]["rewards/margins"] == 0
    capsys.readouterr()
    assert train(pairs, tiny_model, output, "--eval-fraction", "0.3", "--num-train-epochs", "2") == 0
    assert "complete" in capsys.readouterr().out
    assert train(pairs, tiny_model, output, "--beta", "0.3") == 2
    assert "beta: 0.15 there, 0.3 now" in capsys.readouterr().err


def test_the_trained_adapter_can_be_sampled_and_merged(tmp_path: Path, tiny_model: Path, pairs: Path):
    from dpo_helpers import prompt_rows

    assert train(pairs, tiny_model, tmp_path / "a", "--max-steps", "3") == 0
    assert train(pairs, tiny_model, tmp_path / "m", "--max-steps", "3", "--merge") == 0
    assert (tmp_path / "m" / "adapter" / "adapter_model.safetensors").is_file()
    ids = torch.randint(3, 400, (1, 20))
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)(ids).logits
        adapted = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)(ids).logits
        before = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)(ids).logits
    torch.testing.assert_close(plain, adapted, atol=1e-4, rtol=1e-4)
    assert float((plain - before).abs().max()) > 1e-3
    prompts = write_jsonl(tmp_path / "p.jsonl", prompt_rows(2))
    for name in ("a", "m"):
        assert main(["sample", str(prompts), "--model", str(tmp_path / name), "--output", str(tmp_path / f"{name}.jsonl"),
                     "--n", "2", "--max-new-tokens", "6", "--device", "cpu", "--dtype", "float32"]) == 0  # fmt: skip
    texts = [[r["text"] for p in read_jsonl(tmp_path / f"{n}.jsonl") for r in p["responses"]] for n in "am"]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, tiny_model: Path, pairs: Path, method: str
):
    flags = ("--method", method, "--num-train-epochs", "1", "--eval-fraction", "0", "--save-steps", "3")
    assert train(pairs, tiny_model, tmp_path / "whole", *flags) == 0
    code = (
        "import os, sys\n"
        "from transformers import TrainerCallback\n"
        "from reward_model.training import callbacks\n"
        "class Kill(callbacks.ProgressLine):\n"
        "    def on_step_end(self, args, state, control, **kwargs):\n"
        "        if state.global_step == 5: os._exit(9)\n"
        "import reward_model.training.run as run; run.ProgressLine = Kill\n"
        "from dpo.cli import main; sys.exit(main(sys.argv[1:]))\n"
    )
    argv = ["train", str(pairs), "--model", str(tiny_model), "--output", str(tmp_path / "cut"), *FAST, *flags]
    killed = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=Path.cwd()
    )
    assert killed.returncode == 9, killed.stderr
    assert (tmp_path / "cut" / "checkpoints" / "checkpoint-3").is_dir()
    assert main(argv) == 0
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, atol=1e-6, rtol=1e-5)
    curves = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    losses = [[(row["step"], row["loss"]) for row in rows if "loss" in row] for rows in curves]
    assert [step for step, _ in losses[1]] == list(range(1, 9))
    for name in ("num_tokens", "tokens_saved"):
        assert [row[name] for row in curves[1] if "loss" in row] == [
            row[name] for row in curves[0] if "loss" in row
        ]
    for (_, a), (_, b) in zip(*losses, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_reference_log_probabilities_are_cached_on_disk(
    tmp_path: Path, tiny_model: Path, pairs: Path, monkeypatch
):
    from dpo.train.trainer import SharedPromptDPOTrainer

    calls = []
    original = SharedPromptDPOTrainer.compute_ref_log_probs
    monkeypatch.setattr(
        SharedPromptDPOTrainer,
        "compute_ref_log_probs",
        lambda self, *args: calls.append(1) or original(self, *args),
    )
    flags = ("--method", "full", "--max-steps", "1", "--eval-fraction", "0")
    assert train(pairs, tiny_model, tmp_path / "out", *flags) == 0
    assert len(calls) == 8
    (tmp_path / "out" / "summary.json").unlink()
    assert train(pairs, tiny_model, tmp_path / "out", *flags) == 0
    assert len(calls) == 8


BAD = {
    "no column": ({"prompt": "a", "chosen": "b"}, (), "line 2, field 'rejected': is missing"),
    "equal": ({"prompt": "a", "chosen": "b", "rejected": "b"}, (), "line 2: chosen equals rejected"),
    "end token": ({"prompt": "a", "chosen": "b", "rejected": "<|end|>"}, (), "line 2, field 'rejected': the answer is only"),
    "template": (
        {"prompt": "a", "chosen": "b", "rejected": "c", "template": "0" * 16},
        (),
        "line 2, field 'template': the answers were sampled with another chat template",
    ),
    "too long": (
        {"prompt": "word " * 600, "chosen": "b", "rejected": "c"},
        (),
        "line 2: 1 of 2 pairs are over 512 tokens",
    ),
    "trainer argument": ({"prompt": "a", "chosen": "b", "rejected": "c"}, ("--trainer-args", "bta=1"), "did you mean 'beta'"),
    "loss": ({"prompt": "a", "chosen": "b", "rejected": "c"}, ("--loss-weights", "1"), "loss_weights"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_nothing_is_lost(tmp_path: Path, tiny_model: Path, capsys, case: str):
    row, flags, words = BAD[case]
    good = {
        "prompt": "x y",
        "chosen": "good",
        "rejected": "bad",
        "template": template_id(make_tokenizer().chat_template),
    }
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [good, row])
    before = pairs.read_bytes()
    if case == "loss":
        flags = ("--config", str(write_yaml(tmp_path, "loss_weights: [1.0]\n")))
    assert train(pairs, tiny_model, tmp_path / "out", "--eval-fraction", "0", *flags) == 2
    assert words in capsys.readouterr().err
    assert pairs.read_bytes() == before


def write_yaml(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_long_pairs_can_be_left_out_and_counted(tmp_path: Path, tiny_model: Path, capsys):
    rows = [*pair_rows(3), {"prompt": "word " * 600, "chosen": "b", "rejected": "c"}]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows)
    assert (
        train(
            pairs,
            tiny_model,
            tmp_path / "out",
            "--overflow",
            "skip",
            "--eval-fraction",
            "0",
            "--max-steps",
            "1",
        )
        == 0
    )
    assert "1 of 4 pairs left out" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["skipped"] == {"train": 1}


def test_another_template_goes_with_the_users_word(tmp_path: Path, tiny_model: Path, capsys):
    rows = [{**row, "template": "0" * 16} for row in pair_rows(2)]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows)
    flags = ("--eval-fraction", "0", "--max-steps", "1", "--allow-other-template")
    assert train(pairs, tiny_model, tmp_path / "out", *flags) == 0
    assert "warning" in capsys.readouterr().err


def test_held_out_documents_in_training_are_a_leak(tmp_path: Path, tiny_model: Path, pairs: Path, capsys):
    held_out = write_jsonl(tmp_path / "held.jsonl", [pair_rows()[3]])
    assert train(pairs, tiny_model, tmp_path / "out", "--eval-pairs", str(held_out)) == 2
    assert "held.jsonl, line 1, field 'document_id'" in capsys.readouterr().err


def test_qlora_without_bitsandbytes_names_the_package(tmp_path: Path, tiny_model: Path, pairs: Path, capsys):
    import importlib.util

    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed here")
    assert train(pairs, tiny_model, tmp_path / "out", "--method", "qlora") == 2
    assert "pip install bitsandbytes" in capsys.readouterr().err


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path: Path, tiny_model: Path, pairs: Path, capsys):
    from transformers import AutoTokenizer

    broken = make_model()
    broken.lm_head.weight.data[7, 3] = torch.inf
    broken.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "broken")
    assert train(pairs, tmp_path / "broken", tmp_path / "out", "--eval-fraction", "0") == 2
    assert "the loss is nan at step 1" in capsys.readouterr().err
    assert not (tmp_path / "out" / "summary.json").exists()


def test_an_unstable_run_says_so(tmp_path: Path, tiny_model: Path, pairs: Path, capsys):
    calm = ("--eval-fraction", "0", "--max-steps", "6", "--method", "full", "--warmup-steps", "0")
    assert train(pairs, tiny_model, tmp_path / "calm", *calm, "--learning-rate", "1e-5") == 0
    assert "UNSTABLE" not in capsys.readouterr().out
    wild = ("--learning-rate", "0.1", "--loss-type", "sigmoid", "--loss-weights", "1")
    assert train(pairs, tiny_model, tmp_path / "wild", *calm, *wild) == 0
    assert "UNSTABLE · the chosen answers became less likely" in capsys.readouterr().out
    assert json.loads((tmp_path / "wild" / "summary.json").read_text())["warnings"]


def test_signs_of_an_unstable_run():
    from dpo.train.train import warning_signs

    def row(chosen: float, margin: float, share: float = 1.0, prefix: str = "") -> dict[str, float]:
        values = {"rewards/chosen": chosen, "rewards/margins": margin, "rewards/accuracies": share}
        values |= {"logps/chosen": -20.0, "ce/chosen": 2.0}  # answers of ten tokens
        return {prefix + name: value for name, value in values.items()}

    assert warning_signs([], [], 0.1) == []
    assert warning_signs([row(-9.0, 0.0), row(0.1, 0.4)], [], 0.1) == []  # only the end of a run counts
    assert warning_signs([row(-0.5, 1.0)], [], 0.1) == [
        "the chosen answers became less likely, by 0.50 nats a token"
    ]
    held_out = [row(0.1, 12.0, 0.25, "eval_")]
    assert [sign.split()[0] for sign in warning_signs([], held_out, 0.1, 40)] == ["the", "25%"]
    assert len(warning_signs([], held_out, 0.1, 4)) == 1


def test_sharing_off_is_trls_own_computation(tmp_path: Path, tiny_model: Path, pairs: Path):
    for name in ("on", "off"):
        flags = ("--shared-prefix", name, "--eval-fraction", "0", "--max-steps", "3")
        assert train(pairs, tiny_model, tmp_path / name, *flags) == 0
    rows = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("on", "off")]
    for on, off in zip(*rows, strict=True):
        if "loss" in on:
            assert on["loss"] == pytest.approx(off["loss"], abs=1e-4)
            assert (on["tokens_saved"] > 0, off["tokens_saved"]) == (True, 0)


def test_bf16_trains_close_to_fp32(tmp_path: Path, tiny_model: Path, pairs: Path):
    """Over a whole run, in which the loss falls far more than the two are apart; and they are not the same."""
    losses, margins = {}, {}
    for precision in ("fp32", "bf16"):
        flags = ("--precision", precision, "--eval-fraction", "0", "--max-steps", "8", "--method", "full")
        assert train(pairs, tiny_model, tmp_path / precision, *flags) == 0
        rows = [row for row in read_jsonl(tmp_path / precision / "metrics.jsonl") if "loss" in row]
        losses[precision] = torch.tensor([row["loss"] for row in rows])
        margins[precision] = torch.tensor([row["rewards/margins"] for row in rows])
    apart = (losses["bf16"] - losses["fp32"]).abs()
    assert float(losses["fp32"][0] - losses["fp32"][-1]) > 0.5
    assert 0 < float(apart.max()) < 0.1
    assert float(margins["fp32"][-1]) > 2
    torch.testing.assert_close(margins["bf16"], margins["fp32"], atol=0.2, rtol=0.1)


def test_stock_trl_trains_on_what_pairs_writes(tmp_path: Path, tiny_model: Path):
    """TRL reads the very prompts and answers from the file, and learns to prefer what the rewards prefer."""
    from dpo_helpers import make, scored_rows

    rows = scored_rows(4)
    _, output = make(tmp_path, rows)
    dataset = load_dataset("json", data_files=str(output), split="train", cache_dir=str(tmp_path / "cache"))
    tokenizer = make_tokenizer()
    trainer = DPOTrainer(
        model=str(tiny_model),
        args=DPOConfig(output_dir=str(tmp_path / "trl"), max_steps=8, report_to=[], use_cpu=True, bf16=False,
                       max_length=None, save_strategy="no", per_device_train_batch_size=2, learning_rate=1e-3,
                       logging_steps=1, disable_tqdm=True),
        train_dataset=dataset,
        processing_class=tokenizer,
    )  # fmt: skip
    for row, read in zip(rows, trainer.train_dataset, strict=True):
        asked = f"{row['context']}\n\n{row['query']}"
        assert tokenizer.decode(read["prompt_ids"]) == f"<|start|>user\n{asked}<|end|>\n<|start|>assistant\n"
        best, worst = (row["responses"][index]["text"] for index in (-1, 0))
        assert tokenizer.decode(read["chosen_ids"]) == f"{best}<|end|>\n"
        assert tokenizer.decode(read["rejected_ids"]) == f"{worst}<|end|>\n"
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert (logged[0]["loss"], logged[0]["rewards/margins"]) == (pytest.approx(0.6931, abs=1e-3), 0.0)
    assert logged[-1]["loss"] < 0.5
    assert logged[-1]["rewards/accuracies"] == 1.0
    assert logged[-1]["rewards/margins"] > 0.3


@pytest.mark.slow
def test_two_processes_train_to_the_weights_of_one(tmp_path: Path, tiny_model: Path):
    # Sigmoid alone: the sft term is a mean over a micro-batch, and two micro-batches are not one (in TRL too).
    pairs = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(8, same_length=True))
    flags = [
        "--eval-fraction",
        "0",
        "--max-steps",
        "2",
        "--method",
        "full",
        "--trainer-args",
        "optim=sgd",
        "--learning-rate",
        "0.1",
        "--warmup-steps",
        "0",
        "--loss-type",
        "sigmoid",
        "--loss-weights",
        "1",
    ]
    assert train(pairs, tiny_model, tmp_path / "one", *flags, "--per-device-train-batch-size", "2") == 0
    argv = ["train", str(pairs), "--model", str(tiny_model), "--output", str(tmp_path / "two"), *FAST, *flags]
    script = tmp_path / "run.py"
    script.write_text("import sys\nfrom dpo.cli import main\nsys.exit(main(sys.argv[1:]))\n")
    two_processes(script, *argv)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    start = make_model().state_dict()
    for name, value in one.items():
        moved = float((value - start[name]).norm())
        assert float((two[name] - value).norm()) <= 1e-4 * moved + 1e-6, name
    losses = [read_jsonl(tmp_path / n / "metrics.jsonl")[0]["loss"] for n in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
