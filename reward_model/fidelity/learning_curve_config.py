"""Settings of `reward-model learning-curve`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from reward_model.options import SharedPrefix
from reward_model.training.train_config import TrainConfig


class LearningCurveConfig(TrainConfig):
    """Settings of `reward-model learning-curve`: those of training, the same at every size, and its own."""

    output: Path = Field(description="directory for the models, curve.json and report.html")
    eval_fraction: float = Field(
        0.25, gt=0, lt=1, description="share of documents held out, the same for all"
    )
    shared_prefix: SharedPrefix = Field(
        "on", description="as in train", json_schema_extra={"identity": False}
    )
    sizes: list[int] = Field([25, 50, 100, 200], min_length=1, description="numbers of prompts to train on")
    seeds: int = Field(
        2, ge=1, description="runs of each size, each with an order and a choice of prompts of its own"
    )
    stop_fraction: float = Field(
        0.15,
        ge=0,
        lt=1,
        description="share of the other documents that no size trains on and early stopping watches; methods with "
        "steps only",
    )
    keep_models: bool = Field(
        False, description="keep every size's weights", json_schema_extra={"identity": False}
    )
    bootstrap: int = Field(1000, ge=10, description="resamples of the documents for the 95% intervals")

    @field_validator("eval_labels", "eval_prompts")
    @classmethod
    def _own_split(cls, value: Path | None) -> None:
        if value is not None:
            raise ValueError("the curve holds out documents of the labels: --eval-fraction")

    @field_validator("sizes")
    @classmethod
    def _ascending(cls, sizes: list[int]) -> list[int]:
        if min(sizes) < 1:
            raise ValueError("a size below 1")
        return sorted(set(sizes))
