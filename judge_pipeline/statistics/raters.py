"""How far raters agree with themselves: the ceiling for anything that is compared with their mean.

In: several values for one answer, from people (`raters` beside `human` in a response) or from a judge (votes, or a
second label run); and pairs that were judged more than once. Out: one value against the mean of the others, within
prompts, and the spread in points.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.records import Label
from judge_pipeline.statistics.agreement import prompt_metrics
from judge_pipeline.statistics.bootstrap import DocumentBootstrap, Ratio
from judge_pipeline.statistics.table import AnswerTable, Floats

RATERS = "raters"
"""Optional field of a response: dimension → the single values that its `human` value is the mean of."""


def rater_values(table: AnswerTable) -> dict[str, list[list[float]]]:
    """Dimension → the single ratings of every answer (R lists), from the responses' `raters` field."""
    found: dict[str, list[list[float]]] = {}
    row = 0
    for prompt in table.prompts:
        for response in prompt.responses:
            given = (response.model_extra or {}).get(RATERS) or {}
            for name, values in _checked(given, f"response '{response.id}' of prompt '{prompt.id}'").items():
                found.setdefault(name, [[] for _ in range(table.rows)])[row] = values
            row += 1
    return found


def _checked(given: object, where: str) -> dict[str, list[float]]:
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: '{RATERS}' is not an object of dimension → list of ratings")
    for name, values in given.items():
        numbers = isinstance(values, list) and all(isinstance(value, int | float) for value in values)
        if not numbers:
            raise UserError(f"{where}: '{RATERS}.{name}' is not a list of numbers")
    return {str(name): [float(value) for value in values] for name, values in given.items()}


def vote_values(table: AnswerTable, labels: Mapping[tuple[str, str], Label]) -> dict[str, list[list[float]]]:
    """Dimension → the judge's single votes on every answer (R lists), where the labels' evidence kept them."""
    found: dict[str, list[list[float]]] = {}
    for key, row in table.row_of.items():
        label = labels.get(key)
        for name, evidence in (label.evidence if label else {}).items():
            votes = evidence.get("votes") if isinstance(evidence, dict) else None
            if isinstance(votes, list):
                # A vote that failed is null: it is no rating.
                rated = [float(vote) for vote in votes if isinstance(vote, int | float)]
                found.setdefault(name, [[] for _ in range(table.rows)])[row] = rated
    return found


def self_agreement(
    table: AnswerTable, values_R: Sequence[Sequence[float]], bootstrap: DocumentBootstrap, seed: int = 0
) -> dict[str, Any] | None:
    """One rating of each answer, drawn at random, against the mean of its others; None where no answer has two.

    The spread is the standard deviation of single ratings around an answer's mean, in points. Against the mean of
    *all* ratings, which is what labels hold, a perfect predictor can do better than one rater does here.
    """
    generator = np.random.default_rng(seed)
    one, rest = np.full(table.rows, np.nan), np.full(table.rows, np.nan)
    spreads = []
    for row, values in enumerate(values_R):
        if len(values) < 2:
            continue
        chosen = int(generator.integers(len(values)))
        others = [value for position, value in enumerate(values) if position != chosen]
        one[row], rest[row] = values[chosen], float(np.mean(others))
        spreads.append(float(np.var(values, ddof=1)))
    if not spreads:
        return None
    metrics = prompt_metrics(table, rest, one)
    return {
        "answers": len(spreads),
        "spread": float(np.sqrt(np.mean(spreads))),
        **{name: bootstrap.ratio(metrics[name]).as_json() for name in ("spearman", "pairs", "best_of_n")},
    }


def repeated_preferences(table: AnswerTable, bootstrap: DocumentBootstrap) -> dict[str, Any] | None:
    """Pairs that people judged more than once: how often two of them choose alike; None where there are none."""
    agreed, compared = np.zeros(len(table.prompts)), np.zeros(len(table.prompts))
    for number, prompt in enumerate(table.prompts):
        votes: dict[frozenset[str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for choice in prompt.preferences:
            votes[frozenset((choice.winner, choice.loser))][choice.winner] += 1
        for counts in votes.values():
            total = sum(counts.values())
            compared[number] += total * (total - 1) / 2
            agreed[number] += sum(count * (count - 1) / 2 for count in counts.values())
    if not compared.sum():
        return None
    return {"agreement": bootstrap.ratio(Ratio(agreed, compared)).as_json()}


def mean_of(values_R: Sequence[Sequence[float]]) -> Floats:
    """Mean rating of each answer (R,); NaN where there is none."""
    return np.array([np.mean(values) if values else np.nan for values in values_R], dtype=float)
