"""Splits by document, so that what is measured on held-out prompts was never read in training.

A prompt's side depends on its document and the seed alone: adding documents moves none of the old ones.
Documents count as the same when their ids or their texts (white space aside) agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from judge_pipeline.common.errors import UserError
from reward_model.data.examples import Example


def text_key(context: str) -> str:
    """A document's identity by its words: white space and letter case do not make another document."""
    return hashlib.sha256(" ".join(context.lower().split()).encode()).hexdigest()


class AboutDocument(Protocol):
    """An example or a prompt."""

    @property
    def document_id(self) -> str:
        """The document's id."""

    @property
    def context(self) -> str:
        """Its text."""


def document_digests(items: Iterable[AboutDocument]) -> list[str]:
    """Two digests a document, of its id and of its text: what a model remembers of what it was trained on.

    The first 16 hexadecimal digits of SHA-256 of `id:` and the document's id, and of `text:` and `text_key`.
    """
    names = {name for item in items for name in (f"id:{item.document_id}", f"text:{text_key(item.context)}")}
    return sorted(hashlib.sha256(name.encode()).hexdigest()[:16] for name in names)


def document_groups(items: Sequence[AboutDocument]) -> list[str]:
    """For each example a name for its document: equal where ids or texts are equal, over any chain of those.

    A text that was put in another's place (`changed_document`) does not join the documents it stands between.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for item in items:
        if getattr(
            item, "changed_document", False
        ):  # an example's; prompts as they are read know nothing of it
            continue
        one, other = sorted((root("id:" + item.document_id), root("text:" + text_key(item.context))))
        parent[other] = one  # the smaller name leads, whatever the order of the records
    return [root("id:" + item.document_id) for item in items]


def hash_fraction(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on the name and the seed only."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]) / 2**64


def held_out_names(names: Collection[str], fraction: float, seed: int) -> set[str]:
    """The documents whose hash falls below `fraction`.

    With two or more documents and a fraction above 0, each side gets at least one; a single one is for training.
    """
    ranked = sorted(set(names), key=lambda name: hash_fraction(name, seed))
    held = {name for name in ranked if hash_fraction(name, seed) < fraction}
    if fraction > 0 and len(ranked) > 1:
        held = held or {ranked[0]}
    if len(held) == len(ranked):
        held.discard(ranked[-1])
    return held


def split_by_document(
    items: Sequence[Example], fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """(training, held out), by `held_out_names`."""
    groups = document_groups(items)
    held = held_out_names(groups, fraction, seed)
    train = [item for item, name in zip(items, groups, strict=True) if name not in held]
    return train, [item for item, name in zip(items, groups, strict=True) if name in held]


def refuse_leak(train: Sequence[Example], held_out: Sequence[Example]) -> None:
    """Raise UserError when a document stands on both sides, by id or by text."""
    ids = {item.document_id: item for item in train}
    texts = {text_key(item.context): item for item in train}
    for item in held_out:
        twin = ids.get(item.document_id) or texts.get(text_key(item.context))
        if twin is not None:
            how = "document_id" if item.document_id in ids else "text"
            raise UserError(
                f"held-out prompt '{item.prompt_id}' reads the same document as training prompt "
                f"'{twin.prompt_id}' (same {how}): scores on it would flatter the model",
                "take its document out of one side, or drop --eval-labels and let the split be made by document",
            )
