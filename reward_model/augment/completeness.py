"""Answers that leave out what they said: sentences dropped, their room filled from elsewhere in the document.

Padding is copied from the document and reads like it. So the answer to compare with, the twin, copies too: the document's
own sentences that say the same stand in the same places.
"""

from __future__ import annotations

from random import Random

import numpy as np

from judge_pipeline.documents.words import words
from reward_model.augment.change import Change, Material, share
from reward_model.augment.sentences import Answer, likeness

KEEPS = ("faithfulness", "logicality")
LIKE = 0.15
"""Least cosine of a sentence and the document sentence that may stand for it."""


def dropped(answer: Answer, material: Material, strength: int, rng: Random) -> Change | None:
    """One, half or nearly all of the sentences left out, without anything in their place."""
    count = len(answer.sentences)
    size = min(share(strength, count), count - 1)
    if count < 2 or size < 1:
        return None
    text = answer.without(rng.sample(range(count), size))
    return Change(text, "dropped", strength, "completeness", KEEPS)


def padded(answer: Answer, material: Material, strength: int, rng: Random) -> Change | None:
    """Sentences dropped for document sentences on something else, beside the twin that quotes their sources."""
    quotes = quotes_of(answer, material)
    size = share(strength, len(quotes))
    if not size or size > len(answer.sentences):
        return None
    places = sorted(rng.sample(sorted(quotes), size))
    filled = fill(places, {place: quotes[place] for place in places}, material.irrelevant(), material)
    if filled is None:
        return None
    twin = Change(answer.exchanged({place: quotes[place] for place in places}), "quoted", 0, None, KEEPS)
    return Change(answer.exchanged(filled), "padded", strength, "completeness", KEEPS, twin)


def quotes_of(answer: Answer, material: Material, least: float = LIKE) -> dict[int, str]:
    """Place → the document sentence most like the answer's sentence there, the likest first; each one once."""
    pool = material.source.quotes
    if not pool or not answer.sentences:
        return {}
    alike = likeness(answer.sentences, pool)
    found: dict[int, str] = {}
    while len(found) < min(alike.shape):
        place, quote = np.unravel_index(int(alike.argmax()), alike.shape)
        if alike[place, quote] < least:
            break
        found[int(place)] = pool[int(quote)]
        alike[place, :] = alike[:, quote] = -1
    return found


def fill(
    places: list[int], like: dict[int, str], pool: list[str], material: Material
) -> dict[int, str] | None:
    """For each place a text of the pool about as long as what stands in `like`, and of words about as rare.

    Without the latter the padding of a transcript would be small talk, which shows. None when the pool is too small.
    """
    free = [text for text in pool if text not in like.values()]
    found: dict[int, str] = {}
    for place in places:
        if not free:
            return None
        length, rarity = len(words(like[place])), material.rarity(like[place])
        found[place] = min(
            free,
            key=lambda text: abs(len(words(text)) - length) / length + abs(material.rarity(text) - rarity),
        )
        free.remove(found[place])
    return found
