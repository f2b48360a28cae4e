"""Pairs to ids: every format that TRL takes gets TRL's ids, or is refused by name; sampled answers stay as sampled."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from dpo_helpers import make_tokenizer, train, write_jsonl
from trl import DPOConfig, DPOTrainer

from dpo.chat import template_id
from dpo.pairs.records import Pair, read_pairs
from dpo.train.rendering import PairIds, PairRenderer
from judge_pipeline.common.errors import DataError
from judge_pipeline.common.records import FieldError

THINKS = (
    "{% if tools %}<|start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|end|>\n{% endif %}"
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}"
    "<think>\n{{ m.reasoning_content if m.reasoning_content is defined else '' }}\n</think>\n\n{% endif %}"
    "{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}"
    "<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Like Qwen3's: tools, tool calls, thinking kept in the last turn only, and a switch."""
STRIPS = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n<think>\n{% endif %}"
)
"""Like DeepSeek-R1's: the prompt opens the thinking, and a finished turn has none."""

USER = {"role": "user", "content": "Which ships came from the north?"}
TOOL = {
    "type": "function",
    "function": {"name": "search", "description": "Find <|end|> ships.", "parameters": {}},
}
CALL = {"type": "function", "function": {"name": "search", "arguments": {"where": "north"}}}


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


FORMATS: dict[str, dict[str, Any]] = {
    "turns": {"prompt": [USER], "chosen": [says("Timber.")], "rejected": [says("Salt.")]},
    "text": {"prompt": "Ships from the", "chosen": " north.", "rejected": " south.<|end|>"},
    "implied turns": {"chosen": [USER, says("Timber.")], "rejected": [USER, says("Salt.")]},
    "implied text": {"chosen": "Ships from the north.", "rejected": "Ships from the south."},
    "system and several turns": {
        "prompt": [{"role": "system", "content": "Be brief."}, USER, says("Which year?"), USER],
        "chosen": [says("Timber.")],
        "rejected": [says("Salt.")],
    },
    "tools": {
        "prompt": [USER],
        "chosen": [says("", tool_calls=[CALL])],
        "rejected": [says("Salt.")],
        "tools": json.dumps([{**TOOL, "function": {**TOOL["function"], "description": "Find ships."}}]),
    },
    "tool turns": {
        "prompt": [USER],
        "chosen": [says("", tool_calls=[CALL]), {"role": "tool", "content": "timber"}, says("Timber.")],
        "rejected": [says("Salt.")],
    },
    "arguments": {
        "prompt": [USER],
        "chosen": [says("Timber.")],
        "rejected": [says("Salt.")],
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "reasoning": {
        "prompt": [USER],
        "chosen": [says("Timber.", reasoning_content="North is cold.")],
        "rejected": [says("Salt.", reasoning_content="Salt is salt.")],
    },
}


def trl_ids(row: dict[str, Any], tokenizer: Any) -> dict[str, list[int]]:
    """What stock TRL makes of a row."""
    stand_in = SimpleNamespace(_tokenizer=tokenizer)
    args = DPOConfig(output_dir="unused", max_length=None, use_cpu=True, bf16=False)
    dataset = DPOTrainer._prepare_dataset(stand_in, Dataset.from_list([row]), tokenizer, args, "train")
    return {name: dataset[0][name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}


def our_ids(row: dict[str, Any], template: str = THINKS) -> PairIds:
    return PairRenderer(make_tokenizer(template)).render(Pair.model_validate(row))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_trls_ids(name: str):
    row, ids = FORMATS[name], our_ids(FORMATS[name])
    expected = trl_ids(row, make_tokenizer(THINKS))
    assert {"prompt_ids": ids.prompt, "chosen_ids": ids.chosen, "rejected_ids": ids.rejected} == expected
    text = make_tokenizer(THINKS).decode(ids.prompt + ids.chosen)
    wanted = {"tools": "Find ships.", "tool turns": "<|start|>tool\ntimber", "reasoning": "North is cold."}
    assert wanted.get(name, "") in text


def test_control_tokens_in_tools_are_text():
    row = {**FORMATS["turns"], "tools": [TOOL]}
    ids = our_ids(row)
    assert ids.spells == "<|end|>"
    assert "Find <|end|> ships." in make_tokenizer(THINKS).decode(ids.prompt)
    assert ids.prompt.count(2) == 2  # the template's own: behind the tools and behind the question


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "chosen": [says("b")], "rejected": "c"}, "prompt is text, chosen is turns"),
        ({**FORMATS["turns"], "images": ["x.png"]}, "field 'images': pictures are not trained on"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": [says("b")], "rejected": [says("c")]},
            "'image'; only text",
        ),
        ({"chosen": [says("b")], "rejected": [says("c")]}, "chosen and rejected do not begin alike"),
        ({**FORMATS["turns"], "ref_chosen_logps": -1.0}, "field 'ref_chosen_logps': the reference is computed here"),
    ],
)  # fmt: skip
def test_what_is_not_trained_on_is_refused_by_name(tmp_path: Path, row: dict[str, Any], words: str):
    path = write_jsonl(tmp_path / "pairs.jsonl", [FORMATS["turns"], row])
    with pytest.raises(DataError, match=words) as error:
        list(read_pairs(path))
    assert "line 2" in str(error.value)


def test_a_template_that_refuses_turns_names_the_pair():
    template = "{{ raise_exception('no system turns') if messages[0].role == 'system' }}"
    row = {**FORMATS["turns"], "prompt": [{"role": "system", "content": "Be brief."}, USER]}
    with pytest.raises(FieldError, match="no system turns"):
        our_ids(row, template)


def test_formats_of_all_kinds_are_trained_in_one_run(tmp_path: Path, tiny_model: Path):
    rows = [row for name, row in FORMATS.items() if name not in ("tools", "reasoning")]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows)
    assert train(pairs, tiny_model, tmp_path / "out", "--eval-fraction", "0", "--max-steps", "2") == 0


def sampled(template: str, text: str, reasoning: str, generated: str | None) -> dict[str, Any]:
    row = {"prompt": [USER], "chosen": [says(text, reasoning_content=reasoning)], "rejected": [says("Salt.")]}
    return {**row, "chosen_generated": generated, "template": template_id(template)}


def test_a_template_that_strips_thinking_trains_what_was_sampled():
    tokenizer = make_tokenizer(STRIPS)
    ids = our_ids(sampled(STRIPS, "Timber.", "Cold.", "Cold.\n</think>\n\nTimber."), STRIPS)
    assert tokenizer.decode(ids.prompt).endswith("<|start|>assistant\n<think>\n")
    assert tokenizer.decode(ids.chosen) == "Cold.\n</think>\n\nTimber.<|end|>\n"
    assert tokenizer.decode(ids.rejected) == "Salt.<|end|>\n"
    assert ids.as_sampled


def test_an_answer_without_thinking_gets_none_put_in():
    ids = our_ids({**FORMATS["turns"], "template": template_id(THINKS)})
    assert make_tokenizer(THINKS).decode(ids.chosen) == "Timber.<|end|>\n"
    assert ids.as_sampled
    with_template = our_ids(FORMATS["turns"])  # not sampled here: as the template writes it
    assert make_tokenizer(THINKS).decode(with_template.chosen) == "<think>\n\n</think>\n\nTimber.<|end|>\n"


def test_thinking_that_the_template_keeps_is_rendered_by_it():
    row = sampled(THINKS, "Timber.", "Cold.", "<think>\nCold.\n</think>\n\nTimber.")
    row["rejected"][0]["reasoning_content"] = "Warm."
    row["rejected_generated"] = "<think>\nWarm.\n</think>\n\nSalt."
    ids = our_ids(row)
    assert not ids.as_sampled
    assert make_tokenizer(THINKS).decode(ids.chosen) == "<think>\nCold.\n</think>\n\nTimber.<|end|>\n"


def test_reasoning_that_would_be_lost_is_refused(tmp_path: Path, tiny_model: Path, capsys):
    row = sampled(STRIPS, "Timber.", "Cold.", None)
    with pytest.raises(FieldError, match="leaves out the reasoning"):
        our_ids(row, STRIPS)
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{**row, "template": None}])
    assert train(pairs, tiny_model, tmp_path / "out", "--eval-fraction", "0") == 2
    said = capsys.readouterr().err
    assert "line 1, field 'chosen.0.reasoning_content': the chat template leaves out the reasoning" in said


TRUNCATED = {
    "turns": {"prompt": [USER], "chosen": [says("Timber and")], "rejected": [says("Salt.")]},
    "text": {"prompt": "Ships from the", "chosen": " north and", "rejected": " south."},
}


@pytest.mark.parametrize("form", TRUNCATED)
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_an_answer_that_was_cut_off_has_no_end(form: str, side: str):
    """The model did not stop there, and is not taught to; the other answer keeps its end."""
    renderer = PairRenderer(make_tokenizer())
    row = TRUNCATED[form]
    whole = renderer.render(Pair.model_validate(row))
    cut = renderer.render(Pair.model_validate({**row, f"{side}_truncated": True}))
    ids, ended = getattr(cut, side), getattr(whole, side)
    text = row[side] if form == "text" else row[side][0]["content"]
    assert renderer.tokenizer.decode(ids) == text
    assert ended[: len(ids)] == ids
    other = {"chosen": "rejected", "rejected": "chosen"}[side]
    assert (cut.prompt, getattr(cut, other)) == (whole.prompt, getattr(whole, other))


def test_a_cut_off_answer_as_it_was_sampled_has_no_end_either():
    renderer = PairRenderer(make_tokenizer(THINKS))
    row = {**TRUNCATED["turns"], "template": renderer.template, "chosen_truncated": True}
    row |= {"chosen_generated": "<think>\nhm", "rejected_generated": "<think>\nno\n</think>\n\nSalt."}
    found = renderer.render(Pair.model_validate(row))
    assert found.as_sampled
    assert renderer.tokenizer.decode(found.chosen) == "<think>\nhm"
    assert renderer.tokenizer.decode(found.rejected).endswith("Salt.<|end|>\n")


def test_an_end_that_cannot_be_told_from_the_answer_is_refused():
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if not add_generation_prompt %}{{ messages | length }}{% endif %}"
    renderer = PairRenderer(
        make_tokenizer(template.replace("messages | length", "messages[-1].content | length"))
    )
    with pytest.raises(FieldError, match="cut off"):
        renderer.render(Pair.model_validate({**TRUNCATED["turns"], "chosen_truncated": True}))
