"""What a resumed run trains on is what its run.yaml names: the content of the files decides, not their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from dpo_helpers import make_tokenizer, pair_rows, train, write_jsonl
from transformers import TrainerCallback

from judge_pipeline.common.run_dir import file_digest

ALL = ("--eval-fraction", "0", "--max-steps", "3", "--save-steps", "1")


class Kill(TrainerCallback):
    """Stops a run in its middle, as a lost machine does: after the checkpoint of its first step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            raise KeyboardInterrupt


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", pair_rows(4))


def start(pairs: Path, model: Path, output: Path, monkeypatch, *flags: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("reward_model.training.run.ProgressLine", Kill)
        assert train(pairs, model, output, *flags) == 130


def trained_prompts(output: Path) -> list[str]:
    from datasets import Dataset

    from dpo.train.data import PAIR_TOKENS

    rows = Dataset.from_file(str(output / "data" / "train" / PAIR_TOKENS))
    return [make_tokenizer().decode(row["prompt_ids"]) for row in rows]


def named(output: Path, pairs: Path) -> bool:
    return yaml.safe_load((output / "run.yaml").read_text())["inputs"][str(pairs)] == file_digest(pairs)


def test_an_error_that_was_mended_is_not_trained_on(tmp_path, tiny_model, pairs, monkeypatch):
    """Nothing was trained yet when the run ended: its pairs are read again."""
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("dpo.train.train.run_trainer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert train(pairs, tiny_model, output, *ALL) == 130
    write_jsonl(
        pairs,
        [
            {**row, "prompt": [{"role": "user", "content": f"Mended {i}."}]}
            for i, row in enumerate(pair_rows(4))
        ],
    )
    assert train(pairs, tiny_model, output, *ALL, "--existing", "resume") == 0
    assert trained_prompts(output) == [
        f"<|start|>user\nMended {i}.<|end|>\n<|start|>assistant\n" for i in range(4)
    ]
    assert named(output, pairs)


def test_checkpoints_of_other_pairs_are_not_gone_on_from(tmp_path, tiny_model, pairs, monkeypatch, capsys):
    output, before = tmp_path / "out", pairs.read_bytes()
    start(pairs, tiny_model, output, monkeypatch, *ALL)
    write_jsonl(pairs, pair_rows(5))
    assert train(pairs, tiny_model, output, *ALL, "--existing", "resume") == 2
    assert "checkpoint-1 was trained on other content" in capsys.readouterr().err
    assert not named(output, pairs)
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(before)  # the same pairs under another name are the same pairs
    assert train(moved, tiny_model, output, *ALL, "--existing", "resume") == 0
    assert json.loads((output / "summary.json").read_text())["steps"] == 3


@pytest.mark.parametrize("change", ["pairs", "beta", "merge"])
def test_a_finished_run_does_not_pretend_to_be_another(tmp_path, tiny_model, pairs, capsys, change):
    output = tmp_path / "out"
    assert train(pairs, tiny_model, output, *ALL) == 0
    described = (output / "run.yaml").read_text()
    if change == "pairs":
        write_jsonl(pairs, pair_rows(5))
    flags = {"beta": ("--beta", "0.3"), "merge": ("--merge",)}.get(change, ())
    assert train(pairs, tiny_model, output, *ALL, *flags, "--existing", "resume") == 2
    said = capsys.readouterr().err
    assert "is finished, and was of another configuration" in said
    assert {"pairs": "pairs.jsonl has other content", "beta": "0.15 there, 0.3 now", "merge": "dpo merge"}[
        change
    ] in said
    assert (output / "run.yaml").read_text() == described
