"""How well damaged and whole answers are told apart by their wording alone, on documents not seen.

In: pairs of answers. Out: for each kind of damage the area under the curve of a bag of words (logistic regression over
words and pairs of words, folds over documents) that reads neither document nor question. 0.5: nothing in the wording
gives the damage away; what stands clearly above it teaches a model style instead of the document.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from judge_pipeline.common.records import Prompt
from judge_pipeline.documents.words import words
from reward_model.data.contrasts import Pair, texts_of

FOLDS, FEWEST = 5, 3
"""Folds over documents, and documents that it takes to measure at all."""


@dataclass(frozen=True)
class Style:
    """What a bag of words makes of one kind of damage."""

    damage: str
    pairs: int
    documents: int
    auc: float | None
    """None with fewer than three documents."""
    ordered: float | None
    """Share of pairs whose worse answer it finds more likely damaged, ties half: chance is 0.5."""


def style_of(prompts: Sequence[Prompt], pairs: Sequence[Pair], seed: int = 0) -> list[Style]:
    """The measure for every damage within a prompt, in the order of their names; pairs of one text are left out."""
    texts = texts_of(prompts)
    document = {prompt.id: prompt.document_id for prompt in prompts}
    by_damage: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for pair in pairs:
        better, worse = texts[pair.better], texts[pair.worse]
        if pair.dimension is not None and better != worse and pair.better[0] == pair.worse[0]:
            by_damage[pair.damage].append((better, worse, document[pair.better[0]]))
    return [_style(damage, by_damage[damage], seed) for damage in sorted(by_damage)]


def _style(damage: str, found: list[tuple[str, str, str]], seed: int) -> Style:
    from sklearn.feature_extraction.text import CountVectorizer  # seconds to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    documents = len({name for _, _, name in found})
    if documents < FEWEST:
        return Style(damage, len(found), documents, None, None)
    texts = [better for better, _, _ in found] + [worse for _, worse, _ in found]
    is_worse = np.repeat([0, 1], len(found))
    model = make_pipeline(
        CountVectorizer(analyzer=_grams),
        MaxAbsScaler(),
        LogisticRegression(C=1.0, max_iter=200, random_state=seed),
    )
    groups = [name for _, _, name in found] * 2
    chance = cross_val_predict(
        model,
        texts,
        is_worse,
        groups=groups,
        cv=GroupKFold(min(FOLDS, documents)),
        method="decision_function",
    )
    gap = chance[len(found) :] - chance[: len(found)]
    ordered = float(np.mean((gap > 1e-9) + 0.5 * (np.abs(gap) <= 1e-9)))
    return Style(
        damage, len(found), documents, round(float(roc_auc_score(is_worse, chance)), 3), round(ordered, 3)
    )


def _grams(text: str) -> list[str]:
    found = words(text)
    return found + [f"{one} {two}" for one, two in itertools.pairwise(found)]
