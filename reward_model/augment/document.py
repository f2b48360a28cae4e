"""The same answer beside a document that says otherwise: what a model must read the document to tell.

A document whose two facts trade places everywhere is as good a document as before. An answer that names one of them is
now wrong, and the answer with the same trade is right; beside the original document it is the other way round. In this
square of two documents and two answers neither answers nor documents alone tell anything.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from judge_pipeline.common.records import Prompt, Response
from reward_model.augment.change import Change, Material
from reward_model.augment.facts import KINDS
from reward_model.augment.faithfulness import KEEPS
from reward_model.augment.sentences import Answer

LIKE_LONG = 5
"""Documents of the nearest lengths, of which one is drawn."""
Keep = Callable[[Response, Change], Response]
"""Adds a changed answer to the prompt's own record and returns it with its id."""


@dataclass(frozen=True)
class ChangedDocument:
    """A document with facts traded, and each answer with and without the same trade."""

    context: str
    damage: str
    answers: tuple[tuple[Response, str], ...]
    """(answer, the answer with the trade)."""

    def record(self, prompt: Prompt, keep: Keep) -> Prompt:
        """The prompt beside the changed document; every traded answer goes to the prompt's own record as well."""
        responses = []
        for answer, text in self.answers:
            traded = keep(answer, Change(text, self.damage, 1, "faithfulness", KEEPS))
            right: dict[str, Any] = {
                "from": answer.id,
                "dimension": None,
                "strength": 0,
                "damage": self.damage,
                "keeps": [],
            }
            wrong = {
                "from": traded.id,
                "dimension": "faithfulness",
                "strength": 1,
                "damage": f"{self.damage} of the document",
                "keeps": list(KEEPS),
            }
            responses.append(
                Response.model_validate({"id": answer.id, "text": answer.text, "augmented": wrong})
            )
            responses.append(
                Response.model_validate(
                    {"id": traded.id, "text": text, "source": traded.source, "augmented": right}
                )
            )
        return _beside(prompt, "d", self.context, responses, f"{self.damage} of the document", 1, KEEPS)


def changed_document(material: Material, answers: Sequence[Response], rng: Random) -> ChangedDocument | None:
    """The document with one fact of an answer traded for another; None where no answer names one that can be."""
    lexicon = material.source.lexicon
    for answer in answers:
        for kind in rng.sample(KINDS, len(KINDS)):
            pairs = lexicon.choose(Answer(answer.text), 1, [kind], rng)
            if pairs is None:
                continue
            context = lexicon.trade(material.source.text, pairs)
            both = [(item, lexicon.trade(item.text, pairs)) for item in answers]
            changed = tuple((item, text) for item, text in both if text != item.text)
            if changed and context != material.source.text:
                return ChangedDocument(context, lexicon.kinds_of(pairs), changed)
    return None


def by_length(prompts: Sequence[Prompt]) -> list[tuple[int, str, str]]:
    """(length, text, document id) of every document, shortest first."""
    return sorted({(len(prompt.context), prompt.context, prompt.document_id) for prompt in prompts})


def other_document(
    prompt: Prompt, answers: Sequence[Response], documents: Sequence[tuple[int, str, str]], rng: Random
) -> Prompt | None:
    """The prompt's answers beside another document, one of like length; None when there is no other.

    `documents`: see `by_length`.
    """
    middle = bisect_left(documents, (len(prompt.context), prompt.context, ""))
    near: list[str] = []
    for reach in range(len(documents)):
        for place in {middle - reach, middle + reach}:
            if 0 <= place < len(documents) and len(near) < LIKE_LONG:
                _, text, name = documents[place]
                if name != prompt.document_id and text != prompt.context and text not in near:
                    near.append(text)
        if len(near) == LIKE_LONG:
            break
    if not near or not answers:
        return None
    context = rng.choice(sorted(near))
    wrong = {
        "dimension": "faithfulness",
        "strength": 3,
        "damage": "another document",
        "keeps": ["logicality"],
    }
    responses = [
        Response.model_validate({"id": item.id, "text": item.text, "augmented": {"from": item.id, **wrong}})
        for item in answers
    ]
    return _beside(prompt, "o", context, responses, "another document", 3, ("logicality",))


def _beside(
    prompt: Prompt,
    mark: str,
    context: str,
    responses: list[Response],
    damage: str,
    strength: int,
    keeps: Sequence[str],
) -> Prompt:
    """A record of its own. It keeps the prompt's document_id, so that it stays on the prompt's side of any split."""
    augmented: dict[str, Any] = {
        "contrast_with": prompt.id,
        "dimension": "faithfulness",
        "strength": strength,
        "damage": damage,
        "keeps": list(keeps),
    }
    return Prompt.model_validate(
        {
            "id": f"{prompt.id}~{mark}",
            "document_id": prompt.document_id,
            "context": context,
            "query": prompt.question,
            "responses": responses,
            "augmented": augmented,
        }
    )
