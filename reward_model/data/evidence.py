"""The judge's evidence as training data: which sentences of an answer the document supports, which key points it covers.

In: `labels.jsonl`, whose rows hold the verdicts on an answer's statements and the flags of the document's key points.
Out: `AnswerEvidence` of each answer, and for the sentences of an answer a support of 0–1. A label is one number an
answer; its evidence is about seven more that the judge was paid for.

Statements are the judge's words, not the answer's: each is aligned with the sentence that shares most of its words,
the rare ones counting most. A sentence is as well supported as the worst of its statements, for one false statement
makes it false; a sentence that no statement was made of has no target. By words alone: no model is asked.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from judge_pipeline.common.errors import DataError
from judge_pipeline.common.record_files import read_labels
from judge_pipeline.documents.words import sentence_spans, terms, words

SUPPORT = {"full": 1.0, "partial": 0.5, "none": 0.0}
"""What a verdict counts, as in the faithfulness score."""
ENOUGH = 0.4
"""Share of a statement's weight that a sentence must hold to be what it was made of."""

Schema = TypeVar("Schema", bound=BaseModel)

Key = tuple[str, str]
"""(prompt id, response id)."""


@dataclass(frozen=True)
class Statement:
    """A factual statement of an answer, and how far the document supports it."""

    text: str
    support: float
    """0, 0.5 or 1."""


@dataclass(frozen=True)
class KeyPoint:
    """Something the document says on the question, where it says it, and whether the answer covers it."""

    text: str
    span: tuple[int, int] | None
    """Offsets in the document."""
    covered: bool


@dataclass(frozen=True)
class AnswerEvidence:
    """What the judge found of one answer; what it could not judge is left out."""

    statements: tuple[Statement, ...] = ()
    key_points: tuple[KeyPoint, ...] = ()


@dataclass(frozen=True)
class Sentence:
    """A sentence of an answer, `text[start:end]` without white space around it."""

    start: int
    end: int
    support: float | None = None
    """0–1; None where nothing is known."""


class _Statement(BaseModel):
    text: str
    verdict: Literal["full", "partial", "none"] | None = None


class _KeyPoint(BaseModel):
    text: str
    start: int | None = None
    end: int | None = None
    covered: bool | None = None


class _Statements(BaseModel):
    statements: list[_Statement] | None = None


class _KeyPoints(BaseModel):
    key_points: list[_KeyPoint] | None = None


def load_evidence(labels_file: Path) -> dict[Key, AnswerEvidence]:
    """The evidence of every labelled answer that has any; of none when the labels were written without it.

    Raises:
        DataError: evidence that is not what the judge writes; names the answer and the field.
    """
    found: dict[Key, AnswerEvidence] = {}
    for label in read_labels(labels_file):
        key = label.prompt_id, label.response_id
        told = _checked(_Statements, label.evidence, "faithfulness", labels_file, key)
        points = _checked(_KeyPoints, label.evidence, "completeness", labels_file, key)
        one = AnswerEvidence(
            tuple(Statement(row.text, SUPPORT[row.verdict]) for row in told.statements or () if row.verdict),
            tuple(
                KeyPoint(
                    row.text,
                    None if row.start is None or row.end is None else (row.start, row.end),
                    row.covered,
                )
                for row in points.key_points or ()
                if row.covered is not None
            ),
        )
        if one.statements or one.key_points:
            found[key] = one
    return found


def _checked(schema: type[Schema], evidence: dict[str, Any], dimension: str, path: Path, key: Key) -> Schema:
    try:
        return schema.model_validate(evidence.get(dimension) or {})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("evidence", dimension, *first["loc"])))
        raise DataError(
            f"response '{key[1]}' of prompt '{key[0]}': {first['msg'].lower()}",
            path=path,
            field=place,
            hint="the file was changed after `judge-pipeline label` wrote it; train without: --evidence off",
        ) from error


def answer_sentences(text: str) -> list[Sentence]:
    """The sentences of an answer that hold a word, exactly cut, in order."""
    found = []
    for start, end in sentence_spans(text):
        inner = text[start:end]
        if words(inner):
            lead = len(inner) - len(inner.lstrip())
            found.append(Sentence(start + lead, start + len(inner.rstrip())))
    return found


def sentence_targets(text: str, statements: Sequence[Statement]) -> list[Sentence]:
    """The sentences of an answer, those that statements were made of with their support."""
    sentences = answer_sentences(text)
    worst: dict[int, float] = {}
    for statement, places in zip(
        statements, align(text, sentences, [one.text for one in statements]), strict=True
    ):
        for place in places:
            worst[place] = min(worst.get(place, 1.0), statement.support)
    return [Sentence(one.start, one.end, worst.get(place)) for place, one in enumerate(sentences)]


def align(text: str, sentences: Sequence[Sentence], statements: Sequence[str]) -> list[list[int]]:
    """For each statement the places of the sentences it was made of: the best one, several only where they are equal.

    Empty for a statement of whose words no sentence holds enough.
    """
    own = [set(terms(text[one.start : one.end])) for one in sentences]
    frequency = Counter(term for held in own for term in held)
    unknown = math.log(1 + len(own)) if own else 1.0
    weight = {term: math.log(1 + len(own) / count) for term, count in frequency.items()}
    found = []
    for statement in statements:
        wanted = set(terms(statement))
        total = sum(weight.get(term, unknown) for term in wanted)
        shares = [sum(weight[term] for term in wanted & held) / total if total else 0.0 for held in own]
        best = max(shares, default=0.0)
        found.append([place for place, share in enumerate(shares) if best >= ENOUGH and share >= best - 1e-9])
    return found
