"""Reasoning models: the thinking stored apart, the final answer judged and compared, and trained as it was sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dpo_helpers import (
    make,
    make_model,
    make_tokenizer,
    prompt_rows,
    read_jsonl,
    scored_rows,
    train,
    write_jsonl,
)
from sampling import run_sample

from dpo.chat import template_id
from dpo.sample.reasoning import opens_thinking, split_reasoning

OPENS = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n"
    "{{ '<think>\n' if enable_thinking is not defined or enable_thinking else '' }}{% endif %}"
)
"""The prompt opens the thinking unless it is switched off, and a finished turn has none."""


@pytest.mark.parametrize(
    ("written", "opened", "expected"),
    [
        ("Timber.", False, (None, "Timber.")),
        ("Timber.", None, (None, "Timber.")),
        ("\n<think>\nCold.\n</think>\n\nTimber.", False, ("Cold.", "Timber.")),
        ("<think>\n</think>\n\nTimber.", False, ("", "Timber.")),
        ("Cold.\n</think>\n\nTimber.", True, ("Cold.", "Timber.")),
        ("Cold.\n</think>\n\nTimber.", None, ("Cold.", "Timber.")),
        ("Cold.\n</think>\n\nTimber.", False, (None, "Cold.\n</think>\n\nTimber.")),
        ("Cold, and still thinking", True, ("Cold, and still thinking", "")),
        ("<think>Cold, and still thinking", None, ("Cold, and still thinking", "")),
        ("A block is <think>so</think>.", None, (None, "A block is <think>so</think>.")),
    ],
)
def test_thinking_and_answer_apart(written: str, opened: bool | None, expected: tuple[str | None, str]):
    assert split_reasoning(written, opened) == expected


def test_a_prompt_that_opens_the_thinking():
    assert opens_thinking("<|start|>assistant\n<think>\n")
    assert not opens_thinking("<|start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    "more",
    [
        {"content": "Timber.", "reasoning_content": "Cold."},
        {"content": "Timber.", "reasoning": "Cold."},
        {"content": "<think>\nCold.\n</think>\n\nTimber."},
    ],
)
def test_an_endpoints_thinking_is_stored_apart(tmp_path: Path, endpoint, more: dict[str, Any]):
    endpoint.more = more
    assert run_sample(tmp_path, "m", "--base-url", endpoint.url, "--n", "1") == 0
    answer = read_jsonl(tmp_path / "out.jsonl")[0]["responses"][0]
    assert (answer["text"], answer["reasoning"]) == ("Timber.", "Cold.")
    inline = "<think>" in more["content"]
    assert answer.get("generated") == (more["content"] if inline else None)


def test_thinking_that_never_ends_is_an_empty_answer(tmp_path: Path, endpoint):
    endpoint.more = {"content": None, "reasoning_content": "Cold, and"}
    assert run_sample(tmp_path, "m", "--base-url", endpoint.url, "--n", "2") == 0
    answers = read_jsonl(tmp_path / "out.jsonl")[0]["responses"]
    assert [answer["flags"] for answer in answers] == [["empty"], ["empty", "truncated"]]
    assert answers[0]["reasoning"] == "Cold, and"


@pytest.fixture
def thinker(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "thinker")
    make_tokenizer(OPENS).save_pretrained(tmp_path / "thinker")
    return tmp_path / "thinker"


def test_template_arguments_travel_with_the_answers(tmp_path: Path, thinker: Path, capsys):
    flags = ("--engine", "transformers", "--device", "cpu", "--dtype", "float32", "--n", "2")
    assert run_sample(tmp_path, thinker, *flags) == 0
    answers = [answer for row in read_jsonl(tmp_path / "out.jsonl") for answer in row["responses"]]
    # The prompt opens the thinking and this model never ends it: all of what it wrote is that.
    assert {answer["text"] for answer in answers} == {""}
    assert all(answer["generated"].strip() == answer["reasoning"] for answer in answers)
    off = ("--chat-template-kwargs", "enable_thinking=false", "--existing", "replace")
    assert run_sample(tmp_path, thinker, *flags, *off) == 0
    rows = read_jsonl(tmp_path / "out.jsonl")
    answers = [answer for row in rows for answer in row["responses"]]
    assert all(answer["chat_template_kwargs"] == {"enable_thinking": False} for answer in answers)
    assert not any("reasoning" in answer for answer in answers)
    for row in rows:
        for position, answer in enumerate(row["responses"]):
            answer |= {"reward": float(position), "flags": []}
    code, pairs = make(tmp_path, rows, "--min-responses", "2")
    assert code == 0
    assert all(pair["chat_template_kwargs"] == {"enable_thinking": False} for pair in read_jsonl(pairs))
    capsys.readouterr()
    assert train(pairs, thinker, tmp_path / "out", "--max-steps", "1", "--eval-fraction", "0") == 0
    assert (
        "as they were sampled" not in capsys.readouterr().err
    )  # with its argument the template writes the same


def test_pairs_carry_the_thinking_and_training_uses_it(tmp_path: Path, thinker: Path, capsys):
    rows = scored_rows(2)
    for row in rows:
        for answer in row["responses"]:
            answer |= {"reasoning": f"So {answer['id']}.", "template": template_id(OPENS)}
            answer["generated"] = f"So {answer['id']}.\n</think>\n\n{answer['text']}"
    rows[1]["responses"][4].pop("reasoning")
    rows[1]["responses"][4].pop("generated")
    _, output = make(tmp_path, rows)
    pairs = read_jsonl(output)
    chosen = rows[0]["responses"][4]
    assert pairs[0]["chosen"] == [
        {"role": "assistant", "content": chosen["text"], "reasoning_content": "So sample-4."}
    ]
    assert pairs[0]["chosen_generated"] == chosen["generated"]
    assert pairs[1]["chosen"][0]["reasoning_content"] is None  # one schema for all rows
    assert pairs[1].keys() == pairs[0].keys()
    assert train(output, thinker, tmp_path / "out", "--max-steps", "1", "--eval-fraction", "0") == 0
    assert "2 of 2 pairs are trained as they were sampled" in capsys.readouterr().err


def test_answers_to_other_prompts_make_no_pair(tmp_path: Path, capsys):
    rows = scored_rows(2)
    rows[0]["responses"][0]["chat_template_kwargs"] = {"enable_thinking": False}
    code, output = make(tmp_path, rows)
    assert code == 0
    assert [pair["prompt_id"] for pair in read_jsonl(output)] == ["p1"]
    assert "sampled with other template arguments: 1" in capsys.readouterr().out


def test_a_wrong_template_argument_is_text(tmp_path: Path, endpoint):
    write_jsonl(tmp_path / "prompts.jsonl", prompt_rows(1))
    flags = ("--chat-template-kwargs", "reasoning_effort=low,budget=5")
    assert run_sample(tmp_path, "m", "--base-url", endpoint.url, *flags) == 0
    assert endpoint.calls[0]["chat_template_kwargs"] == {"reasoning_effort": "low", "budget": 5}
