"""Stories → prompts whose every answer has one known defect, in three strengths, at nearly the same length.

In: stories with questions and answers that people wrote. Out: prompts over an extract of each story, and labels that are
known because the defects were put in: 10 for a dimension left alone, 7, 4 and 1 for strengths 1, 2 and 3. The damage is
that of `reward_model.augment`; what is the benchmark's own is that every prompt has the undamaged answer and all twelve.

The undamaged answer quotes the document three times in place of what it said. That is what makes completeness fair: a
quote is exchanged for an irrelevant sentence of the same document, so the share of copied text, which a word-overlap
baseline would find at once, stays the same.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from judge_pipeline.common.records import DIMENSIONS, Label, Prompt, Response
from judge_pipeline.documents.words import words
from reward_model.augment.augment_config import STRENGTHS
from reward_model.augment.change import Change, Damage, Material, Source
from reward_model.augment.completeness import fill, quotes_of
from reward_model.augment.faithfulness import denied, traded
from reward_model.augment.helpfulness import other_question
from reward_model.augment.logicality import disordered
from reward_model.augment.negation import Balance
from reward_model.augment.sentences import Answer, tidy

POINTS = (10.0, 7.0, 4.0, 1.0)
"""Label of the degraded dimension by strength, 0 to 3."""
QUOTES = 3
LIKE = 0.05
"""Least cosine of a quote with what it stands for: people retell stories in their own words."""
UNBALANCED = Balance(limit=1_000_000)
"""Every prompt has all its damages here, so denials are not kept as frequent as affirmations."""


@dataclass(frozen=True)
class Base:
    """An undamaged answer to a question, where it quotes, and what damage draws on."""

    query: str
    answer: Answer
    quotes: dict[int, str]
    """Place → the document sentence quoted there."""
    material: Material


def make_base(document: str, prompt: Prompt, text: str) -> Base | None:
    """An answer with its three best matches quoted; None where it is too short or matches too little."""
    material = Material(Source(document), prompt, balance=UNBALANCED)
    own = Answer(tidy(text))
    found = list(quotes_of(own, material, LIKE).items())[:QUOTES]
    if len(own.sentences) < QUOTES + 2 or len(found) < QUOTES or len(material.irrelevant()) < QUOTES:
        return None
    quotes = dict(sorted(found))
    answer = Answer(own.exchanged(quotes))
    return (
        Base(prompt.query, answer, quotes, material) if len(answer.sentences) == len(own.sentences) else None
    )


def incomplete(answer: Answer, base: Base, strength: int, rng: random.Random) -> Change | None:
    """`strength` of the three quotes exchanged for irrelevant document sentences of like length."""
    places = sorted(rng.sample(sorted(base.quotes), strength))
    filled = fill(places, base.quotes, base.material.irrelevant(), base.material)
    return Change(answer.exchanged(filled), "padded", strength, "completeness", ()) if filled else None


def unfaithful(answer: Answer, material: Material, strength: int, rng: random.Random) -> Change | None:
    """`strength` changes: as many facts traded as can be, statements denied for the rest."""
    for count in range(strength, -1, -1):
        change = traded(answer, material, count, rng) if count else None
        if change is not None or count == 0:
            rest = strength - count
            changed = Answer(change.text) if change else answer
            return denied(changed, material, rest, rng) if rest else change
    return None


DEFECTS: dict[str, Damage] = {
    "helpfulness": other_question,
    "logicality": disordered,
    "faithfulness": unfaithful,
}


def degrade(base: Base, dimension: str, strength: int, rng: random.Random) -> str | None:
    """The answer with one defect; None where the text does not allow it or would stay as it is."""
    if dimension == "completeness":
        change = incomplete(base.answer, base, strength, rng)
    else:
        change = DEFECTS[dimension](base.answer, base.material, strength, rng)
    return None if change is None or change.text == base.answer.text else change.text


def paragraphs(story: str, size: int = 60) -> list[str]:
    """A story in pieces of whole paragraphs, about `size` words each."""
    found: list[str] = []
    for part in (tidy(part) for part in re.split(r"\n\s*\n", story)):
        if found and len(words(found[-1])) < size:
            found[-1] = f"{found[-1]} {part}".strip()
        elif part:
            found.append(part)
    return found


def extract(story: str, answers: Sequence[str], budget: int, rng: random.Random) -> str:
    """About `budget` words of a story in its own order: two thirds what the answers speak of, the rest at random.

    Whole stories are too long for a small machine; an extract that held only relevant text would leave nothing
    irrelevant to quote.
    """
    parts = paragraphs(story)
    vectors = TfidfVectorizer(stop_words="english", sublinear_tf=True).fit([*parts, *answers])
    likeness = (vectors.transform(parts) @ vectors.transform(answers).T).max(axis=1).toarray().ravel()
    by_likeness = np.argsort(-likeness, kind="stable").tolist()
    chosen: set[int] = set()

    def fill(order: Sequence[int], limit: float) -> None:
        for number in order:
            size = sum(len(words(parts[i])) for i in chosen)
            if number not in chosen and size + len(words(parts[number])) <= limit:
                chosen.add(number)

    fill(by_likeness[: max(1, len(parts) // 3)], budget * 2 / 3)
    fill(rng.sample(range(len(parts)), len(parts)), budget)
    return "\n\n".join(parts[number] for number in sorted(chosen))


def story_bases(
    prompts: Sequence[Prompt], rng: random.Random, budget: int = 450, length: tuple[int, int] = (50, 120)
) -> tuple[str, list[Base]]:
    """(extract, undamaged answers) of one story: at most two answers to a question, of `length` words."""
    chosen = []
    for prompt in prompts:
        fitting = [item.text for item in prompt.responses if length[0] <= len(words(item.text)) <= length[1]]
        chosen += [(prompt, answer) for answer in rng.sample(sorted(fitting), min(2, len(fitting)))]
    if len({prompt.query for prompt, _ in chosen}) < 2:
        return "", []
    document = extract(prompts[0].context, [tidy(answer) for _, answer in chosen], budget, rng)
    made = [make_base(document, prompt, answer) for prompt, answer in chosen]
    bases = [base for base in made if base is not None]
    for base in bases:
        base.material.others = [other.answer.text for other in bases if other.query != base.query]
    return document, bases if len({base.query for base in bases}) > 1 else []


def build_prompt(
    name: str, document_id: str, document: str, base: Base, rng: random.Random
) -> tuple[Prompt, list[Label]] | None:
    """The prompt with its undamaged answer and all twelve damaged ones, and their labels; None where one fails.

    Response ids say nothing about the damage; which is which stands in the responses' `source`, which no model sees.
    """
    made: list[tuple[str, int, str]] = [("none", 0, base.answer.text)]
    for dimension in DIMENSIONS:
        for strength in STRENGTHS:
            text = degrade(base, dimension, strength, rng)
            if text is None:
                return None
            made.append((dimension, strength, text))
    rng.shuffle(made)
    responses = [
        Response(id=f"a{number}", text=text, source=f"{dimension}-{strength}")
        for number, (dimension, strength, text) in enumerate(made)
    ]
    labels = [
        Label(
            prompt_id=name,
            response_id=f"a{number}",
            scores={item: POINTS[strength if item == dimension else 0] for item in DIMENSIONS},
            reward=(POINTS[strength] + 3 * POINTS[0]) / 4,
            status="labelled",
        )
        for number, (dimension, strength, _) in enumerate(made)
    ]
    prompt = Prompt(id=name, document_id=document_id, context=document, query=base.query, responses=responses)
    return prompt, labels


def build_set(
    stories: dict[str, list[Prompt]], seed: int = 0, budget: int = 450
) -> tuple[list[Prompt], list[Label]]:
    """All prompts and labels from stories (document id → its prompts)."""
    prompts: list[Prompt] = []
    labels: list[Label] = []
    for document_id, items in sorted(stories.items()):
        rng = random.Random(f"{seed}:{document_id}")
        document, bases = story_bases(items, rng, budget)
        for number, base in enumerate(bases):
            made = build_prompt(f"{document_id}-{number}", document_id, document, base, rng)
            if made is not None:
                prompts.append(made[0])
                labels += made[1]
    return prompts, labels
