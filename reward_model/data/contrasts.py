"""Prompts of `reward-model augment` → pairs of answers of which one is known to be worse, and in what.

In: records whose answers carry `augmented` (from, dimension, strength, damage, keeps), or that carry it themselves
(contrast_with: the same answers beside another document). Out: `Pair`s by ids, and for training `Contrast`s in the
examples whose answers they are. Errors name the record and the field.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from judge_pipeline.common.errors import DataError, UserError
from judge_pipeline.common.record_files import read_prompts
from judge_pipeline.common.records import FieldError, Prompt, Response
from reward_model.data.examples import Contrast, Example, Floats, unlabelled_example
from reward_model.data.splits import text_key

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


@dataclass(frozen=True)
class Augmented:
    """Training examples with what is known of changed answers, and what was left out."""

    train: list[Example] = field(default_factory=list)
    contrasts: int = 0
    held_out: int = 0
    """Prompts left out because their document, or the one beside them, is held out."""
    untaught: int = 0
    """Pairs left out because the model has no output for the dimension."""

    def describe(self) -> str:
        """For the terminal."""
        left = [
            f"{count} {what}"
            for count, what in (
                (self.held_out, "prompts of held-out documents left out"),
                (self.untaught, "pairs on other dimensions left out"),
            )
            if count
        ]
        return "; ".join([f"{self.contrasts} pairs of answers made worse on purpose", *left])


def add_contrasts(
    path: Path | None, train: list[Example], held_out: Sequence[Example], dimensions: Sequence[str]
) -> Augmented:
    """The training examples and the changed answers of a file `reward-model augment` wrote.

    Answers of a prompt that is trained on join its example; other prompts, also those beside changed documents, become
    examples of their own. Nothing that shares a document with `held_out`, by id or by text, is taken.

    Raises:
        DataError, UserError: the file cannot be used, or nothing in it is left to learn from.
    """
    if path is None:
        return Augmented(train)
    prompts, pairs = read_pairs(path)
    ids, texts = {item.document_id for item in held_out}, {text_key(item.context) for item in held_out}
    taken = [item for item in prompts if item.document_id not in ids and text_key(item.context) not in texts]
    labelled = {item.prompt_id: item for item in train}
    examples = {item.id: _joined(item, labelled.get(item.id), len(dimensions), path) for item in taken}
    place = {
        name: {answer: number for number, answer in enumerate(example.response_ids)}
        for name, example in examples.items()
    }
    inside = [
        pair
        for pair in pairs
        if all(answer in place.get(name, {}) for name, answer in (pair.better, pair.worse))
    ]
    of_prompt: dict[str, list[Contrast]] = defaultdict(list)
    for pair in inside:
        gaps = _gaps(pair, dimensions)
        if not np.isnan(gaps).all():
            better, worse = ((name, place[name][answer]) for name, answer in (pair.better, pair.worse))
            of_prompt[pair.worse[0]].append(Contrast(better, worse, gaps))
    count = sum(map(len, of_prompt.values()))
    if not count:
        raise UserError(
            f"{path} has nothing to learn from: {len(prompts) - len(taken)} of {len(prompts)} prompts are of held-out "
            f"documents, and {len(inside)} pairs damage or keep none of {', '.join(dimensions)}",
            "make it from the prompts that are trained on: reward-model augment PROMPTS --output FILE",
        )
    known = {name: replace(item, contrasts=tuple(of_prompt[name])) for name, item in examples.items()}
    joined = [known.pop(item.prompt_id, item) for item in train]
    return Augmented([*joined, *known.values()], count, len(prompts) - len(taken), len(inside) - count)


def _joined(prompt: Prompt, labelled: Example | None, dimensions: int, path: Path) -> Example:
    """The example of a prompt's answers: those of the labelled example first, as they are."""
    if labelled is not None and (labelled.context, labelled.query) != (prompt.context, prompt.question):
        raise DataError(
            f"prompt '{prompt.id}' has another document or question than the labelled prompt of this id",
            path=path,
            field="id",
            hint="augment the prompts that were labelled",
        )
    known = dict(zip(labelled.response_ids, labelled.responses, strict=True)) if labelled else {}
    new = []
    for number, item in enumerate(prompt.responses):
        if known.get(item.id, item.text) != item.text:
            raise DataError(
                f"answer '{item.id}' of prompt '{prompt.id}' has another text than the labelled answer of this id",
                path=path,
                field=f"responses.{number}.text",
                hint="augment the prompts that were labelled",
            )
        if item.id not in known and item.text.strip():
            new.append(item)
    added = unlabelled_example(prompt, new, dimensions)
    if labelled is None:
        changed = (prompt.model_extra or {}).get("augmented") is not None
        return replace(added, changed_document=changed)
    return replace(
        labelled,
        response_ids=(*labelled.response_ids, *added.response_ids),
        responses=(*labelled.responses, *added.responses),
        targets_N_D=np.concatenate([labelled.targets_N_D, added.targets_N_D]),
        confidence_N_D=np.concatenate([labelled.confidence_N_D, added.confidence_N_D]),
    )


def _gaps(pair: Pair, dimensions: Sequence[str]) -> Floats:
    known = {
        **dict.fromkeys(pair.equal, 0.0),
        **({pair.dimension: float(pair.strength)} if pair.dimension else {}),
    }
    return np.array([known.get(name, np.nan) for name in dimensions], np.float32)
