"""Win, tie, loss, rewards, lengths and facts of two models, with intervals over documents. Pure.

Prompts over one document are not independent, so documents are resampled (percentile bootstrap, 95%).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dpo.evaluate.match import Match, facts_of
from judge_pipeline.statistics.bootstrap import DocumentBootstrap, Ratio

Value = Callable[[Match], float | None]


class Figures:
    """Means over prompts and their differences, all on the same resamples."""

    def __init__(self, matches: Sequence[Match], replicates: int, seed: int) -> None:
        self.matches = matches
        names = {match.prompt.document_id: 0 for match in matches}
        numbers = {name: number for number, name in enumerate(names)}
        documents = np.array([numbers[match.prompt.document_id] for match in matches])
        self.bootstrap = DocumentBootstrap(documents, replicates, seed)

    def ratio(self, top: Value, bottom: Value = lambda match: 1.0) -> Ratio:
        """Σ top / Σ bottom over the prompts where both are known."""
        pairs = [(top(match), bottom(match)) for match in self.matches]
        known = np.array([a is not None and b is not None for a, b in pairs])
        numerator = np.array([a or 0.0 for a, _ in pairs]) * known
        denominator = np.array([b or 0.0 for _, b in pairs]) * known
        return Ratio(numerator, denominator)

    def mean(self, value: Value, per: Value = lambda match: 1.0) -> dict[str, Any]:
        """A mean with its interval, JSON-ready."""
        return self.bootstrap.ratio(self.ratio(value, per)).as_json()

    def sides(self, value: Callable[[Match, int], float | None]) -> dict[str, Any]:
        """A figure of A, of B, and A minus B over the prompts where both are known."""

        def both(match: Match, side: int) -> float | None:
            return value(match, side) if value(match, 1 - side) is not None else None

        first, second = self.ratio(lambda m: both(m, 0)), self.ratio(lambda m: both(m, 1))
        return {
            "a": self.bootstrap.ratio(first).as_json(),
            "b": self.bootstrap.ratio(second).as_json(),
            "difference": self.bootstrap.difference(first, second).as_json(),
        }


def evaluation(matches: Sequence[Match], replicates: int = 2000, seed: int = 0) -> dict[str, Any]:
    """All figures of a comparison; `vote`, rewards and labels of the matches are set before."""
    figures = Figures(matches, replicates, seed)

    def is_vote(wanted: float) -> Value:
        return lambda match: None if match.vote is None else float(match.vote == wanted)

    found: dict[str, Any] = {
        "prompts": len(matches),
        "documents": figures.bootstrap.documents,
        "judged": sum(match.vote is not None for match in matches),
        "win": figures.mean(is_vote(1.0)),
        "tie": figures.mean(is_vote(0.5)),
        "loss": figures.mean(is_vote(0.0)),
        "preference": figures.mean(lambda match: match.vote),
        "reward": figures.sides(lambda match, side: match.mean_reward(side)),
        "length": figures.sides(lambda match, side: match.mean_length(side)),
    }
    names = list(
        dict.fromkeys(
            name for m in matches for side in m.answers for item in side for name in item.scores or {}
        )
    )
    found["dimensions"] = {name: figures.sides(_dimension(name)) for name in names}
    facts = [_facts(figures, side) for side in (0, 1)]
    found["facts"] = {"a": facts[0], "b": facts[1]} if all(facts) else None
    return found


def _dimension(name: str) -> Callable[[Match, int], float | None]:
    def mean(match: Match, side: int) -> float | None:
        values = [(item.scores or {}).get(name) for item in match.answers[side]]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    return mean


def _facts(figures: Figures, side: int) -> dict[str, Any] | None:
    """FactScore's two figures: facts an answer states, and the share of them that is supported."""

    def rows(match: Match) -> list[tuple[int, float]]:
        labels = (match.labels[side].get(item.id) for item in match.answers[side])
        return [row for label in labels if label and (row := facts_of(label)) is not None]

    if not any(rows(match) for match in figures.matches):
        return None
    answers = figures.mean(
        lambda m: float(sum(count for count, _ in rows(m))), lambda m: float(len(rows(m))) or None
    )
    supported = figures.mean(
        lambda m: sum(good for _, good in rows(m)),
        lambda m: float(sum(count for count, _ in rows(m))) or None,
    )
    return {"facts_per_answer": answers, "share_supported": supported}
