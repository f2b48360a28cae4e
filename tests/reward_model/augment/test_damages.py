"""Each damage hits what it names and leaves the rest."""

from __future__ import annotations

import itertools
import random

import pytest

from reward_model.augment import completeness, faithfulness, helpfulness, logicality, neutral
from reward_model.augment.change import Material, Source, length_change
from reward_model.augment.sentences import Answer, likeness, quotable
from tests.reward_model.augment.augment_helpers import chinese, demo, english

PROMPTS = [english(), chinese(), *demo()]
IDS = [prompt.id for prompt in PROMPTS]


def changes(damage, prompt, others=()):
    material = Material(Source(prompt.context), prompt, others)
    for response, strength in itertools.product(prompt.responses, (1, 2, 3)):
        answer = Answer(response.text)
        change = damage(answer, material, strength, random.Random(f"{response.id}{strength}"))
        if change is not None:
            yield answer, change


def test_sentences_are_put_back_where_they_were():
    text = "One is here. Two:\n- three is it;\n- four is not.\n\nFive!"
    answer = Answer(text)
    assert answer.exchanged({}) == text
    assert answer.sentences[2:4] == ("three is it;", "four is not.")
    assert answer.exchanged({3: "none is."}) == text.replace("four is not.", "none is.")
    assert Answer("One is. Two are. Few go.").ordered([2, 0, 1]) == "Few go. One is. Two are."
    assert Answer("One is. Two are. Few go.").without([1]) == "One is. Few go."
    assert answer.without([1, 2]) == "One is here. \n- four is not.\n\nFive!"
    assert Answer("雨停了。我们走吧。").ordered([1, 0]) == "我们走吧。雨停了。"


def test_quotes_read_like_sentences():
    text = "MINUTES\nPresent: all of the seven members of the board\n5.1 The fee rises from 14 to 16 pounds this year.\nNo."
    assert quotable(text) == ["The fee rises from 14 to 16 pounds this year."]


@pytest.mark.parametrize("prompt", PROMPTS, ids=IDS)
def test_wrong_facts_bring_no_word_that_document_and_answer_lack(prompt):
    found = list(changes(faithfulness.traded, prompt))
    assert found
    for answer, change in found:
        assert change.dimension == "faithfulness"
        assert change.damage in ("numbers", "dates", "names", "facts")
        before, after = answer.text, change.text
        assert len(answer.sentences) == len(Answer(after).sentences)
        known = {fact.text for fact in Source(prompt.context).lexicon.facts(prompt.context)}
        lexicon = Source(prompt.context).lexicon
        old = [fact.text for fact in lexicon.facts(before)]
        new = [fact.text for fact in lexicon.facts(after)]
        different = {other for one, other in zip(old, new, strict=True) if one != other}
        assert different
        assert different <= known


def test_stronger_damage_changes_more_facts():
    prompt = demo()[0]
    lexicon = Source(prompt.context).lexicon
    by_strength = {1: [], 2: [], 3: []}
    for answer, change in changes(faithfulness.traded, prompt):
        old, new = lexicon.facts(answer.text), lexicon.facts(change.text)
        by_strength[change.strength].append(
            len({a.text for a, b in zip(old, new, strict=True) if a.text != b.text})
        )
    assert all(count >= strength for strength, counts in by_strength.items() for count in counts)


@pytest.mark.parametrize("prompt", PROMPTS, ids=IDS)
def test_disorder_keeps_every_sentence(prompt):
    found = list(changes(logicality.disordered, prompt))
    assert found
    for answer, change in found:
        assert (change.dimension, change.damage) == ("logicality", "order")
        assert sorted(change.text) == sorted(answer.text)
        if "\n" not in answer.text:  # a sentence that led a list is no sentence elsewhere
            moved = sum(a != b for a, b in zip(answer.sentences, Answer(change.text).sentences, strict=True))
            count = len(answer.sentences)
            assert moved == {1: 2, 2: max(2, (count + 1) // 2), 3: count}[change.strength]


def test_cause_and_effect_change_places():
    material = Material(Source(english().context), english())
    turned = logicality.cause_reversed(
        Answer("It can open in October because the floor needs to dry."), material, 1, random.Random(0)
    )
    assert turned.text == "The floor needs to dry because it can open in October."
    turned = logicality.cause_reversed(
        Answer("因为屋顶漏水，所以必须先修屋顶。"), material, 1, random.Random(0)
    )
    assert turned.text == "因为必须先修屋顶，所以屋顶漏水。"
    assert (
        logicality.cause_reversed(Answer("It closed because of rain today."), material, 1, random.Random(0))
        is None
    )


@pytest.mark.parametrize("prompt", PROMPTS, ids=IDS)
def test_a_contradiction_says_a_sentence_again_and_otherwise(prompt):
    found = list(changes(logicality.contradicted, prompt))
    assert found
    for answer, change in found:
        twin = Answer(change.twin.text).sentences
        again = [text for text in twin if twin.count(text) > 1]
        assert len(set(again)) >= 1
        pairs = list(zip(answer.sentences, Answer(change.text).sentences, strict=True))
        assert (
            sum(a != b for a, b in pairs)
            == change.strength
            == sum(a != b for a, b in zip(twin, Answer(change.text).sentences, strict=True))
        )
        assert (change.twin.dimension, change.dimension) == (None, "logicality")


def test_a_wrong_conclusion_disagrees_with_the_rest_and_the_twin_does_not():
    prompt = english()
    answer = Answer(
        "The county pays 18,000 pounds. Olin Reyes gave stones. So 18,000 is what the county pays."
    )
    material = Material(Source(prompt.context), prompt)
    change = logicality.inconsistent(answer, material, 1, random.Random(2))
    assert change.dimension == "logicality"
    if "42,000" in change.text:
        assert change.text.count("18,000") == change.text.count("42,000") == 1
        assert change.twin.text.count("42,000") == 2
    assert change.twin.dimension == "faithfulness"


@pytest.mark.parametrize("prompt", PROMPTS, ids=IDS)
def test_padding_comes_from_elsewhere_in_the_document_and_so_do_the_twins_quotes(prompt):
    found = list(changes(completeness.padded, prompt))
    assert found
    quotes = quotable(prompt.context)
    for answer, change in found:
        assert change.dimension == "completeness"
        bad, good = Answer(change.text).sentences, Answer(change.twin.text).sentences
        if not len(bad) == len(good) == len(answer.sentences):
            continue  # beside other sentences an abbreviation may be read otherwise
        assert sum(a != b for a, b in zip(good, bad, strict=True)) >= change.strength
        for own, one, other in zip(answer.sentences, good, bad, strict=True):
            if one != other:
                assert one in quotes
                assert other in quotes
                near, far = likeness([own], [one, other])[0]
                assert near > far


def test_dropping_without_padding_shortens():
    for answer, change in changes(completeness.dropped, english()):
        kept = Answer(change.text).sentences
        assert set(kept) < set(answer.sentences)
        assert (
            len(kept)
            == len(answer.sentences)
            - {
                1: 1,
                2: max(2, (len(answer.sentences) + 1) // 2),
                3: len(answer.sentences) - 1,
            }[change.strength]
        )


def test_other_questions_are_answered_with_their_answers():
    others = [
        "The ferry carries ten cars. It runs each day. It was built in Tolland. A heron sat on it. It is red."
    ]
    found = list(changes(helpfulness.other_question, english(), others))
    assert {change.strength for _, change in found} == {1, 2, 3}
    for answer, change in found:
        foreign = sum(text in Answer(others[0]).sentences for text in Answer(change.text).sentences)
        if change.strength == 3:
            assert change.text == others[0]
        else:
            assert 0 < foreign < len(answer.sentences)
    assert list(changes(helpfulness.other_question, english())) == []


@pytest.mark.parametrize("prompt", PROMPTS[2:], ids=IDS[2:])
def test_off_topic_sentences_are_less_like_the_question_than_the_twins(prompt):
    asked = [prompt.query, *(item.text for item in prompt.responses)]
    for _, change in changes(helpfulness.off_topic, prompt):
        assert (change.dimension, change.damage) == ("helpfulness", "off topic")
        pairs = zip(Answer(change.twin.text).sentences, Answer(change.text).sentences, strict=True)
        changed = [(one, other) for one, other in pairs if one != other]
        assert changed
        for one, other in changed:
            alike = likeness([one, other], asked).max(axis=1)
            assert alike[0] > alike[1]


@pytest.mark.parametrize("prompt", PROMPTS, ids=IDS)
@pytest.mark.parametrize("damage", [neutral.pair_turned, neutral.neighbours_exchanged])
def test_neutral_rewritings_keep_words_and_facts(prompt, damage):
    for answer, change in changes(damage, prompt):
        assert change.dimension is None
        assert change.strength == 0
        assert "faithfulness" in change.keeps
        assert sorted(change.text) == sorted(answer.text)
        assert change.text != answer.text


def test_neighbours_that_lean_on_each_other_stay():
    material = Material(Source(english().context), english())
    leaning = Answer("Marta came. She sat down. Then it rained. They left.")
    assert neutral.neighbours_exchanged(leaning, material, 1, random.Random(0)) is None
    turned = neutral.pair_turned(Answer("At noon Marta and Olin came."), material, 1, random.Random(0))
    assert turned.text == "At noon Olin and Marta came."


def test_length_is_measured_in_words_and_characters():
    assert length_change("one two", "one two three four") == 0.5
    assert length_change("一二三", "一二") == 0.5
