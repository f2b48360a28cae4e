"""Settings of `reward-model learning-curve`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from judge_pipeline.common.config import Config
from judge_pipeline.common.run_dir import EXISTING_HELP, Existing
from reward_model.options import LossName, SharedPrefix


class LearningCurveConfig(Config):
    """Settings of `reward-model learning-curve`; those of training mean what they mean there."""

    labels: Path = Field(
        description="a label run, or prompts with human scores or preferences",
        json_schema_extra={"positional": True},
    )
    base_model: str = Field(description="model to start from: smollm2, a folder, or a hub name")
    output: Path = Field(description="directory for the models, curve.json and report.html")
    prompts: Path | None = Field(None, description="the labelled prompts; default: those the label run read")
    sizes: list[int] = Field([25, 50, 100, 200], min_length=1, description="numbers of prompts to train on")
    eval_fraction: float = Field(
        0.25, gt=0, lt=1, description="share of documents held out, the same for all"
    )
    keep_models: bool = Field(
        False, description="keep every size's weights", json_schema_extra={"identity": False}
    )
    epochs: float = Field(3, gt=0, description="passes over the training prompts, at every size")
    method: Literal["full", "lora", "qlora"] = Field("lora", description="train all weights or an adapter")
    learning_rate: float | None = Field(None, gt=0, description="peak learning rate; default: that of train")
    loss: LossName | Literal["auto"] = Field("auto", description="as in train")
    targets: Literal["auto", "judge", "human", "preferences"] = Field("auto", description="as in train")
    head_init: Literal["auto", "mean", "probe", "none"] = Field("auto", description="as in train")
    token_budget: int | None = Field(None, ge=1, description="tokens in a packed sequence")
    max_length: int | None = Field(None, ge=1, description="longest sequence; default: the model's window")
    overflow: Literal["error", "skip"] = Field(
        "error", description="prompts over the window: error, or skip and count them"
    )
    shared_prefix: SharedPrefix = Field(
        "on", description="as in train", json_schema_extra={"identity": False}
    )
    bootstrap: int = Field(1000, ge=10, description="resamples of the documents for the 95% intervals")
    seed: int = Field(0, description="of the split, the subsets and training")
    existing: Existing = Field("refuse", description=EXISTING_HELP, json_schema_extra={"identity": False})

    @field_validator("sizes")
    @classmethod
    def _ascending(cls, sizes: list[int]) -> list[int]:
        if min(sizes) < 1:
            raise ValueError("a size below 1")
        return sorted(set(sizes))
