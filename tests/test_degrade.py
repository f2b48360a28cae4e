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


def test_quotes_stand_in_the_document_and_what_replaces_them_is_least_alike():
    prompts = story(0)
    document = "\n\n".join(degrade.paragraphs(prompts[0].context)[:12])
    base = degrade.make_base(document, prompts[0], prompts[0].responses[0].text)
    assert len(base.quotes) == degrade.QUOTES
    assert all(text in document for text in base.quotes.values())
    assert all(base.answer.sentences[place] == text for place, text in base.quotes.items())
    damaged = degrade.Answer(degrade.incomplete(base.answer, base, 3, random.Random(0)).text)
    for place, text in enumerate(damaged.sentences):
        if place in base.quotes:
            assert text in base.material.irrelevant()
        else:
            assert text == base.answer.sentences[place]


def test_an_extract_keeps_order_and_budget():
    prompts = story(2)
    found = degrade.extract(prompts[0].context, ["Marta walked to the mill"], 300, random.Random(0))
    assert len(words(found)) <= 300
    days = [int(day) for day in re.findall(r"On day (\d+)", found)]
    assert len(days) > 4
    assert days == sorted(set(days))
