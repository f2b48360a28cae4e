"""A tiny base model on disk, and labels it can learn from."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from judge_pipeline.common.record_files import write_records
from judge_pipeline.common.records import DIMENSIONS

sys.path.insert(0, str(Path(__file__).parent))

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
WORDS = [
    "river",
    "stone",
    "lantern",
    "garden",
    "copper",
    "winter",
    "ladder",
    "market",
    "signal",
    "harbour",
    "velvet",
    "engine",
]

LabelRun = Callable[..., Path]


def make_tiny_base(path: Path, window: int = 1024) -> Path:
    """A two-layer Llama over bytes; pad and end are one token, as SmolLM2's are."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|start|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        unk_token="<|unk|>",
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=window,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Fresh heads are drawn alike whichever tests ran before; before fixtures of any scope."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny base model with a window of 1024 tokens."""
    return make_tiny_base(tmp_path_factory.mktemp("tiny_base"))


def make_prompts(count: int, answers: int = 3, seed: int = 0) -> list[dict]:
    """Prompts whose answers say how good they are by how often they say "yes"."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        document = f"Report {index}: " + " ".join(rng.choices(WORDS, k=rng.randint(8, 20)))
        responses = []
        for place in range(answers):
            marks = rng.randint(0, 4)
            text = " ".join(["yes"] * marks + ["no"] * (4 - marks) + [rng.choice(WORDS)])
            responses.append({"id": f"r{place}", "text": text})
        rows.append(
            {
                "id": f"p{index}",
                "document_id": f"d{index // 2}",
                "context": document,
                "query": "How is it?",
                "responses": responses,
            }
        )
    for row in rows:  # two prompts share a document
        row["context"] = rows[int(row["document_id"][1:]) * 2]["context"]
    return rows


def scores_of(text: str) -> dict[str, float]:
    """Points by the count of "yes", a little different for each dimension."""
    base = 2.0 * text.count("yes") + 1.0
    return {name: min(10.0, base + 0.25 * place) for place, name in enumerate(DIMENSIONS)}


def write_label_run(folder: Path, count: int = 8, answers: int = 3, seed: int = 0) -> Path:
    """A prompts file and a label run made from it, as `judge-pipeline label` leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = make_prompts(count, answers, seed)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    run = folder / "labels"
    run.mkdir(exist_ok=True)
    labels = [
        {
            "prompt_id": row["id"],
            "response_id": response["id"],
            "scores": scores_of(response["text"]),
            "reward": None,
            "status": "labelled",
        }
        for row in prompts
        for response in row["responses"]
    ]
    (run / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
    (run / "run.yaml").write_text(yaml.safe_dump({"config": {"prompts": str(folder / "prompts.jsonl")}}))
    return run


@pytest.fixture
def label_run(tmp_path: Path) -> LabelRun:
    """Writes a label run of `count` prompts with `answers` each; returns its folder."""

    def build(**kwargs: int) -> Path:
        return write_label_run(tmp_path / "data", **kwargs)

    return build


@pytest.fixture
def contrary_labels(tmp_path: Path) -> dict[str, Path]:
    """Held-out labels that praise what training learns to punish: the more is learnt, the worse they are met."""
    folder = tmp_path / "contrary"
    prompts, labels = make_prompts(4, answers=4, seed=5), []
    for row in prompts:
        row |= {name: f"other {row[name]}" for name in ("id", "document_id", "context")}
        for response in row["responses"]:
            scores = {name: 10 - value for name, value in scores_of(response["text"]).items()}
            ids = {"prompt_id": row["id"], "response_id": response["id"]}
            labels.append(ids | {"scores": scores, "reward": None, "status": "labelled"})
    write_records(folder / "prompts.jsonl", prompts)
    write_records(folder / "labels.jsonl", labels)
    return {"eval_labels": folder / "labels.jsonl", "eval_prompts": folder / "prompts.jsonl"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, and far slower where processors are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
