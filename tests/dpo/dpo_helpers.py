"""What the tests of this room share: tiny models, a real tokenizer with a chat template, prompt records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from dpo.cli import main
from judge_pipeline.common.records import DIMENSIONS

WORDS = (
    "The harbour opened in 1921 and the lighthouse keeper wrote every storm into a book of blue paper. "
    "Ships came from the north with timber, and from the south with salt, oranges and letters. "
    "When the railway arrived the harbour lost its trade, and the keeper lost his ink. "
)
TEMPLATE = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def make_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|pad|>", "<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    fast.chat_template = template
    return fast


def make_model(seed: int = 0, **overrides: Any) -> torch.nn.Module:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "initializer_range": 0.3,  # far from uniform, so that wrong attention shows in the log-probabilities
    }
    return AutoModelForCausalLM.from_config(LlamaConfig(**{**settings, **overrides}), dtype=torch.float32)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prompt_rows(count: int, words: int = 20) -> list[dict[str, Any]]:
    text = (WORDS * 20).split()
    return [
        {
            "id": f"p{i}",
            "document_id": f"d{i // 2}",
            "context": " ".join(text[i : i + words]),
            "query": f"What came from the {('north', 'south')[i % 2]}?",
        }
        for i in range(count)
    ]


def pair_rows(count: int = 8, same_length: bool = False) -> list[dict[str, Any]]:
    def answer(i: int, shift: int, length: int) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": WORDS[i + shift : i + shift + length]}]

    return [
        {
            "prompt": [{"role": "user", "content": WORDS[i * 5 : i * 5 + 60]}],
            "chosen": answer(i, 0, 30 if same_length else 20 + 4 * i),
            "rejected": answer(i, 50, 30 if same_length else 55 - 4 * i),
            "document_id": f"d{i // 2}",
            "template": None,
        }
        for i in range(count)
    ]


FAST = (
    "--device",
    "cpu",
    "--precision",
    "fp32",
    "--gradient-accumulation-steps",
    "1",
    "--learning-rate",
    "1e-3",
)


def train(pairs: Path, model: Path, output: Path, *flags: str) -> int:
    return main(["train", str(pairs), "--model", str(model), "--output", str(output), *FAST, *flags])


def scored_rows(count: int = 6, answers: int = 5) -> list[dict[str, Any]]:
    rows = prompt_rows(count)
    for p, row in enumerate(rows):
        row["responses"] = [
            {
                "id": f"sample-{i}",
                "text": f"Answer {i} to {p}. " + "More. " * i,
                "source": "m",
                "scores": dict(zip(DIMENSIONS, (5.0, 5.0, 3.0 + i, 5.0), strict=True)),
                "reward": 4.5 + i / 4,
                "template": "abc",
            }
            for i in range(answers)
        ]
    return rows


def make(tmp_path: Path, rows: list[dict[str, Any]], *flags: str) -> tuple[int, Path]:
    scored = write_jsonl(tmp_path / "scored.jsonl", rows)
    output = tmp_path / "pairs.jsonl"
    flags = ("--existing", "replace", *flags)
    return main(["pairs", str(scored), "--output", str(output), *flags]), output
