"""Answers that answer something else: another question about the document, or none.

Sentences of answers to another question read like any answer; each answer is on its question under one prompt and off
it under the other. Where a document has one question only, document sentences stand in: relevant ones in the twin,
irrelevant ones in the damaged answer.
"""

from __future__ import annotations

from random import Random

from judge_pipeline.documents.words import words
from reward_model.augment.change import Change, Material, share
from reward_model.augment.completeness import fill
from reward_model.augment.sentences import Answer, closest_length

KEEPS = ("faithfulness", "logicality")


def other_question(answer: Answer, material: Material, strength: int, rng: Random) -> Change | None:
    """Some sentences, half of them or all come from an answer to another question about the document."""
    if not material.others:
        return None
    other = Answer(closest_length(material.others, len(words(answer.text))))
    if strength == 3:
        return Change(other.text, "other question", 3, "helpfulness", KEEPS)
    size = share(strength, len(answer.sentences))
    places = sorted(rng.sample(range(len(answer.sentences)), size))
    filled = fill(places, dict(enumerate(answer.sentences)), list(other.sentences), material)
    if not size or size == len(answer.sentences) or filled is None:
        return None
    return Change(answer.exchanged(filled), "other question", strength, "helpfulness", ("faithfulness",))


def off_topic(answer: Answer, material: Material, strength: int, rng: Random) -> Change | None:
    """Some sentences, half of them or all from parts of the document that have nothing to do with the question."""
    count = len(answer.sentences)
    size = share(strength, count)
    if not size:
        return None
    places = sorted(rng.sample(range(count), size))
    own = dict(enumerate(answer.sentences))
    on = fill(places, own, material.relevant(), material)
    off = fill(places, on, material.irrelevant(), material) if on else None
    if on is None or off is None:
        return None
    twin = Change(answer.exchanged(on), "on topic", 0, None, KEEPS)
    return Change(answer.exchanged(off), "off topic", strength, "helpfulness", KEEPS, twin)
