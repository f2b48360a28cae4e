"""Prompts that are conversations: system turns, several turns and tools through sampling, judge, scores, pairs, training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_helpers import make, make_model, make_tokenizer, prompt_rows, read_jsonl, train, write_jsonl
from sampling import run_sample

from dpo.chat import template_arguments, to_messages
from judge_pipeline.common.errors import DataError
from judge_pipeline.common.record_files import read_prompts, write_records
from judge_pipeline.common.records import Prompt

TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What came from the north?"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "search", "arguments": {"q": "north"}}}]},
    {"role": "tool", "content": "timber"},
    {"role": "assistant", "content": "Timber."},
    {"role": "user", "content": "And from the south?"},
]  # fmt: skip
WITH_TOOLS = (
    "{% for t in tools or [] %}<|start|>tool {{ t | tojson }}<|end|>\n{% endfor %}"
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }}]{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def conversations(count: int = 2) -> list[dict[str, Any]]:
    rows = prompt_rows(count)
    for row in rows:
        del row["query"]
        row |= {"messages": TURNS, "tools": TOOLS}
    return rows


def test_the_document_stands_before_the_first_question():
    row = conversations(1)[0]
    prompt = Prompt.model_validate(row)
    assert prompt.query == "And from the south?"
    messages = to_messages(prompt)
    assert messages[1]["content"] == f"{row['context']}\n\nWhat came from the north?"
    assert [messages[0], *messages[2:]] == [TURNS[0], *TURNS[2:]]
    assert template_arguments(prompt) == {"tools": TOOLS}
    row["messages"] = [{"role": "user", "content": f"Read this: {row['context']}\n\nWhat came?"}]
    held = Prompt.model_validate(row)
    assert to_messages(held) == row["messages"]
    assert (held.query, held.question) == ("Read this: \n\nWhat came?", "Read this: \n\nWhat came?")


def test_who_judges_reads_the_whole_conversation():
    prompt = Prompt.model_validate(conversations(1)[0])
    assert prompt.question == (
        "System: Be brief.\n\nUser: What came from the north?\n\n"
        'Assistant: (calls {"name": "search", "arguments": {"q": "north"}})\n\n'
        "Tool: timber\n\nAssistant: Timber.\n\nUser: And from the south?"
    )
    assert Prompt.model_validate(prompt_rows(1)[0]).question == prompt_rows(1)[0]["query"]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "system", "content": "Be brief."}], "no turn is the user's"),
        ([*TURNS, {"role": "assistant", "content": "Salt."}], "the last turn is the assistant's"),
        ([{"role": "user", "content": [{"type": "image"}]}], "messages.0.content"),
    ],
)
def test_conversations_that_cannot_be_answered_are_refused(tmp_path: Path, messages: Any, words: str):
    row = {**prompt_rows(1)[0], "messages": messages}
    path = write_jsonl(tmp_path / "p.jsonl", [row])
    with pytest.raises(DataError, match=words):
        list(read_prompts(path))


def test_records_come_back_from_parquet_as_they_were(tmp_path: Path):
    path = tmp_path / "p.parquet"
    prompt = Prompt.model_validate(conversations(1)[0])
    write_records(path, [prompt, Prompt.model_validate({**prompt_rows(2)[1]})])
    found = list(read_prompts(path))
    assert found[0].messages == prompt.messages
    assert found[1].messages is None


def test_an_endpoint_is_asked_with_the_conversation_and_its_tools(tmp_path: Path, endpoint):
    rows = conversations(2)
    rows[1]["chat_template_kwargs"] = {"enable_thinking": True}
    assert run_sample(tmp_path, "m", "--base-url", endpoint.url, "--concurrency", "1", rows=rows) == 0
    call = endpoint.calls[0]
    assert call["messages"] == to_messages(Prompt.model_validate(rows[0]))
    assert call["tools"] == TOOLS
    assert "chat_template_kwargs" not in call
    assert endpoint.calls[1]["chat_template_kwargs"] == {"enable_thinking": True}
    written = read_jsonl(tmp_path / "out.jsonl")[0]
    assert (written["messages"], written["tools"]) == (TURNS, TOOLS)


@pytest.fixture
def tool_model(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer(WITH_TOOLS).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_from_sampling_to_training(tmp_path: Path, tool_model: Path, capsys):
    flags = ("--engine", "transformers", "--device", "cpu", "--dtype", "float32", "--n", "2")
    assert run_sample(tmp_path, tool_model, *flags, rows=conversations()) == 0
    rows = read_jsonl(tmp_path / "out.jsonl")
    for row in rows:
        for position, answer in enumerate(row["responses"]):
            answer |= {"reward": float(position), "flags": []}
    code, pairs = make(tmp_path, rows, "--min-responses", "2")
    assert code == 0
    pair = read_jsonl(pairs)[0]
    assert pair["prompt"] == to_messages(Prompt.model_validate(rows[0]))
    assert json.loads(pair["tools"]) == TOOLS
    capsys.readouterr()
    assert train(pairs, tool_model, tmp_path / "out", "--max-steps", "1", "--eval-fraction", "0") == 0
    assert "would write them otherwise" not in capsys.readouterr().err


def test_the_reward_model_reads_the_conversation(tmp_path: Path, tiny_model: Path):
    from reward_model.cli import main as reward_model
    from reward_model.modeling.model import load_backbone_for_rm, save_reward_model

    torch.manual_seed(0)
    backbone = load_backbone_for_rm(str(tiny_model), dtype=torch.float32)
    torch.nn.init.normal_(backbone.model.score.weight, std=0.3)
    save_reward_model(backbone.model, backbone.tokenizer, tmp_path / "rm", backbone.manifest)
    rows = [{**row, "responses": [{"id": "a", "text": "Salt."}]} for row in conversations(1)]
    as_text = [{**row, "query": Prompt.model_validate(row).question, "messages": None} for row in rows]
    bare = [{**row, "messages": None, "query": "And from the south?"} for row in rows]
    rewards = []
    for name, prompts in (("turns", rows), ("text", as_text), ("bare", bare)):
        path = write_jsonl(tmp_path / f"{name}.jsonl", prompts)
        output = tmp_path / f"{name}.scored.jsonl"
        assert reward_model(["score", str(tmp_path / "rm"), str(path), "--output", str(output)]) == 0
        rewards.append(read_jsonl(output)[0]["responses"][0]["reward"])
    assert rewards[0] == rewards[1] != rewards[2]
