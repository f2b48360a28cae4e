"""Settings of `dpo evaluate`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from judge_pipeline.common.config import POSITIONAL, Config
from judge_pipeline.common.run_dir import EXISTING_HELP, Existing
from judge_pipeline.engines.open import JudgeConfig
from reward_model.options import HOW


class EvaluateConfig(Config):
    """Settings of `dpo evaluate`."""

    a: Path = Field(description="answers of model A, e.g. the trained one", json_schema_extra=POSITIONAL)
    b: Path = Field(description="answers of model B, e.g. the one before", json_schema_extra=POSITIONAL)
    output: Path = Field(description="directory of the evaluation")
    existing: Existing = Field("refuse", description=EXISTING_HELP, json_schema_extra=HOW)
    name_a: str = Field("A", description="what the report calls model A")
    name_b: str = Field("B", description="what the report calls model B")
    reward_model: Path | None = Field(
        None, description="reward model that scores both; none takes the files' rewards"
    )
    labels_a: Path | None = Field(None, description="label run over A's answers; its rewards decide")
    labels_b: Path | None = Field(None, description="label run over B's answers")
    pairwise: bool = Field(False, description="ask the judge about each pair of answers, in both orders")
    judge: JudgeConfig = Field(
        default_factory=lambda: JudgeConfig.model_validate({}), description="who is asked with --pairwise"
    )
    tie_margin: float = Field(0.1, ge=0, description="points of reward within which two answers are as good")
    bootstrap: int = Field(2000, ge=100, description="resamples of the documents for the intervals")
    show: int = Field(
        100, ge=0, description="prompts shown side by side in the report", json_schema_extra=HOW
    )
    seed: int = Field(0, description="of the resampling")

    @model_validator(mode="after")
    def _one_decides(self) -> EvaluateConfig:
        if (self.labels_a is None) != (self.labels_b is None):
            raise ValueError("--labels-a and --labels-b go together")
        if self.reward_model is not None and self.labels_a is not None:
            raise ValueError("--reward-model and --labels-a/-b: one of them gives the rewards")
        if self.judge.batch_out or self.judge.batch_in:
            raise ValueError(
                "batch files serve `judge-pipeline label` and `evaluate` only: name an endpoint or a local judge"
            )
        return self
