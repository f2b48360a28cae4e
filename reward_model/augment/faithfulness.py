"""Answers that say what the document does not: facts traded for others of the document, statements denied.

The judge's labels of answers with wrong facts say what else suffers: completeness does (a wrong fact covers nothing),
logicality and helpfulness hardly.
"""

from __future__ import annotations

from random import Random

from reward_model.augment.change import Change, Material
from reward_model.augment.facts import KINDS
from reward_model.augment.negation import Direction, reverse
from reward_model.augment.sentences import Answer

KEEPS = ("logicality", "helpfulness")


def traded(answer: Answer, material: Material, strength: int, rng: Random) -> Change | None:
    """One, two or (at least) three facts traded; of one kind where that is possible."""
    lexicon = material.source.lexicon
    for kinds in [*([kind] for kind in rng.sample(KINDS, len(KINDS))), KINDS]:
        pairs = lexicon.choose(answer, strength, kinds, rng)
        text = lexicon.trade(answer.text, pairs) if pairs else answer.text
        if pairs and text != answer.text:
            return Change(text, lexicon.kinds_of(pairs), strength, "faithfulness", KEEPS)
    return None


def denied(answer: Answer, material: Material, strength: int, rng: Random) -> Change | None:
    """`strength` statements denied or denials taken back, as the balance allows."""
    directions: tuple[Direction, Direction] = ("affirmed", "denied")
    changes: dict[int, str] = {}
    counted: list[Direction] = []
    for place in rng.sample(range(len(answer.sentences)), len(answer.sentences)):
        sentence = answer.sentences[place]
        for direction in directions:
            text = reverse(sentence, direction)
            wanted = len(changes) < strength and place not in changes and text != sentence
            if wanted and material.balance.allows(direction):
                changes[place] = text
                material.balance.count(direction)
                counted.append(direction)
    if len(changes) < strength:
        for direction in counted:  # given back: nothing was changed
            material.balance.count("affirmed" if direction == "denied" else "denied")
        return None
    return Change(answer.exchanged(changes), "negation", strength, "faithfulness", KEEPS)
