"""Answers in which something was changed on purpose: is the changed one scored lower, and is it the document that tells?

In: a file of `reward-model augment` and what scores its answers. Out: for each dimension a table of pairs: the answer as
it was against the one that is worse in that dimension, the model beside its controls and every free baseline. A pair
differs in a word or two, so style says next to nothing; what is ahead of the control is read in the document.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from judge_pipeline.statistics.compare import Comparison
from judge_pipeline.statistics.table import AnswerTable, Pair
from reward_model.data.contrasts import Pair as Contrast
from reward_model.data.contrasts import read_pairs
from reward_model.fidelity.inputs import Reference

WORSE = "answers made worse in "
"""How the name of such a target begins; the dimension follows."""


def read_changed(path: Path) -> tuple[Reference, list[Contrast]]:
    """Prompts of a file of `reward-model augment`, without a group of their own, and its pairs.

    Raises:
        DataError, UserError: see `read_pairs`.
    """
    prompts, pairs = read_pairs(path)
    return Reference(prompts, {prompt.id: "" for prompt in prompts}, files=(path,)), pairs


def changed_results(comparison: Comparison, contrasts: Sequence[Contrast]) -> list[dict[str, Any]]:
    """A table of pairs for each dimension that answers were made worse in."""
    found = []
    for dimension in dict.fromkeys(pair.dimension for pair in contrasts if pair.dimension):
        pairs = row_pairs(comparison.table, [pair for pair in contrasts if pair.dimension == dimension])
        if pairs:
            found.append(comparison.preferred(pairs, dimension) | {"target": f"{WORSE}{dimension}"})
    return found


def row_pairs(table: AnswerTable, contrasts: Sequence[Contrast]) -> list[Pair]:
    """The pairs whose answers stand in a table, by row."""
    number = {prompt.id: place for place, prompt in enumerate(table.prompts)}
    return [
        Pair(number[pair.worse[0]], table.row_of[pair.better], table.row_of[pair.worse])
        for pair in contrasts
        if pair.better in table.row_of and pair.worse in table.row_of
    ]
