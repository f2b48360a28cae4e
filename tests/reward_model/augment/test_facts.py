"""Facts traded for others of the document."""

from __future__ import annotations

import random

import pytest

from reward_model.augment.facts import KINDS, Lexicon
from reward_model.augment.negation import Balance, reverse
from reward_model.augment.sentences import Answer
from tests.reward_model.augment.augment_helpers import CHINESE, ENGLISH, chinese, english


def uses(document):
    found = {}
    for name, use in Lexicon(document).uses.items():
        found.setdefault(use.shape, set()).add(name)
    return found


def test_numbers_dates_and_names_are_found():
    found = uses(ENGLISH)
    assert {"42,000", "18,000", "240", "31"} <= found["digits"]
    assert found["year"] == {"1987", "1962"}
    assert {"March", "October", "May"} <= found["month"]
    assert {"nine", "two"} <= found["word"]
    assert {"Vale", "Olin", "Hallam", "Tolland", "Arden"} <= found["title"]
    assert not {"The", "In", "Some"} & found["title"]


def test_chinese_numbers_dates_and_names_are_found():
    found = uses(CHINESE)
    assert {"王建国", "李秀梅", "陈志远"} <= found["person"]
    assert {"青石镇", "白杨村"} <= found["place"]
    assert {"42", "18", "240"} <= found["digits"]
    assert {"三", "十"} <= found["month"]
    assert {"九", "五", "两"} <= found["han"]


def test_brackets_line_numbers_and_parts_of_words_are_no_facts():
    lexicon = Lexicon(
        "[Passage 7]\n5.1 The fee is 14 pounds for F-16 crews.\n2. They met 8 men at 7.30 by unit B12."
    )
    assert {fact.text for fact in lexicon.facts("[Passage 7] 14 F-16 B12 see 8 men")} == {"14", "8"}
    assert not {"7", "5", "2", "16", "12"} & lexicon.uses.keys()


@pytest.mark.parametrize("prompt", [english(), chinese()], ids=["english", "chinese"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_trade_changes_one_fact_and_can_be_taken_back(prompt, kind):
    lexicon = Lexicon(prompt.context)
    for response in prompt.responses:
        for seed in range(5):
            pairs = lexicon.choose(Answer(response.text), 1, [kind], random.Random(seed))
            if pairs is None:
                continue
            ((one, other),) = pairs.items()
            assert one in response.text
            assert other in prompt.context
            traded = lexicon.trade(response.text, pairs)
            assert traded != response.text
            assert lexicon.trade(traded, pairs) == response.text
            document = lexicon.trade(prompt.context, pairs)
            assert document != prompt.context
            assert sorted(document) == sorted(prompt.context) or document.count(one) == prompt.context.count(
                other
            )
            assert lexicon.kinds_of(pairs) == kind


def test_every_kind_can_be_traded_somewhere():
    for prompt in (english(), chinese()):
        lexicon = Lexicon(prompt.context)
        for kind in KINDS:
            found = [lexicon.choose(Answer(r.text), 1, [kind], random.Random(0)) for r in prompt.responses]
            assert any(found), (prompt.id, kind)


def test_partners_are_written_alike_and_share_no_sentence():
    lexicon = Lexicon(ENGLISH)
    for seed in range(10):
        pairs = lexicon.choose(
            Answer("It costs 42,000 pounds. Marta Vale said so."), 1, ["numbers"], random.Random(seed)
        )
        assert pairs == {"42,000": "18,000"}  # not 240, which is much less, nor nine, which is a word
    # Both stand in one sentence of the answer: to exchange them would change little or nothing.
    assert (
        lexicon.choose(Answer("Of 42,000 the county pays 18,000."), 1, ["numbers"], random.Random(0)) is None
    )


def test_a_fact_that_the_document_does_not_have_is_left_alone():
    assert (
        Lexicon(ENGLISH).choose(Answer("It costs 55,000 pounds."), 1, ["numbers"], random.Random(0)) is None
    )


@pytest.mark.parametrize(
    ("sentence", "negated"),
    [
        ("She was late.", "She was not late."),
        ("It has been said.", "It has not been said."),
        ("图书馆可以在十月开放。", "图书馆不可以在十月开放。"),
        ("他是孙女。", "他不是孙女。"),
    ],
)
def test_statements_are_denied_and_denials_taken_back(sentence, negated):
    assert reverse(sentence, "denied") == negated
    assert reverse(negated, "affirmed") == sentence
    assert reverse(negated, "denied") == negated


@pytest.mark.parametrize("sentence", ["Snow falls.", "She has three sons.", "They did go.", "会议很长。"])
def test_what_cannot_be_denied_without_a_trace_stays(sentence):
    assert reverse(sentence, "denied") == sentence


def test_contractions_are_opened():
    assert reverse("He can't swim.", "affirmed") == "He can swim."
    assert reverse("It wasn’t late.", "affirmed") == "It was late."


def test_denials_and_affirmations_stay_within_one():
    balance = Balance()
    assert balance.allows("denied")
    balance.count("denied")
    assert not balance.allows("denied")
    assert balance.allows("affirmed")
