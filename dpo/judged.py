"""A label run's scores and rewards in place of those that answers carry."""

from __future__ import annotations

from judge_pipeline.common.records import Label, Response


def as_judged(response: Response, label: Label | None) -> Response:
    """The answer with the label's scores and reward; with neither where there is no label."""
    scores, reward = (label.scores, label.reward) if label else (None, None)
    return response.model_copy(update={"scores": scores, "reward": reward})
