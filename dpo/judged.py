"""A label run's scores and rewards in place of those that answers carry."""

from __future__ import annotations

from pathlib import Path

from judge_pipeline.common.record_files import read_labels
from judge_pipeline.common.records import Label, Response

Labels = dict[tuple[str, str], Label]
"""Labels by prompt id and response id."""


def labels_by_answer(path: Path) -> Labels:
    """The rows of a label run."""
    return {(row.prompt_id, row.response_id): row for row in read_labels(path)}


def as_judged(response: Response, label: Label | None) -> Response:
    """The answer with the label's scores and reward; with neither where there is no label."""
    scores, reward = (label.scores, label.reward) if label else (None, None)
    return response.model_copy(update={"scores": scores, "reward": reward})
