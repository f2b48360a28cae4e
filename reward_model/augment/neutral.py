"""Rewritings that change words and no truth: what damage must not be confused with."""

from __future__ import annotations

import re
from random import Random

import regex

from reward_model.augment.change import Change, Material
from reward_model.augment.sentences import Answer

_NAME = r"[\p{Lu}\p{Lt}][\p{L}\p{M}’'-]+"
_PAIR = regex.compile(
    rf"(?<!\p{{Lu}}[\p{{L}}’'-]*[ ,]+)(?<=[\p{{Ll}},] )(?P<one>{_NAME}) and (?P<other>{_NAME})(?! \p{{Lu}}|[’']s)"
)
"""Two names of one word each; parts of longer names, and lists, are left alone."""
_LEANS = re.compile(
    r"(?:but|and|so|then|thus|this|that|these|those|it|its|he|she|they|his|her|their|such|however|therefore|also|as|"
    r"because|hence|instead|later|finally|afterwards|meanwhile|there|here|both|another|the other)\b|"
    r"但|而|因此|所以|然而|因为|于是|这|那|其|他|她|它|并|还|也|另|最后|后来|同时",
    re.IGNORECASE,
)
"""Beginnings of sentences that lean on the one before."""


def pair_turned(answer: Answer, material: Material, strength: int, rng: Random) -> Change | None:
    """Two names joined by "and" change places."""
    matches = list(_PAIR.finditer(answer.text))
    if not matches:
        return None
    match = rng.choice(matches)
    turned = f"{match['other']} and {match['one']}"
    text = answer.text[: match.start()] + turned + answer.text[match.end() :]
    if text == answer.text:
        return None
    return Change(text, "pair turned", 0, None, ("helpfulness", "logicality", "faithfulness", "completeness"))


def neighbours_exchanged(answer: Answer, material: Material, strength: int, rng: Random) -> Change | None:
    """Two neighbouring sentences exchanged that lean on nothing before them, nor the next one on them."""
    texts = answer.sentences
    free = [not _LEANS.match(text) for text in texts]
    places = [
        place
        for place in range(1, len(texts) - 1)
        if free[place] and free[place + 1] and (place + 2 == len(texts) or free[place + 2])
    ]
    if not places:
        return None
    place = rng.choice(places)
    order = list(range(len(texts)))
    order[place], order[place + 1] = order[place + 1], order[place]
    return Change(
        answer.ordered(order), "neighbours", 0, None, ("helpfulness", "faithfulness", "completeness")
    )
