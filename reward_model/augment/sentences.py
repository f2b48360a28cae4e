"""An answer as sentences in their places, and sentences of a document that can stand in an answer.

In: texts in any language. Out: the same text with some sentences exchanged, moved or left out; everything between
sentences (line breaks, bullets, blanks) stays where it was, so that a changed answer looks like the one it came from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from judge_pipeline.documents.citation import sentence_spans
from judge_pipeline.documents.retrieval import terms
from judge_pipeline.documents.words import words

_BULLET = re.compile(r"(?:[-*•–]|\d+[.)])\s+")
_NUMBERING = re.compile(r"^(?:\d+(?:\.\d+)*[.)]?|[-*•–#>]+|\[[^\]]*\])\s+")
_ENDS = (".", "!", "?", "。", "！", "？", "”", '"', "」")
SHORTEST, LONGEST = 6, 60
"""Words (characters, where there are no spaces) of a document sentence that can stand alone in an answer."""


def tidy(text: str) -> str:
    """White space made single."""
    return " ".join(text.split())


@dataclass(frozen=True)
class Answer:
    """A text and where its sentences lie in it, bullets and blanks left outside."""

    text: str

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """[start, end) of each sentence that holds a word."""
        found = []
        for start, end in sentence_spans(self.text):
            piece = self.text[start:end]
            start += len(piece) - len(piece.lstrip())
            end -= len(piece) - len(piece.rstrip())
            bullet = _BULLET.match(self.text, start, end)
            start = bullet.end() if bullet else start
            if words(self.text[start:end]):
                found.append((start, end))
        return tuple(found)

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """The sentences."""
        return tuple(self.text[start:end] for start, end in self.spans)

    def exchanged(self, changes: Mapping[int, str]) -> str:
        """The text with some sentences, named by place, exchanged for others."""
        pieces, reached = [], 0
        for place, (start, end) in enumerate(self.spans):
            pieces += [self.text[reached:start], changes.get(place, self.text[start:end])]
            reached = end
        return "".join(pieces) + self.text[reached:]

    def ordered(self, order: Sequence[int]) -> str:
        """The text with its sentences in another order: place i gets sentence `order[i]`."""
        return self.exchanged({place: self.sentences[number] for place, number in enumerate(order)})

    def without(self, places: Sequence[int]) -> str:
        """The text without some of its sentences, their bullets, and the blanks behind them."""
        pieces, reached = [], 0
        for place, (start, end) in enumerate(self.spans):
            if place in places:
                before = self.text[reached:start]
                line = before.rfind("\n") + 1
                bullet = _BULLET.fullmatch(before, line)
                pieces.append(before[: max(line - 1, 0)] if bullet else before)
                following = self.text[end:]
                reached = end + len(following) - len(following.lstrip(" "))
        return ("".join(pieces) + self.text[reached:]).strip()


def quotable(document: str) -> list[str]:
    """Sentences of a document that read as sentences of an answer: of fair length, ended, on one line, unnumbered."""
    found = []
    for line in document.splitlines():
        line = _NUMBERING.sub("", line.strip())
        for start, end in sentence_spans(line):
            text = line[start:end].strip()
            if not text.endswith(_ENDS) or "[" in text or ":" in text[:20]:
                continue
            if SHORTEST <= len(words(text)) <= LONGEST and (text[0].isupper() or not text[0].isascii()):
                found.append(text)
    return list(dict.fromkeys(found))


def likeness(one: Sequence[str], other: Sequence[str]) -> NDArray[np.float64]:
    """(len(one), len(other)) cosines of TF-IDF vectors over words, or characters and their pairs."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # seconds to import

    vectors = TfidfVectorizer(analyzer=terms, sublinear_tf=True).fit([*one, *other])
    return np.asarray((vectors.transform(one) @ vectors.transform(other).T).toarray())


def closest_length(texts: Sequence[str], length: int) -> str:
    """The text whose number of words is nearest, the first among equals."""
    return min(texts, key=lambda text: abs(len(words(text)) - length))
