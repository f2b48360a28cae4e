"""Win, tie, loss, rewards, lengths and facts of two models, with intervals over documents. Pure.

Prompts over one document are not independent, so documents are resampled (percentile bootstrap, 95%).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from dpo.evaluate.length_control import length_controlled
from dpo.evaluate.match import Match
from judge_pipeline.statistics.bootstrap import DocumentBootstrap, Ratio
from judge_pipeline.statistics.table import build_table

Value = Callable[[Match], float | None]


class Figures:
    """Means over prompts and their differences, all on the same resamples."""

    def __init__(self, matches: Sequence[Match], replicates: int, seed: int) -> None:
        self.matches = matches
        documents = build_table([match.prompt for match in matches]).document_P
        self.bootstrap = DocumentBootstrap(documents, replicates, seed)

    def ratio(self, top: Value, bottom: Value = lambda match: 1.0) -> Ratio:
        """Σ top / Σ bottom over the prompts where both are known."""
        pairs = [(top(match), bottom(match)) for match in self.matches]
        known = [(0.0, 0.0) if a is None or b is None else (a, b) for a, b in pairs]
        return Ratio(*np.array(known, dtype=float).T)

    def mean(self, value: Value, per: Value = lambda match: 1.0) -> dict[str, Any]:
        """A mean with its interval, JSON-ready."""
        return self.bootstrap.ratio(self.ratio(value, per)).as_json()

    def sides(self, value: Callable[[Match, int], float | None]) -> dict[str, Any]:
        """A figure of A, of B, and A minus B over the prompts where both are known."""

        def both(side: int, match: Match) -> float | None:
            return value(match, side) if value(match, 1 - side) is not None else None

        first, second = self.ratio(partial(both, 0)), self.ratio(partial(both, 1))
        return {
            "a": self.bootstrap.ratio(first).as_json(),
            "b": self.bootstrap.ratio(second).as_json(),
            "difference": self.bootstrap.difference(first, second).as_json(),
        }

    def facts(self, side: int) -> dict[str, Any] | None:
        """FactScore's two figures: facts an answer states, and the share of them that is supported."""
        if not any(match.facts(side) for match in self.matches):
            return None

        def stated(match: Match) -> float:
            return float(sum(count for count, _ in match.facts(side)))

        def supported(match: Match) -> float:
            return float(sum(good for _, good in match.facts(side)))

        answers = self.mean(stated, lambda match: len(match.facts(side)) or None)
        return {
            "facts_per_answer": answers,
            "share_supported": self.mean(supported, lambda match: stated(match) or None),
        }


def evaluation(matches: Sequence[Match], replicates: int = 2000, seed: int = 0) -> dict[str, Any]:
    """All figures of a comparison; `vote`, rewards and labels of the matches are set before."""
    figures = Figures(matches, replicates, seed)

    def share_of(vote: float) -> dict[str, Any]:
        return figures.mean(lambda match: None if match.vote is None else float(match.vote == vote))

    answers = (answer for match in matches for side in match.answers for answer in side)
    names = dict.fromkeys(name for answer in answers for name in answer.scores or {})
    facts = {"a": figures.facts(0), "b": figures.facts(1)}
    return {
        "prompts": len(matches),
        "documents": figures.bootstrap.documents,
        "judged": sum(match.vote is not None for match in matches),
        "win": share_of(1.0),
        "tie": share_of(0.5),
        "loss": share_of(0.0),
        "length_controlled": length_controlled(matches, figures.bootstrap),
        "preference": figures.mean(lambda match: match.vote),
        "reward": figures.sides(Match.mean_reward),
        "length": figures.sides(Match.mean_length),
        "dimensions": {name: figures.sides(partial(Match.mean_score, dimension=name)) for name in names},
        "facts": facts if all(facts.values()) else None,
    }
