"""What a change of an answer is, and what changes draw on.

A `Change` is damage to one dimension, or neutral: a rewriting that leaves what it keeps as good as it was. Damage that
leaves a trace in the wording is compared not with the answer itself but with a *twin*, a neutral change that leaves the
same trace, so that no one can tell the two apart without the document or the question.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

import numpy as np

from judge_pipeline.common.records import Prompt
from judge_pipeline.documents.words import words
from reward_model.augment.facts import Lexicon
from reward_model.augment.negation import Balance
from reward_model.augment.sentences import Answer, likeness, quotable


@dataclass(frozen=True)
class Change:
    """A changed answer."""

    text: str
    damage: str
    """What was done to it, in a word or two."""
    strength: int
    """1–3; 0 when nothing is worse."""
    dimension: str | None
    """The dimension that is worse; None when nothing is."""
    keeps: tuple[str, ...]
    """Dimensions that are as good as they were; nothing is known of those that stand in neither."""
    twin: Change | None = None
    """What it was made from and is compared with, when not the answer itself."""


@dataclass
class Source:
    """A document: its facts, and its sentences that can stand in an answer."""

    text: str

    @cached_property
    def lexicon(self) -> Lexicon:
        """The document's facts."""
        return Lexicon(self.text)

    @cached_property
    def word_counts(self) -> Counter[str]:
        """How often each word stands in it."""
        return Counter(words(self.text))

    @cached_property
    def quotes(self) -> list[str]:
        """Sentences that read as sentences of an answer."""
        return quotable(self.text)


@dataclass
class Material:
    """What the answers to one prompt may be changed with."""

    source: Source
    prompt: Prompt
    others: Sequence[str] = ()
    """Answers to other questions about the document."""
    balance: Balance = field(default_factory=Balance)

    @cached_property
    def by_relevance(self) -> list[str]:
        """The document's quotable sentences, those least like the question and all its answers first."""
        texts = [self.prompt.question, *(item.text for item in self.prompt.responses)]
        quotes = self.source.quotes
        if not quotes:
            return []
        order = np.argsort(likeness(quotes, texts).max(axis=1), kind="stable")
        return [quotes[number] for number in order.tolist()]

    def rarity(self, text: str) -> float:
        """How rare a text's words are in the document: mean −log of their frequency, in nats."""
        found = words(text)
        counts = self.source.word_counts
        total = counts.total() + 1
        return sum(math.log(total / (counts[word] + 1)) for word in found) / max(1, len(found))

    def irrelevant(self) -> list[str]:
        """The third of the document's sentences that has least to do with question and answers."""
        return self.by_relevance[: len(self.by_relevance) // 3]

    def relevant(self) -> list[str]:
        """The third that has most to do with them."""
        return self.by_relevance[len(self.by_relevance) - len(self.by_relevance) // 3 :]


Damage = Callable[[Answer, Material, int, Random], Change | None]
"""(answer, material, strength 1–3, random numbers) → the changed answer; None where the text does not allow it."""


def share(strength: int, count: int) -> int:
    """How many of `count` things a strength takes: one, half, all; 0 where that is no more than the strength below."""
    sizes = (0, 1, max(2, (count + 1) // 2), max(3, count))
    return sizes[strength] if sizes[strength] <= count else 0


def derange(items: Sequence[int], rng: Random) -> list[int]:
    """An order of two or more items in which none keeps its place."""
    while True:
        order = rng.sample(list(items), len(items))
        if all(one != other for one, other in zip(order, items, strict=True)):
            return order


def length_change(text: str, original: str) -> float:
    """By what share of the original's words a text is longer or shorter."""
    return abs(len(words(text)) / max(1, len(words(original))) - 1)
