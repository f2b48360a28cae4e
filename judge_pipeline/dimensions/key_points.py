"""The key points of a document: near-duplicates merged, each with its place, in groups where they are many.

Chunks are read apart from each other, so that several may give the same point. By words alone one says nothing of its
own when all its words stand in another in the same order, and neither denies what the other says: the fuller wording
is kept, with the places of both. Numbers and names are words like others, so that points about other years, amounts or
people stay apart. A point kept too many costs a line; one merged too many would be lost for every answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from judge_pipeline.dimensions.base import Document
from judge_pipeline.documents.chunking import Span
from judge_pipeline.documents.citation import locate
from judge_pipeline.documents.words import Language, terms
from judge_pipeline.prompts.fences import one_line
from judge_pipeline.replies.lists import Items

STEM = 6
"""Letters by which two words are the same ("damage", "damaged")."""
DENIALS = frozenset(
    ["no", "not", "never", "none", "nor", "neither", "without", "cannot", "t", *"不没未无非否"]
)
"""Words, and characters, that turn a statement round ("isn't" has the term "t")."""


@dataclass
class KeyPoint:
    """Something the document says on the question, and the chunk (by number from 0) that says it."""

    text: str
    chunk: int
    span: Span
    """The sentences it was taken from, or the whole chunk where its wording is its own."""
    also: list[KeyPoint] = field(default_factory=list)
    """Points that say no more than this one."""

    def place(self) -> dict[str, int]:
        """Where the document says it."""
        return {"chunk": self.chunk, "start": self.span.start, "end": self.span.end}

    def row(self, covered: bool | None) -> dict[str, Any]:
        """Its row in the label's evidence."""
        also = {"also": [one.place() for one in self.also]} if self.also else {}
        return {"text": self.text, **self.place(), "covered": covered, **also}


def distinct_points(items: Sequence[Items], document: Document) -> list[KeyPoint]:
    """What `document`'s chunks gave, one list a chunk: in document order, each point once."""
    found: dict[str, KeyPoint] = {}
    for number, (chunk, one) in enumerate(zip(document.chunks, items, strict=True)):
        texts = list(dict.fromkeys(map(one_line, one.texts)))
        places = locate(document.text[chunk.start : chunk.end], texts) if texts else []
        for text, place in zip(texts, places, strict=True):
            span = Span(chunk.start + place[0], chunk.start + place[1]) if place else chunk
            point = KeyPoint(text, number, span)
            if text in found:
                found[text].also.append(point)
            else:
                found[text] = point
    return _merged(list(found.values()))


def _merged(points: list[KeyPoint]) -> list[KeyPoint]:
    words = [_words(point.text) for point in points]
    holders: dict[str, set[int]] = defaultdict(set)
    """Points kept so far, by each of their words."""
    kept: set[int] = set()
    for number in sorted(range(len(points)), key=lambda at: (-len(words[at]), at)):
        mine = words[number]
        others = set.intersection(*(holders[word] for word in mine)) if mine else set()
        fuller = next((other for other in sorted(others) if _within(mine, words[other])), None)
        if fuller is not None:
            points[fuller].also += [points[number], *points[number].also]
            continue
        kept.add(number)
        for word in mine:
            holders[word].add(number)
    return [points[number] for number in sorted(kept)]


def _words(text: str) -> list[str]:
    """The words of a point that tell it from others, in order: all but articles, prepositions and the like."""
    from bm25s.stopwords import STOPWORDS_EN  # half a second to import

    idle = set(STOPWORDS_EN) - DENIALS
    return [word[:STEM] for word in terms(text) if word not in idle]


def _within(words: Sequence[str], fuller: Sequence[str]) -> bool:
    """Whether all words stand in the fuller ones in the same order, with the same denials."""
    left = iter(fuller)
    in_order = all(word in left for word in words)
    return in_order and [w for w in words if w in DENIALS] == [w for w in fuller if w in DENIALS]


def listed(point: KeyPoint, document: Document, language: Language) -> str:
    """The point as the judge reads it, with how far into the document it stands: "(12%) …"."""
    share = f"{100 * point.span.start / len(document.text):.0f}%"
    return f"（{share}）{point.text}" if language == "zh" else f"({share}) {point.text}"


def groups(points: Sequence[KeyPoint], most: int) -> list[Sequence[KeyPoint]]:
    """The points in document order, in as few groups of at most `most` as it takes, as equal as can be; at least one."""
    count = max(1, -(-len(points) // most))
    bounds = [len(points) * number // count for number in range(count + 1)]
    return [points[start:end] for start, end in pairwise(bounds)]
