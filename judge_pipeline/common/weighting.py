"""How a reward is made of scores: weights of the dimensions, and what a missing one does."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.records import Scores

Missing = Literal["null", "mean_of_rest", "zero"]


@dataclass(frozen=True)
class Weighting:
    """Weights by dimension, and the rule for a dimension without a score."""

    weights: dict[str, float]
    missing: Missing = "null"


def weighted_reward(scores: Scores, weights: dict[str, float], missing: Missing = "null") -> float | None:
    """Weighted mean of the scores named in `weights`, in points 0–10 (LongReward, section 3.1: equal weights).

    A dimension without a score makes the reward null (`missing="null"`), is left out (`"mean_of_rest"`) or
    counts as 0 (`"zero"`); with nothing at all to average the reward is null.
    """
    total = weight_sum = 0.0
    for name, weight in weights.items():
        if weight == 0:
            continue
        value = scores.get(name)
        if value is None:
            if missing == "null":
                return None
            if missing == "mean_of_rest":
                continue
            value = 0.0
        total += weight * value
        weight_sum += weight
    return total / weight_sum if weight_sum else None


def full_weights(
    given: Mapping[str, float], names: Collection[str], unknown: str, flag: str = "--weights"
) -> dict[str, float]:
    """A weight for each of `names`, 1 where none is given (LongReward, section 3.1).

    Args:
        given: weights by dimension.
        names: of the dimensions there are.
        unknown: what to say of a `{name}` that is not among them.
        flag: where the weights come from, for messages.

    Raises:
        UserError: an unknown dimension, a weight below 0 or without end, or none above 0.
    """
    for name, weight in given.items():
        if name not in names:
            known = ", ".join(names) or "none"
            raise UserError(f"{flag}: {unknown.format(name=name)}", f"dimensions here: {known}")
        if not 0 <= weight < float("inf"):
            raise UserError(f"{flag}: {name}={weight:g} is not a weight", "weights are numbers from 0 up")
    weights = {name: float(given.get(name, 1.0)) for name in names}
    if weights and not any(weights.values()):
        raise UserError(f"{flag}: all weights are 0", "give at least one dimension a weight above 0")
    return weights


def resolve_weighting(given: dict[str, float], names: Sequence[str], missing: Missing) -> Weighting:
    """The weights of a label run; see `full_weights`."""
    return Weighting(full_weights(given, names, "'{name}' is not labelled"), missing)
