"""Changed answers become pairs and contrasts of the training examples, and never those of held-out documents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from judge_pipeline.common.errors import DataError, UserError
from judge_pipeline.common.record_files import write_records
from reward_model.data.batches import (
    StepOrder,
    collate,
    contrasted,
    encode_examples,
    passes_per_step,
    token_batches,
)
from reward_model.data.contrasts import add_contrasts, pairs_of, read_pairs
from reward_model.data.examples import Example
from reward_model.data.splits import document_groups
from reward_model.shared_prefix.layout import EncodedPrompt

DIMENSIONS = ("logicality", "faithfulness")


def change(
    origin: str, dimension: str | None = "faithfulness", strength: int = 2, keeps=("logicality",)
) -> dict:
    return {
        "from": origin,
        "dimension": dimension,
        "strength": strength,
        "damage": "names",
        "keeps": list(keeps),
    }


def records() -> list[dict]:
    """A prompt with a damaged and a neutral answer, beside a changed document, and a prompt nobody labelled."""
    answers = [
        {"id": "a", "text": "Marta came."},
        {"id": "a~1", "text": "Olin came.", "source": "augmented", "augmented": change("a")},
        {"id": "a~2", "text": "Came Marta.", "augmented": change("a", None, 0, ["faithfulness"])},
    ]
    beside = [
        {"id": "a", "text": "Marta came.", "augmented": change("a~1", strength=1)},
        {"id": "a~1", "text": "Olin came.", "augmented": change("a", None, 0, [])},
    ]
    return [
        {"id": "p", "document_id": "d", "context": "Marta came.", "query": "Who?", "responses": answers},
        {
            "id": "p~d",
            "document_id": "d",
            "context": "Olin came.",
            "query": "Who?",
            "responses": beside,
            "augmented": {
                "contrast_with": "p",
                "dimension": "faithfulness",
                "strength": 1,
                "damage": "names of the document",
                "keeps": ["logicality"],
            },
        },
        {
            "id": "q",
            "document_id": "e",
            "context": "Rain fell.",
            "query": "What?",
            "responses": [
                {"id": "x", "text": "Rain."},
                {"id": "y", "text": "Snow.", "augmented": change("x", strength=3, keeps=())},
            ],
        },
    ]


def example(
    name: str = "p", document: str = "d", context: str = "Marta came.", query: str = "Who?"
) -> Example:
    targets = np.array([[9.0, 8.0], [5.0, 4.0]], np.float32)
    return Example(
        name, document, context, query, ("b", "a"), ("Nobody.", "Marta came."), targets, np.ones_like(targets)
    )


def written(tmp_path, rows):
    write_records(tmp_path / "augmented.jsonl", rows)
    return tmp_path / "augmented.jsonl"


def test_pairs_stand_within_a_prompt_and_across_documents(tmp_path):
    _, pairs = read_pairs(written(tmp_path, records()))
    found = {(pair.better, pair.worse): (pair.dimension, pair.equal, pair.strength) for pair in pairs}
    assert found == {
        (("p", "a"), ("p", "a~1")): ("faithfulness", ("logicality",), 2),
        (("p", "a"), ("p", "a~2")): (None, ("faithfulness",), 0),
        (("p~d", "a~1"), ("p~d", "a")): ("faithfulness", ("logicality",), 1),
        (("p", "a"), ("p~d", "a")): ("faithfulness", ("logicality",), 1),
        (("p~d", "a~1"), ("p", "a~1")): ("faithfulness", ("logicality",), 1),
        (("q", "x"), ("q", "y")): ("faithfulness", (), 3),
    }


def test_changed_answers_join_the_labelled_example_and_others_are_examples_of_their_own(tmp_path):
    added = add_contrasts(written(tmp_path, records()), [example()], [], DIMENSIONS)
    assert [item.prompt_id for item in added.train] == ["p", "p~d", "q"]
    first = added.train[0]
    assert first.response_ids == ("b", "a", "a~1", "a~2")
    assert first.responses[2] == "Olin came."
    assert first.targets_N_D[:2].tolist() == [[9, 8], [5, 4]]
    assert np.isnan(first.targets_N_D[2:]).all()
    assert [(one.better, one.worse) for one in first.contrasts] == [
        (("p", 1), ("p", 2)),
        (("p", 1), ("p", 3)),
        (("p~d", 1), ("p", 2)),
    ]
    np.testing.assert_array_equal([one.gaps_D for one in first.contrasts], [[0, 2], [np.nan, 0], [0, 1]])
    assert [item.changed_document for item in added.train] == [False, True, False]
    assert (added.contrasts, added.held_out, added.untaught) == (6, 0, 0)
    assert "6 pairs" in added.describe()


def test_no_file_changes_nothing():
    train = [example()]
    assert add_contrasts(None, train, [], DIMENSIONS).train is train


@pytest.mark.parametrize(
    "held",
    [
        example("h", "d", "Other text"),
        example("h", "other", " marta  CAME."),
        example("h", "g", "Olin came."),
    ],
)
def test_nothing_of_a_held_out_document_is_learnt(tmp_path, held):
    """By the document's id, by its text, and by the text of the document an answer was laid beside."""
    train = [example("t", "t", "Another document.")]
    added = add_contrasts(written(tmp_path, records()), train, [held], DIMENSIONS)
    texts = {item.context.lower() for item in added.train}
    names = {item.document_id for item in added.train}
    assert " ".join(held.context.lower().split()) not in texts
    assert held.document_id not in names
    left = {"d": 2, "other": 1, "g": 1}[held.document_id]
    assert added.held_out == left
    assert f"{left} prompts of held-out documents left out" in added.describe()
    kept = {item.prompt_id for item in added.train}
    for item in added.train:
        assert all({one.better[0], one.worse[0]} <= kept for one in item.contrasts)


def test_when_everything_is_held_out_or_of_no_output_it_is_said(tmp_path):
    path = written(tmp_path, records()[:2])
    with pytest.raises(UserError, match="nothing to learn from: 2 of 2 prompts are of held-out documents"):
        add_contrasts(path, [example("t", "t", "T")], [example()], DIMENSIONS)
    with pytest.raises(UserError, match="damage or keep none of overall"):
        add_contrasts(path, [example("t", "t", "T")], [], ("overall",))
    one = replace(
        example(), targets_N_D=np.ones((2, 1), np.float32), confidence_N_D=np.ones((2, 1), np.float32)
    )
    some = add_contrasts(path, [one], [], ("logicality",))
    assert (some.contrasts, some.untaught) == (4, 1)


def test_texts_in_anothers_place_join_no_documents():
    own, other = example(), example("o", "e", "Rain fell.")
    beside = example("p~o", "d", "Rain fell.")
    groups = document_groups([own, other, beside])
    assert len(set(groups)) == 1
    groups = document_groups([own, other, replace(beside, changed_document=True)])
    assert groups[0] == groups[2] != groups[1]


def spoiled(edit):
    rows = records()
    edit(rows)
    return rows


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda rows: rows[0]["responses"][1]["augmented"].pop("from"),
            r"responses\.1\.augmented\.from.*missing.*'p'",
        ),
        (
            lambda rows: rows[0]["responses"][1]["augmented"].update(strength=4),
            r"responses\.1\.augmented\.strength",
        ),
        (lambda rows: rows[0]["responses"][1].update(augmented="names"), r"responses\.1\.augmented"),
        (
            lambda rows: rows[0]["responses"][1]["augmented"].update({"from": "z"}),
            r"'z' is no answer of this prompt",
        ),
        (
            lambda rows: rows[1]["augmented"].update(contrast_with="z"),
            r"contrast_with.*'z' is no other prompt",
        ),
        (lambda rows: rows[1]["augmented"].pop("contrast_with"), r"augmented\.contrast_with.*missing.*'p~d'"),
        (
            lambda rows: rows[1]["responses"][0].update(text="Else."),
            r"responses\.0.*'a' stands not, or with another",
        ),
        (
            lambda rows: rows.__setitem__(slice(None), [dict(rows[2], responses=rows[2]["responses"][:1])]),
            "no answer that",
        ),
    ],
)
def test_bad_records_are_named(tmp_path, edit, message):
    with pytest.raises(DataError, match=message):
        read_pairs(written(tmp_path, spoiled(edit)))


def test_answers_and_documents_must_be_those_that_were_labelled(tmp_path):
    path = written(tmp_path, records())
    with pytest.raises(DataError, match=r"id.*another document or question.*"):
        add_contrasts(path, [example(query="When?")], [], DIMENSIONS)
    other = replace(example(), responses=("Nobody.", "Marta left."))
    with pytest.raises(DataError, match=r"responses\.0\.text.*another text than the labelled"):
        add_contrasts(path, [other], [], DIMENSIONS)


def encode(context, query, responses):
    return EncodedPrompt(
        np.ones(len(context), np.int32), tuple(np.ones(len(text), np.int32) for text in responses)
    )


def test_prompts_of_a_contrast_are_read_together(tmp_path):
    rows = records()
    added = add_contrasts(written(tmp_path, rows), [example()], [], DIMENSIONS)
    items = encode_examples(added.train[::-1], encode)  # q, p~d, p
    assert contrasted(items) == [[0], [1, 2]]
    size = {item.prompt_id: item.shape.total for item in items}
    assert token_batches(items, 1000, contrasted(items)) == [[1, 2, 0]]
    assert token_batches(items, size["p"], contrasted(items)) == [
        [1, 2],
        [0],
    ]  # over the budget, and still together
    batch = collate([items[index] for index in (1, 2)])
    assert batch["prompt_ids"] == ["p~d", "p"]
    pairs = sorted(zip(batch["better_C"].tolist(), batch["worse_C"].tolist(), strict=True))
    # Answers: p~d has a, a~1; p has b, a, a~1, a~2.
    assert pairs == sorted([(1, 0), (3, 0), (3, 4), (3, 5), (1, 4)])
    assert batch["gaps_C_D"].shape == (5, 2)
    alone = collate([items[2]])
    assert alone["better_C"].tolist() == [1, 1]  # without the other document's answers, only those within
    filler = collate([items[2].masked()])
    assert filler["gaps_C_D"].shape == (0, 2)
    assert torch.equal(filler["better_C"], torch.empty(0, dtype=torch.long))


def test_steps_of_so_many_prompts_keep_them_together_too(tmp_path):
    added = add_contrasts(written(tmp_path, records()), [example()], [], DIMENSIONS)
    items = encode_examples(added.train, encode)  # p, p~d, q
    total = items[0].shape.total + items[1].shape.total
    passes = passes_per_step(items, 3, total, seed=0, epochs=3, world=1)
    assert passes == 2
    for epoch in range(3):
        order = StepOrder(items, 3, passes, seed=0)
        order.set_epoch(epoch)
        assert sorted(map(sorted, order)) == [[0, 1], [2]]
    assert passes_per_step(items, 1, total, seed=0, epochs=3, world=1) == 1


def test_pairs_without_a_file():
    assert list(pairs_of([])) == []
