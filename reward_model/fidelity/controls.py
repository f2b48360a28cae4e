"""Controls: the same answers scored with their document withheld, with another document in its place, without baselines.

A model that scores as well without the document has learnt how good answers are written, not what the document says.
What it knows of the document is the paired difference between its figures and a control's.

In: a table of answers and a model. Out: a column of points a control, as `model_columns` gives them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from judge_pipeline.statistics.table import AnswerTable, Floats
from reward_model.data.splits import document_groups, hash_fraction
from reward_model.fidelity.inputs import model_columns
from reward_model.modeling.stack_spec import describe
from reward_model.scoring.scorer import RewardModel

WITHHELD, OTHER = "document withheld", "another document"
UNSTACKED = "without the baselines"
"""Of a model that adds free baselines to its outputs: the model alone."""
NEIGHBOURS = 4
"""Documents, neighbours in length, that are exchanged among each other, at least (all where there are fewer)."""


@dataclass(frozen=True)
class Controls:
    """What the controls score, and what that cost."""

    columns: dict[str, dict[str, Floats]] = field(default_factory=dict)
    """Control → name → points (R,); NaN where an answer does not fit the window behind another document."""
    tokens: int = 0
    """Tokens read for them."""
    notes: list[str] = field(default_factory=list)


def exchanged_contexts(table: AnswerTable, seed: int = 0) -> list[str] | None:
    """For each prompt a text of another document, near in length; None with one document.

    Documents in order of length are cut into groups of neighbours; in each they change places in a circle whose order
    the seed draws, so none keeps its own and each is used once. Documents are the same where ids or texts are.
    """
    names = document_groups(table.prompts)
    prompts_of: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        prompts_of[name].append(number)
    if len(prompts_of) < 2:
        return None
    lengths = {name: max(table.length_P[numbers]) for name, numbers in prompts_of.items()}
    order = sorted(prompts_of, key=lambda name: (lengths[name], name))
    taken: dict[str, str] = {}
    for group in np.array_split(np.arange(len(order)), max(1, len(order) // NEIGHBOURS)):
        circle = sorted((order[place] for place in group), key=lambda name: hash_fraction(name, seed))
        taken.update(zip(circle, [*circle[1:], circle[0]], strict=True))
    found = []
    for number, name in enumerate(names):
        # Prompts of one document may hold several texts of it: the one nearest in length.
        texts = prompts_of[taken[name]]
        nearest = min(texts, key=lambda other: abs(table.length_P[other] - table.length_P[number]))
        found.append(table.prompts[nearest].context)
    return found


def score_controls(model: RewardModel, table: AnswerTable, token_budget: int, seed: int = 0) -> Controls:
    """Score every answer again without its document and with another one."""
    before = model.tokens_read
    columns = {WITHHELD: model_columns(model, table, token_budget, [""] * len(table.prompts))}
    notes = []
    contexts = exchanged_contexts(table, seed)
    if contexts is None:
        notes.append("all prompts are about one document: there is no other to put in its place")
    else:
        columns[OTHER] = model_columns(model, table, token_budget, contexts)
        missing = int(np.isnan(np.stack(list(columns[OTHER].values()))).any(axis=0).sum())
        if missing:
            notes.append(
                f"{missing} answers do not fit the window behind another document and are left out of that control"
            )
    if model.stack is not None:
        stack, model.stack = model.stack, None
        columns[UNSTACKED] = model_columns(model, table, token_budget)
        model.stack = stack
        notes.append(describe(stack))
    tokens = model.tokens_read - before
    notes.append(f"the controls read {tokens:,} tokens, where the scores themselves read {before:,}")
    return Controls(columns, tokens, notes)
