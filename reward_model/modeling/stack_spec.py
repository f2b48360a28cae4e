"""What is added to a model's outputs: weights of free baselines, as a manifest keeps them.

Apart from how they are found (``stack``), which needs the statistics: a server that only loads a model does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Floats = NDArray[np.float64]
OUTPUT = "output:"
"""Before the name of a model's output among the columns of a stack."""


class StackedOutput(BaseModel):
    """What becomes of one output."""

    model_config = ConfigDict(extra="forbid")

    weights: dict[str, float]
    """Column → weight; columns are the output itself (`output:NAME`) and baselines."""
    constant: float
    """Added, so that the mean over training answers is that of their labels."""
    pairs: tuple[float, float]
    """Within-prompt pairs in order on documents out of the fold: the model alone, and with the baselines."""


class StackSpec(BaseModel):
    """The entry `stack` of a manifest."""

    model_config = ConfigDict(extra="forbid")

    baselines: list[str]
    embedding_model: str | None = None
    """Of the similarities; None where there are none."""
    outputs: dict[str, StackedOutput] = Field(default_factory=dict)
    """Outputs that the baselines improve; others stay as they are."""

    def apply(self, points_N_D: Floats, baselines_N_B: Floats, dimensions: Sequence[str]) -> Floats:
        """Points (N, D) with the baselines added."""
        columns = dict(zip((f"{OUTPUT}{name}" for name in dimensions), points_N_D.T, strict=True))
        columns |= dict(zip(self.baselines, baselines_N_B.T, strict=True))
        found = np.array(points_N_D, dtype=float)
        for place, name in enumerate(dimensions):
            if (own := self.outputs.get(name)) is not None:
                found[:, place] = own.constant + sum(
                    weight * columns[column].astype(float) for column, weight in own.weights.items()
                )
        return found


def describe(spec: StackSpec) -> str:
    """What a stack does, in a sentence for card and terminal."""
    names = ", ".join(spec.baselines)
    if not spec.outputs:
        return f"Free baselines ({names}) improve no output on documents out of the fit: none is added."
    listed = ", ".join(
        f"{name} {own.pairs[0]:.1%} → {own.pairs[1]:.1%}" for name, own in spec.outputs.items()
    )
    return (
        f"Free baselines ({names}) are added to the model's outputs where they order more pairs right out of fold: "
        f"{listed}. `reward-model score` adds them; the plain checkpoint is without."
    )
