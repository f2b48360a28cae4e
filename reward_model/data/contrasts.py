"""Prompts of `reward-model augment` → pairs of answers of which one is known to be worse, and in what.

In: records whose answers carry `augmented` (from, dimension, strength, damage, keeps), or that carry it themselves
(contrast_with: the same answers beside another document). Out: `Pair`s by ids, and for training `Contrast`s in the
examples whose answers they are. Errors name the record and the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from judge_pipeline.common.errors import DataError
from judge_pipeline.common.record_files import read_prompts
from judge_pipeline.common.records import FieldError, Prompt, Response

Side = tuple[str, str]
"""An answer by the ids of its prompt and of itself."""


class Change(BaseModel):
    """What was done to an answer, or to the document it stands beside."""

    model_config = ConfigDict(extra="allow")

    dimension: str | None
    strength: int = Field(ge=0, le=3)
    damage: str
    keeps: tuple[str, ...] = ()


class AnswerChange(Change):
    """The `augmented` field of an answer."""

    origin: str = Field(alias="from")


class DocumentChange(Change):
    """The `augmented` field of a prompt."""

    contrast_with: str


AnyChange = TypeVar("AnyChange", bound=Change)


@dataclass(frozen=True)
class Pair:
    """Two answers, `worse` in `dimension` (None: in nothing) and the same in what stands in `equal`."""

    better: Side
    worse: Side
    dimension: str | None
    equal: tuple[str, ...]
    strength: int
    damage: str


def read_pairs(path: Path) -> tuple[list[Prompt], list[Pair]]:
    """The prompts of a file and all pairs in it.

    Raises:
        DataError: a field of `augmented` is missing or wrong, or names an answer or prompt that is not there.
        UserError: the file is not there.
    """
    prompts = list(read_prompts(path, need_responses=True))
    try:
        pairs = list(pairs_of(prompts))
    except FieldError as error:
        raise DataError(error.message, path=path, field=error.field) from error
    if not pairs:
        raise DataError(
            "holds no answer that was changed",
            path=path,
            field="responses.augmented",
            hint="make one: reward-model augment PROMPTS --output FILE",
        )
    return prompts, pairs


def pairs_of(prompts: Sequence[Prompt]) -> Iterator[Pair]:
    """The pairs of these prompts, within a record and across two.

    Raises:
        FieldError: a field of `augmented` will not do.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    for prompt in prompts:
        there = {item.id for item in prompt.responses}
        for number, response in enumerate(prompt.responses):
            where = f"responses.{number}.augmented"
            change = _parsed(AnswerChange, response, prompt, where)
            if change is None or change.origin == response.id:
                continue
            if change.origin not in there:
                raise _error(f"'{change.origin}' is no answer of this prompt", prompt, f"{where}.from")
            if change.strength or change.keeps:
                yield Pair(
                    (prompt.id, change.origin),
                    (prompt.id, response.id),
                    change.dimension if change.strength else None,
                    change.keeps,
                    change.strength,
                    change.damage,
                )
        beside = _parsed(DocumentChange, prompt, prompt, "augmented")
        if beside is not None:
            yield from _across(prompt, beside, by_id)


def _across(prompt: Prompt, beside: DocumentChange, by_id: Mapping[str, Prompt]) -> Iterator[Pair]:
    """The same answers beside two documents: those made for this one are better here, all others worse."""
    where = "augmented.contrast_with"
    other = by_id.get(beside.contrast_with)
    if other is None or other is prompt:
        raise _error(f"'{beside.contrast_with}' is no other prompt of this file", prompt, where)
    texts = {item.id: item.text for item in other.responses}
    for number, response in enumerate(prompt.responses):
        if texts.get(response.id) != response.text:
            raise _error(
                f"answer '{response.id}' stands not, or with another text, in prompt '{other.id}'",
                prompt,
                f"responses.{number}",
            )
        change = _parsed(AnswerChange, response, prompt, f"responses.{number}.augmented")
        here, there = (prompt.id, response.id), (other.id, response.id)
        made_for_this = change is not None and change.strength == 0
        better, worse = (here, there) if made_for_this else (there, here)
        yield Pair(better, worse, beside.dimension, beside.keeps, beside.strength, beside.damage)


def _parsed(kind: type[AnyChange], holder: Prompt | Response, prompt: Prompt, where: str) -> AnyChange | None:
    found: Any = (holder.model_extra or {}).get("augmented")
    if found is None:
        return None
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join([where, *(str(part) for part in first["loc"])])
        message = "is missing" if first["type"] == "missing" else first["msg"]
        raise _error(message, prompt, field) from error


def _error(message: str, prompt: Prompt, field: str) -> FieldError:
    return FieldError(field, f"{message} (prompt '{prompt.id}')")


def texts_of(prompts: Iterable[Prompt]) -> dict[Side, str]:
    """The text of every answer."""
    return {(prompt.id, item.id): item.text for prompt in prompts for item in prompt.responses}
