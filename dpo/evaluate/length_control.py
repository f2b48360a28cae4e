"""How often A would win if its answers were as long as B's (Dubois et al. 2024, arXiv 2404.04475, without its terms for
instructions, which need more than two models).

A logistic regression of the votes on the difference of lengths, squashed as there: tanh(difference / its standard
deviation). Its value at no difference is the length-controlled share of wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from dpo.evaluate.match import Match
from judge_pipeline.statistics.bootstrap import DocumentBootstrap
from judge_pipeline.statistics.table import Floats, Ints, build_table

REPLICATES = 300
"""Each is a regression of its own."""


def length_controlled(matches: Sequence[Match], bootstrap: DocumentBootstrap) -> dict[str, Any]:
    """The share of wins (a tie is half of one) at equal lengths, with its interval over documents, JSON-ready."""
    votes = np.array([np.nan if match.vote is None else match.vote for match in matches], dtype=float)
    differences = np.array([match.voted_length(0) - match.voted_length(1) for match in matches])
    decided = np.flatnonzero(np.isfinite(votes))
    spread = float(differences[decided].std()) if len(decided) else 0.0
    longer = np.tanh(differences / spread) if spread > 0 else np.zeros(len(matches))
    documents = build_table([match.prompt for match in matches]).document_P

    def share(rows: Ints) -> float | None:
        return _share_at_zero(votes[rows], longer[rows]) if len(rows) else None

    return bootstrap.statistic(share, documents, decided, REPLICATES).as_json()


def _share_at_zero(votes: Floats, longer: Floats) -> float:
    if np.ptp(votes) == 0:
        return float(votes[0])  # no regression tells length from quality where one side always wins
    # A tie counts half for each side: every vote is two rows with weights.
    sides = np.repeat([1, 0], len(votes))
    model = LogisticRegression().fit(
        np.tile(longer, 2)[:, None], sides, sample_weight=np.concatenate([votes, 1 - votes])
    )
    return float(model.predict_proba(np.zeros((1, 1)))[0, 1])
