"""How a reward is made of scores: weights of the dimensions, and what a missing one does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from judge_pipeline.common.errors import UserError

Missing = Literal["null", "mean_of_rest", "zero"]


@dataclass(frozen=True)
class Weighting:
    """Weights by dimension, and the rule for a dimension without a score."""

    weights: dict[str, float]
    missing: Missing = "null"


def resolve_weighting(given: dict[str, float], names: Sequence[str], missing: Missing) -> Weighting:
    """Every dimension weighs 1 unless told otherwise (LongReward, section 3.1)."""
    for name, weight in given.items():
        if name not in names:
            raise UserError(f"--weights: '{name}' is not labelled", f"dimensions here: {', '.join(names)}")
        if not 0 <= weight < float("inf"):
            raise UserError(f"--weights: {name}={weight} is not a weight", "weights are numbers from 0 up")
    weights = {name: float(given.get(name, 1.0)) for name in names}
    if not any(weights.values()):
        raise UserError("--weights: all weights are 0")
    return Weighting(weights, missing)
