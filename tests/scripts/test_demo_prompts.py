"""The quickstart's prompts: real documents of the promised lengths, and labelled ones that are parted by document."""

from __future__ import annotations

import pytest

from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.record_files import read_labels, read_prompts, write_records
from judge_pipeline.common.records import Response
from scripts.demo import prompts as prompts_script


def test_documents_have_the_promised_lengths():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2"))
    lengths = sorted(len(tokenizer(prompt.context)["input_ids"]) for prompt in prompts_script.build_prompts())
    assert len(lengths) == 6
    assert lengths[0] >= 2000
    assert lengths[-1] <= 4000


def test_the_judge_gets_two_of_the_prompts(tmp_path):
    prompts = prompts_script.build_prompts()
    for prompt in prompts:
        prompt.responses = [Response(id="a", text="An answer.")]
    write_records(tmp_path / "a.jsonl", prompts)
    assert prompts_script.main(["split", str(tmp_path / "a.jsonl"), str(tmp_path / "l.jsonl")]) == 0
    assert prompts_script.main(["split", "a.jsonl"]) == 2
    label = list(read_prompts(tmp_path / "l.jsonl"))
    assert len(label) == 2
    assert {prompt.id for prompt in label} <= {prompt.id for prompt in prompts}


@pytest.fixture(scope="module")
def dealt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dealt")
    labels = prompts_script.JUDGED.with_name("labels.jsonl")
    assert prompts_script.main(["deal", str(labels), str(folder)]) == 0
    return folder


def test_what_is_shown_is_not_learnt_from(dealt):
    sides = {}
    for name in ("learn", "shown"):
        prompts = list(read_prompts(dealt / f"{name}.jsonl"))
        rows = list(read_labels(dealt / f"{name}_labels.jsonl"))
        answers = {(prompt.id, item.id) for prompt in prompts for item in prompt.responses}
        assert {(row.prompt_id, row.response_id) for row in rows} == answers
        sides[name] = {prompt.document_id for prompt in prompts} | {prompt.context for prompt in prompts}
    assert sides["learn"].isdisjoint(sides["shown"])
    assert len(sides["shown"]) == 2 * len(prompts_script.SHOWN)
    assert len(sides["learn"]) == 2 * (36 - len(prompts_script.SHOWN))
