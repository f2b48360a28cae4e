"""The recipe for supervised fine-tuning, run by TRL as it stands on a small model; what comes out is sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_helpers import WORDS, make_tokenizer, prompt_rows, read_jsonl, write_jsonl
from sampling import run_sample
from transformers import AutoModelForCausalLM
from trl.scripts.sft import main, make_parser

RECIPE = Path(__file__).parents[3] / "scripts" / "recipes" / "sft.yaml"
SMALL = {
    "max_length": 256, "attn_implementation": "sdpa", "dtype": "float32", "bf16": "false", "use_cpu": "true",
    "gradient_checkpointing": "false", "gradient_accumulation_steps": 1, "learning_rate": 5e-3, "num_train_epochs": 6,
    "save_strategy": "no", "disable_tqdm": "true",
}  # fmt: skip


def example(question: str, answer: str, document: str = "") -> dict[str, Any]:
    text = f"{document}\n\n{question}" if document else question
    return {
        "prompt": [{"role": "user", "content": text}],
        "completion": [{"role": "assistant", "content": answer}],
    }


@pytest.fixture
def parsed(tmp_path: Path, tiny_model: Path, monkeypatch) -> tuple[Any, ...]:
    """TRL's settings from the recipe, the paths and the size of the model on the command line."""
    write_jsonl(tmp_path / "long.jsonl", [example("Which ships?", "Timber.", WORDS[i:]) for i in range(8)])
    write_jsonl(tmp_path / "general.jsonl", [example(f"Say {i}.", f"Salt {i}.") for i in range(12)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    flags = {"model_name_or_path": tiny_model, "output_dir": tmp_path / "sft", **SMALL}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return tuple(
        make_parser().parse_args_and_config(["--config", str(RECIPE), *words], fail_with_unknown_args=True)
    )


def test_both_sets_are_mixed_packed_and_learnt_and_only_answers_count(
    tmp_path: Path, tiny_model: Path, parsed: tuple[Any, ...], monkeypatch
):
    from trl import SFTTrainer

    seen: list[SFTTrainer] = []
    monkeypatch.setattr(SFTTrainer, "save_model", lambda self, *args: (seen.append(self), _save(self, *args)))
    _save = SFTTrainer.__mro__[1].save_model
    main(*parsed)
    trainer = seen[0]
    rows = list(trainer.train_dataset)
    texts = [make_tokenizer().decode(row["input_ids"]) for row in rows]
    assert sum(text.count("Timber.<|end|>") for text in texts) == 8
    assert sum(text.count("Salt ") for text in texts) == 12
    assert len(rows) < 20  # packed
    assert any("Timber." in text and "Salt " in text for text in texts)
    batch = trainer.data_collator(
        [next(r for r, text in zip(rows, texts, strict=True) if "Which ships?" in text)]
    )
    learnt = make_tokenizer().decode(batch["labels"][batch["labels"] != -100])
    assert "Which ships?" not in learnt
    assert "Timber.<|end|>" in learnt
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0] / 2
    assert (
        run_sample(
            tmp_path, tmp_path / "sft", "--engine", "transformers", "--device", "cpu", rows=prompt_rows(1)
        )
        == 0
    )
    assert len(read_jsonl(tmp_path / "out.jsonl")[0]["responses"]) == 3


def test_packed_conversations_do_not_see_each_other(tmp_path: Path, tiny_model: Path):
    """The recipe packs; on sdpa as on flash attention, each conversation has the logits it has alone."""
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    first, second = torch.randint(3, 400, (1, 9)), torch.randint(3, 400, (1, 7))
    positions = torch.cat([torch.arange(9), torch.arange(7)])[None]
    with torch.no_grad():
        packed = model(torch.cat([first, second], dim=1), position_ids=positions, use_cache=False).logits
        alone = model(second).logits
    torch.testing.assert_close(packed[:, 9:], alone, atol=1e-4, rtol=1e-4)
