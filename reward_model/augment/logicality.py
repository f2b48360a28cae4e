"""Answers whose reasoning fails: order lost, cause and effect exchanged, one sentence against another.

All leave the words as they are, or are compared with a twin that has the same words twice.
"""

from __future__ import annotations

import re
from random import Random

from judge_pipeline.documents.words import words
from reward_model.augment.change import Change, Material, derange, share
from reward_model.augment.facts import KINDS
from reward_model.augment.sentences import Answer, closest_length

_BECAUSE = re.compile(
    r"^(?P<effect>.{12,}?),? because (?P<cause>(?!of\b).{12,}?)(?P<end>[.;!]?)$",
    re.DOTALL,
)
_ZH_BECAUSE = re.compile(
    r"^(?P<before>.*?因为)(?P<cause>[^，]{2,})(?P<between>，所以)(?P<effect>[^。]{2,})(?P<end>。?)$",
    re.DOTALL,
)


def disordered(answer: Answer, material: Material, strength: int, rng: Random) -> Change | None:
    """Two sentences exchanged that are no neighbours, half of them out of order, all of them."""
    count = len(answer.sentences)
    size = 2 if strength == 1 else share(strength, count)
    if count < 3 or size < 2:
        return None
    if strength == 1:
        first = rng.randrange(count - 2)
        places = [first, rng.randrange(first + 2, count)]
    else:
        places = sorted(rng.sample(range(count), size))
    order = list(range(count))
    for place, number in zip(places, derange(places, rng), strict=True):
        order[place] = number
    return Change(answer.ordered(order), "order", strength, "logicality", ("faithfulness", "completeness"))


def cause_reversed(answer: Answer, material: Material, strength: int, rng: Random) -> Change | None:
    """In `strength` sentences "A because B" becomes "B because A"; the words stay."""
    found = {place: _turned(text) for place, text in enumerate(answer.sentences)}
    places = [place for place, text in found.items() if text is not None]
    if len(places) < strength:
        return None
    changes = {place: found[place] or "" for place in rng.sample(places, strength)}
    return Change(answer.exchanged(changes), "cause and effect", strength, "logicality", ("helpfulness",))


def _turned(sentence: str) -> str | None:
    match = _ZH_BECAUSE.match(sentence)
    if match:
        return f"{match['before']}{match['effect']}{match['between']}{match['cause']}{match['end']}"
    match = _BECAUSE.match(sentence)
    if match is None:
        return None
    effect, cause = match["effect"], match["cause"]
    # A name or "I" at the beginning keeps its capital; a word that the language writes small loses it.
    small = effect if effect.split()[0] not in _SMALL else effect[0].lower() + effect[1:]
    return f"{cause[0].upper()}{cause[1:]} because {small}{match['end']}"


_SMALL = frozenset(
    [
        "The",
        "A",
        "An",
        "This",
        "That",
        "These",
        "Those",
        "It",
        "He",
        "She",
        "They",
        "We",
        "In",
        "On",
        "At",
        "His",
        "Her",
        "Their",
        "Its",
    ]
)


def contradicted(answer: Answer, material: Material, strength: int, rng: Random) -> Change | None:
    """`strength` sentences said again with one fact changed; the twin says them again as they were.

    Each takes the place of a sentence of like length, so both are as long as the answer and miss the same.
    """
    lexicon, count = material.source.lexicon, len(answer.sentences)
    same: dict[int, str] = {}
    other: dict[int, str] = {}
    for place in rng.sample(range(count), count):
        free = [answer.sentences[i] for i in range(place + 1, count) if i not in same]
        pairs = lexicon.choose(Answer(answer.sentences[place]), 1, KINDS, rng)
        if len(same) < strength and place not in same and free and pairs:
            target = answer.sentences.index(
                closest_length(free, len(words(answer.sentences[place]))), place + 1
            )
            if target not in same:
                same[target] = answer.sentences[place]
                other[target] = lexicon.trade(answer.sentences[place], pairs)
    if len(same) < strength:
        return None
    twin = Change(answer.exchanged(same), "said again", 0, None, ("faithfulness",))
    return Change(answer.exchanged(other), "contradiction", strength, "logicality", ("completeness",), twin)


def inconsistent(answer: Answer, material: Material, strength: int, rng: Random) -> Change | None:
    """A fact that the answer names in several sentences changed where it comes last, as in a wrong conclusion.

    The twin changes it everywhere: as unfaithful, and of one piece.
    """
    lexicon = material.source.lexicon
    pairs = lexicon.choose(answer, 1, KINDS, rng) if strength == 1 else None
    if pairs is None:
        return None
    holding = [text for text in answer.sentences if lexicon.trade(text, pairs) != text]
    text = lexicon.trade(answer.text, pairs, last=True)
    everywhere = lexicon.trade(answer.text, pairs)
    if len(holding) < 2 or text == everywhere:
        return None
    twin = Change(everywhere, lexicon.kinds_of(pairs), 1, "faithfulness", ("logicality", "helpfulness"))
    return Change(text, "conclusion", strength, "logicality", ("helpfulness",), twin)
