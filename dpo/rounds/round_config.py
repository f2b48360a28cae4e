"""Settings of `dpo round`: the files it begins with, and for each step the settings of that step's own command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from judge_pipeline.common.config import POSITIONAL, Config
from judge_pipeline.common.run_dir import EXISTING_HELP, Existing
from judge_pipeline.engines.open import JudgeConfig
from reward_model.options import HOW


class RoundConfig(Config):
    """Settings of `dpo round`."""

    prompts: Path = Field(description="prompts to train on", json_schema_extra=POSITIONAL)
    model: str = Field(description="model or adapter to begin with")
    reward_model: Path = Field(description="reward model that scores the answers of every round")
    output: Path = Field(description="directory of all rounds")
    rounds: int = Field(
        2, ge=1, description="times to sample, score, pair and train; more go on", json_schema_extra=HOW
    )
    eval_prompts: Path | None = Field(
        None, description="held-out prompts that every round's model answers too; the table is about these"
    )
    sample: dict[str, Any] = Field({}, description="settings of `dpo sample`, n=10,temperature=1.0,…")
    score: dict[str, Any] = Field({}, description="settings of `reward-model score`")
    pairs: dict[str, Any] = Field({}, description="settings of `dpo pairs`, min_margin=0.5,…")
    train: dict[str, Any] = Field(
        {}, description="settings of `dpo train`; an adapter is merged, so that the next round begins with it"
    )
    label: dict[str, Any] = Field({}, description="settings of `judge-pipeline label`, of the spot check")
    check: int = Field(
        0, ge=0, description="prompts whose first answer the judge checks in every round; 0 asks no judge"
    )
    judge: JudgeConfig = Field(
        default_factory=lambda: JudgeConfig.model_validate({}), description="who is asked with --check"
    )
    launch: str | None = Field(
        None,
        description="what starts the training, e.g. 'accelerate launch --config_file FILE'; by default this process",
        json_schema_extra=HOW,
    )
    seed: int = Field(0, description="of sampling, pairs and training; a round adds its number")
    existing: Existing = Field("refuse", description=EXISTING_HELP, json_schema_extra=HOW)

    @model_validator(mode="after")
    def _free_settings(self) -> RoundConfig:
        taken = {
            "sample": ("prompts", "model", "output", "seed", "existing"),
            "score": ("prompts", "model", "output", "existing"),
            "pairs": ("scored", "output", "seed", "existing"),
            "train": ("pairs", "model", "output", "seed", "existing"),
            "label": ("prompts", "output", "judge", "existing"),
        }
        for step, names in taken.items():
            if given := sorted(set(names) & set(getattr(self, step))):
                raise ValueError(f"{step}: '{given[0]}' is set by the round")
        return self
