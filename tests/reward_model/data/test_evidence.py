"""Evidence as training data: verdicts land on the sentences they were made of, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from judge_pipeline.common.errors import DataError
from reward_model.data.evidence import (
    KeyPoint,
    Statement,
    align,
    answer_sentences,
    load_evidence,
    sentence_targets,
)

ANSWER = "The bridge opened in 1887. It cost two million.  Nobody knows who paid.\n\nMoreau designed it."


def labels(path: Path, *evidence: dict) -> Path:
    rows = [
        {
            "prompt_id": "p1",
            "response_id": f"r{number}",
            "scores": {"faithfulness": 5.0},
            "reward": 5.0,
            "status": "labelled",
            "evidence": one,
        }
        for number, one in enumerate(evidence)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_statements_land_on_the_sentences_they_were_made_of():
    found = sentence_targets(
        ANSWER,
        [
            Statement("The bridge opened in 1887.", 1.0),
            Statement("The bridge was opened.", 0.0),
            Statement("Moreau designed the bridge.", 0.5),
            Statement("The cost of it was two million.", 1.0),
        ],
    )
    assert [ANSWER[one.start : one.end] for one in found] == [
        "The bridge opened in 1887.",
        "It cost two million.",
        "Nobody knows who paid.",
        "Moreau designed it.",
    ]
    # One false statement makes a sentence false; a sentence without statements has no target.
    assert [one.support for one in found] == [0.0, 1.0, None, 0.5]


def test_chinese_sentences_are_cut_exactly_and_aligned():
    text = "这座桥于1887年开通。造价为两百万！没有人知道是谁付的钱。"
    found = sentence_targets(
        text, [Statement("大桥的造价是两百万。", 0.0), Statement("桥于1887年开通。", 1.0)]
    )
    assert [text[one.start : one.end] for one in found] == [
        "这座桥于1887年开通。",
        "造价为两百万！",
        "没有人知道是谁付的钱。",
    ]
    assert [one.support for one in found] == [1.0, 0.0, None]


def test_a_repeated_sentence_gets_the_verdict_each_time_and_foreign_words_none():
    text = "Rain fell. Rain fell. The sun shone."
    sentences = answer_sentences(text)
    assert align(text, sentences, ["Rain fell.", "Elephants migrate northwards."]) == [[0, 1], []]
    assert answer_sentences(" \n ... ") == []


def test_evidence_of_each_answer_is_read_and_absent_evidence_gives_no_rows(tmp_path):
    file = labels(
        tmp_path / "labels.jsonl",
        {
            "faithfulness": {
                "statements": [
                    {"text": "One.", "verdict": "full", "spans": []},
                    {"text": "Two.", "verdict": "partial"},
                    {"text": "Three.", "verdict": None, "failure": "truncated"},
                ]
            },
            "completeness": {
                "key_points": [
                    {"text": "A", "chunk": 0, "start": 3, "end": 9, "covered": True},
                    {"text": "B", "covered": False},
                    {"text": "C", "covered": None},
                ]
            },
        },
        {},
        {"faithfulness": {"statements": [], "rule": "no_statements:10"}, "completeness": None},
    )
    found = load_evidence(file)
    assert list(found) == [("p1", "r0")]
    assert found["p1", "r0"].statements == (Statement("One.", 1.0), Statement("Two.", 0.5))
    assert found["p1", "r0"].key_points == (KeyPoint("A", (3, 9), True), KeyPoint("B", None, False))


@pytest.mark.parametrize(
    ("evidence", "field"),
    [
        ({"faithfulness": {"statements": [{"text": "x", "verdict": "maybe"}]}}, "statements.0.verdict"),
        ({"faithfulness": {"statements": [{"verdict": "full"}]}}, "statements.0.text"),
        ({"faithfulness": {"statements": "none"}}, "evidence.faithfulness.statements"),
        ({"completeness": {"key_points": [{"text": "x", "covered": "some"}]}}, "key_points.0.covered"),
        ({"completeness": [1]}, "evidence.completeness"),
    ],
)
def test_broken_evidence_names_answer_and_field(tmp_path, evidence, field):
    with pytest.raises(DataError) as caught:
        load_evidence(labels(tmp_path / "labels.jsonl", {}, evidence))
    assert field in str(caught.value)
    assert "response 'r1' of prompt 'p1'" in str(caught.value)
    assert "--evidence off" in str(caught.value)
