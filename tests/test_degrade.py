"""Known defects: each one changes what it says, keeps the length, and labels follow from it."""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from pathlib import Path

import pytest

from judge_pipeline.common.records import DIMENSIONS, Prompt, Response
from judge_pipeline.documents.words import sentences, words

_SPEC = importlib.util.spec_from_file_location(
    "degrade", Path(__file__).resolve().parents[1] / "scripts" / "bench" / "degrade.py"
)
degrade = importlib.util.module_from_spec(_SPEC)
sys.modules["degrade"] = degrade
_SPEC.loader.exec_module(degrade)

PEOPLE = ["Marta", "Olin", "Brask", "Tessaly", "Quent", "Ferrow", "Ilde", "Soren"]
PLACES = ["the harbour", "the mill", "the observatory", "the orchard", "the quarry", "the granary"]


def story(number: int) -> list[Prompt]:
    """A story of our own making, with three questions and two answers each."""
    rng = random.Random(number)
    lines = []
    for day in range(1, 61):
        one, two = rng.sample(PEOPLE, 2)
        place = rng.choice(PLACES)
        lines.append(
            f"On day {day} of the long winter {one} was walking to {place} and met {two} beside the frozen river. "
            f"They spoke about the {rng.choice(['ledger', 'lantern', 'signal', 'engine'])} that was hidden in {place}."
        )
    context = "\n\n".join(lines)
    prompts = []
    for question, name in enumerate(rng.sample(PEOPLE, 3)):
        answers = []
        for version in range(2):
            own = [line for line in lines if name in line][:3]
            text = (
                f"In this story {name} was one of the people of the valley and had a hard winter. "
                f"Early on {name} met others beside the frozen river near {PLACES[version]}. "
                f"What {name} and Olin found was hidden in {PLACES[question]} for {question + 3} days. "
                + " ".join(
                    f"Then {name} was walking to {line.split('walking to ')[1].split(' and')[0]} again."
                    for line in own
                )
                + f" In the end {name} could not leave before {PEOPLE[question + 2]} had spoken about it."
            )
            answers.append(Response(id=str(version), text=text))
        prompts.append(
            Prompt(
                id=f"s{number}-{question}",
                document_id=f"s{number}",
                context=context,
                query=f"What did {name} do?",
                responses=answers,
            )
        )
    return prompts


@pytest.fixture(scope="module")
def made():
    return degrade.build_set({f"s{number}": story(number) for number in range(6)}, seed=0, budget=400)


def test_every_prompt_has_all_thirteen_answers_and_their_labels(made):
    prompts, labels = made
    assert len(prompts) >= 6
    by_key = {(label.prompt_id, label.response_id): label for label in labels}
    for prompt in prompts:
        sources = {response.source for response in prompt.responses}
        assert sources == {"none-0", *(f"{name}-{n}" for name in DIMENSIONS for n in (1, 2, 3))}
        for response in prompt.responses:
            dimension, strength = response.source.rsplit("-", 1)
            scores = by_key[prompt.id, response.id].scores
            assert scores == {
                name: degrade.POINTS[int(strength)] if name == dimension else 10.0 for name in DIMENSIONS
            }


def test_ids_and_order_do_not_tell_the_defect(made):
    prompts, _ = made
    places = [[response.source for response in prompt.responses].index("none-0") for prompt in prompts]
    assert len(set(places)) > 1
    assert all(response.id == f"a{i}" for prompt in prompts for i, response in enumerate(prompt.responses))


def test_lengths_stay_close_and_every_damaged_answer_differs(made):
    prompts, _ = made
    for prompt in prompts:
        whole = next(item for item in prompt.responses if item.source == "none-0")
        texts = [item.text for item in prompt.responses]
        assert len(set(texts)) == len(texts)
        for item in prompt.responses:
            assert 0.6 < len(words(item.text)) / len(words(whole.text)) < 1.6


def test_copied_text_does_not_give_completeness_away(made):
    """Both the good and the incomplete answer quote the document, so word overlap cannot tell them apart."""
    prompts, _ = made

    def copied(prompt: Prompt, source: str) -> int:
        answer = next(item.text for item in prompt.responses if item.source == source)
        document = " ".join(prompt.context.split())
        return sum(sentence in document for sentence in sentences(answer))

    for prompt in prompts:
        assert copied(prompt, "none-0") == copied(prompt, "completeness-3") == degrade.QUOTES


def test_quotes_stand_in_the_document_and_incomplete_ones_are_least_alike(made):
    document = made[0][0].context
    flat = " ".join(document.split())
    prompts = story(0)
    base = degrade.make_base(
        document, prompts[0].query, prompts[0].responses[0].text, [r.text for r in prompts[0].responses]
    )
    assert sum(unit.quote for unit in base.units) == degrade.QUOTES
    assert all(unit.text in flat for unit in base.units if unit.quote)
    damaged = degrade.incomplete(base, 3, random.Random(0))
    assert [unit.text for unit in damaged if not unit.quote] == [
        unit.text for unit in base.units if not unit.quote
    ]
    assert all(unit.text in base.irrelevant for unit in damaged if unit.quote)


@pytest.mark.parametrize(
    ("sentence", "negated"),
    [
        ("She was late.", "She was not late."),
        ("She was not late.", "She was late."),
        ("He can't swim.", "He can swim."),
        ("They didn't go.", "They did go."),
        ("Snow falls.", "Snow falls."),
    ],
)
def test_negation_is_toggled(sentence, negated):
    assert degrade.negate(sentence) == negated


def test_names_numbers_and_negations_change_one_at_a_time():
    text = "Before dawn Marta was with 12 sheep."
    versions = degrade.edits_of(text, ["Marta", "Olin"], random.Random(0))
    assert "Before dawn Olin was with 12 sheep." in versions
    assert "Before dawn Marta was not with 12 sheep." in versions
    assert any("Marta was with" in version and "12" not in version for version in versions)
    assert degrade.names_in(
        'He met Olin. "Nice day," said Olin. It was nice, and For once cold for Olin.'
    ) == ["Olin"]


def test_stronger_damage_changes_more_facts():
    prompts = story(1)
    document = "\n\n".join(degrade.paragraphs(prompts[0].context)[:12])
    base = degrade.make_base(
        document, prompts[0].query, prompts[0].responses[0].text, [r.text for r in prompts[0].responses]
    )
    changed = []
    for strength in (1, 2, 3):
        units = degrade.unfaithful(base, strength, random.Random(3))
        before, after = (" ".join(unit.text for unit in part).split() for part in (base.units, units))
        changed.append(sum(word not in before for word in after) + abs(len(after) - len(before)))
        assert [u.text for u in units if u.quote] == [u.text for u in base.units if u.quote]
    assert changed[0] < changed[2]


def test_disorder_keeps_the_sentences_and_contradiction_denies_one():
    units = [
        degrade.Unit(text) for text in ("Marta was first.", "Olin was second.", "Rain fell.", "It stopped.")
    ]
    base = degrade.Base("?", tuple(units), (), ())
    for strength in (1, 2):
        damaged = degrade.illogical(base, strength, random.Random(1))
        assert sorted(unit.text for unit in damaged) == sorted(unit.text for unit in units)
        assert list(damaged) != units
    assert all(a is not b for a, b in zip(degrade.derange(units, random.Random(2)), units, strict=True))
    last = degrade.illogical(base, 3, random.Random(1))[-1].text
    assert "not" in last


def test_an_extract_keeps_order_and_budget():
    prompts = story(2)
    found = degrade.extract(prompts[0].context, ["Marta walked to the mill"], 300, random.Random(0))
    assert len(words(found)) <= 300
    days = [int(day) for day in re.findall(r"On day (\d+)", found)]
    assert len(days) > 4
    assert days == sorted(set(days))
