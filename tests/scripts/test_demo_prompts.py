"""The quickstart's prompts: real documents of the promised lengths, dealt in two halves."""

from __future__ import annotations

from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.record_files import read_prompts, write_records
from judge_pipeline.common.records import Response
from scripts.demo import prompts as prompts_script


def test_documents_have_the_promised_lengths():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2"))
    lengths = sorted(len(tokenizer(prompt.context)["input_ids"]) for prompt in prompts_script.build_prompts())
    assert len(lengths) >= 8
    assert lengths[0] >= 2000
    assert lengths[-2] <= 4000
    assert 6000 < lengths[-1] < 8192


def test_the_halves_are_disjoint_and_whole(tmp_path):
    prompts = prompts_script.build_prompts()
    for prompt in prompts:
        prompt.responses = [Response(id="a", text="An answer.")]
    write_records(tmp_path / "a.jsonl", prompts)
    argv = ["split", str(tmp_path / "a.jsonl"), str(tmp_path / "l.jsonl"), str(tmp_path / "s.jsonl")]
    assert prompts_script.main(argv) == 0
    assert prompts_script.main(["split", "a.jsonl"]) == 2
    label, score = (list(read_prompts(tmp_path / name)) for name in ("l.jsonl", "s.jsonl"))
    assert len(label) == len(score) == 5
    assert {p.document_id for p in label} & {p.document_id for p in score} == set()
    assert {p.id for p in label + score} == {p.id for p in prompts}
