"""A judge that repeats its prompt's example has not read the case: what it repeats counts for nothing."""

from __future__ import annotations

import json

import pytest
from judging import PlainDocument, RuleJudge, drive

from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.registry import build_dimensions
from judge_pipeline.prompts.templates import load_template
from judge_pipeline.replies.lists import example_items, plain

COPIED = {"faithfulness": "statements", "completeness": "key_points"}
OWN = {"faithfulness": "The sea is salt.", "completeness": "The sea is salt and deep."}
DOCUMENT = "The sea is salt and deep. " * 8


def shown(dimension, language="en"):
    """What the examples of a dimension's extraction prompt list."""
    template = load_template(f"{dimension}.extract", language)
    field = COPIED[dimension]
    return [line for example in template.examples for line in example[field].splitlines() if line]


class Copying(RuleJudge):
    """Lists what it is told to, once for each time the same thing is asked; then rates like its parent."""

    def __init__(self, *lists):
        super().__init__()
        self.lists, self.samples = lists, []

    def __call__(self, call):
        if not call.template.endswith(".extract"):
            return super().__call__(call)
        self.samples.append(call.sampling.sample)
        items = self.lists[min(call.sampling.sample, len(self.lists) - 1)]
        if call.json_schema is not None:
            return json.dumps({COPIED[call.template.split(".")[0]]: items}, ensure_ascii=False)
        return "\n".join(f"- {item}" for item in items) or "NONE"


def run(dimension, judge, *, document=DOCUMENT, answer="The sea is salt.", **options):
    prompt = Prompt(id="p", context=document, query="What is it?", responses=[{"id": "r", "text": answer}])
    plans = build_dimensions([dimension], JudgeOptions(**options))
    return drive(plans, prompt, PlainDocument(document, chunk_chars=2000), judge).outcomes[0]


def listed(outcome):
    rows = outcome.evidence.get("statements") or outcome.evidence.get("key_points") or []
    return [row["text"] for row in rows]


both = pytest.mark.parametrize("dimension", list(COPIED))
protocols = pytest.mark.parametrize("structured", [False, True])


@both
@protocols
def test_items_of_the_example_are_dropped_and_counted(dimension, structured):
    first, second, *_ = shown(dimension)
    judge = Copying([first, OWN[dimension], second.upper().rstrip(".")])
    outcome = run(dimension, judge, structured=structured)
    assert listed(outcome) == [OWN[dimension]]
    assert outcome.evidence["copied_from_example"] == 2
    assert outcome.score is not None
    assert judge.samples == [0]


@both
@protocols
def test_a_reply_of_nothing_else_is_asked_for_again(dimension, structured):
    judge = Copying(shown(dimension), [OWN[dimension]])
    outcome = run(dimension, judge, structured=structured)
    assert judge.samples == [0, 1]
    assert listed(outcome) == [OWN[dimension]]
    assert "copied_from_example" not in outcome.evidence


@both
@protocols
def test_a_judge_that_only_repeats_its_example_is_unparsable(dimension, structured):
    outcome = run(dimension, Copying(shown(dimension)), structured=structured)
    assert (outcome.score, outcome.reason) == (None, "unparsable")
    assert "repeats the prompt's example" in outcome.detail


@both
def test_what_the_text_really_says_is_its_own(dimension):
    items = shown(dimension)
    text = " ".join(items)
    outcome = run(dimension, Copying(items), document=text, answer=text, language="en")
    assert listed(outcome) == items
    assert "copied_from_example" not in outcome.evidence


@both
def test_an_example_that_was_not_shown_cannot_be_copied(dimension):
    outcome = run(dimension, Copying(shown(dimension)), few_shot=0)
    assert listed(outcome) == shown(dimension)


@both
def test_chinese_examples_are_known_too(dimension):
    items = shown(dimension, "zh")
    outcome = run(dimension, Copying([items[0], "海水是咸的。"]), document="海水是咸的。" * 20, language="zh")
    assert listed(outcome) == ["海水是咸的。"]
    assert outcome.evidence["copied_from_example"] == 1


@both
def test_a_limit_counts_what_is_left(dimension):
    limit = {"max_statements": 1, "max_key_points": 1}
    outcome = run(dimension, Copying([*shown(dimension)[:2], OWN[dimension]]), **limit)
    assert listed(outcome) == [OWN[dimension]]
    assert not {"statement_cap", "key_point_cap"} & outcome.evidence.keys()


def test_case_space_and_punctuation_make_no_difference():
    assert plain("The  Lighthouse was «finished» in １８８７.") == plain(
        "the lighthouse\nwas finished in 1887"
    )
    assert plain("灯塔，由莫英设计。") == plain("灯塔由莫英设计")
    assert example_items([{"statements": "One.\n\n...\nTwo"}, {"statements": ""}], "statements") == {
        "one",
        "two",
    }
