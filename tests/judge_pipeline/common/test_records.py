"""The schema: what is accepted, what is refused, and how scores become a reward."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from judge_pipeline.common.records import DIMENSIONS, Label, Prompt, Response
from judge_pipeline.common.weighting import weighted_reward

SCORES = st.dictionaries(st.sampled_from(DIMENSIONS), st.none() | st.floats(0, 10), min_size=1)


def prompt(**changes):
    row = {
        "id": "p",
        "context": "A document.",
        "query": "A question?",
        "responses": [{"id": "a", "text": "Yes."}],
    }
    return Prompt.model_validate(row | changes)


def test_integer_ids_are_names_like_any_other():
    record = prompt(id=17, document_id=3, responses=[{"id": 1, "text": "x"}, {"id": 2, "text": "y"}],
                    preferences=[{"winner": 1, "loser": 2}])  # fmt: skip
    assert (record.id, record.document_id, record.preferences[0].winner) == ("17", "3", "1")


def test_document_id_defaults_to_the_text():
    assert prompt().document_id == prompt(id="q").document_id != prompt(context="Another.").document_id


def test_unknown_fields_travel_along():
    assert prompt(task="qa").model_dump()["task"] == "qa"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"context": " \n"}, "white space"),
        ({"query": ""}, "white space"),
        ({"responses": [{"id": "a", "text": "  "}]}, "white space"),
        ({"responses": [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]}, "twice"),
        ({"preferences": [{"winner": "a", "loser": "z"}]}, "'z'"),
        ({"responses": [{"id": "a", "text": "x", "human": {"helpfulness": 85}}]}, "outside 0–10"),
    ],
)
def test_bad_prompts_are_refused(changes, word):
    with pytest.raises(ValidationError, match=word):
        prompt(**changes)


def test_an_empty_sampled_answer_is_a_record_when_it_is_marked():
    assert Response(id="a", text="", flags=["empty"]).text == ""


def test_label_scores_stay_in_range():
    with pytest.raises(ValidationError, match="outside"):
        Label(prompt_id="p", response_id="a", scores={"helpfulness": 11}, reward=None, status="partial")


@given(SCORES)
def test_reward_is_the_weighted_mean_of_what_is_there(scores):
    weights = {"helpfulness": 1.0, "logicality": 2.0, "faithfulness": 0.0, "completeness": 3.0}
    there = [
        (scores[name], weight) for name, weight in weights.items() if weight and scores.get(name) is not None
    ]
    complete = len(there) == 3
    expected = np.average([s for s, _ in there], weights=[w for _, w in there]) if there else None
    assert weighted_reward(scores, weights) == (pytest.approx(expected) if complete else None)
    assert weighted_reward(scores, weights, "mean_of_rest") == (pytest.approx(expected) if there else None)
    zero = weighted_reward(scores, weights, "zero")
    assert zero == pytest.approx(sum(s * w for s, w in there) / 6)
