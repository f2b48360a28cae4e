"""Where a document says what a key point says: the sentences to highlight.

They are the one to three in a row that share most of its words, the rare ones counting most. By words alone: no model
is asked, and it only serves the reader, never a score.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from judge_pipeline.documents.words import sentence_spans, terms

LONGEST = 3
"""Sentences in a row that a key point may sum up."""
COST = 0.07
"""Share of the key point's weight that each further sentence must add."""
ENOUGH = 0.5
"""Share of the key point's weight that must be found."""


def locate(text: str, points: Sequence[str]) -> list[tuple[int, int] | None]:
    """For each key point the offsets of what it was taken from; None where the wording is too far away to tell."""
    spans = sentence_spans(text)
    words = [set(terms(text[start:end])) for start, end in spans]
    frequency = Counter(term for one in words for term in one)
    weight = {term: math.log(1 + len(spans) / count) for term, count in frequency.items()}
    return [_best(set(terms(point)), spans, words, weight) for point in points]


def _best(
    point: set[str], spans: list[tuple[int, int]], words: list[set[str]], weight: dict[str, float]
) -> tuple[int, int] | None:
    unknown = math.log(1 + len(spans)) if spans else 1.0  # a word the chunk does not have at all
    total = sum(weight.get(term, unknown) for term in point)
    best, found = 0.0, None
    for first in range(len(spans)):
        if not point & words[first]:
            continue
        covered: set[str] = set()
        for last in range(first, min(first + LONGEST, len(spans))):
            covered |= point & words[last]
            share = sum(weight[term] for term in covered) / total
            value = share - COST * (last - first)
            if share >= ENOUGH and value > best + 1e-9:
                best, found = value, (spans[first][0], spans[last][1])
    return found
