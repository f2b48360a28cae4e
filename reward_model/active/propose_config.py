"""Settings of `reward-model propose`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from judge_pipeline.common.config import Config
from judge_pipeline.common.run_dir import EXISTING_HELP, Existing
from reward_model.options import TOKEN_BUDGET, Overflow, SharedPrefix

HEADS = 16


class ProposeConfig(Config):
    """Settings of `reward-model propose`."""

    model: Path = Field(description="a trained reward model", json_schema_extra={"positional": True})
    labels: Path = Field(
        description="the labels there are: a label run, or prompts with human scores",
        json_schema_extra={"positional": True},
    )
    pool: Path = Field(
        description="prompts with answers to choose from", json_schema_extra={"positional": True}
    )
    output: Path = Field(description="file for the chosen prompts (.jsonl)")
    prompts: Path | None = Field(None, description="the labelled prompts; default: those the label run read")
    count: int = Field(50, ge=1, description="prompts to choose")
    per_document: int | None = Field(
        None, ge=1, description="most prompts over one document; default: spread as evenly as the pool allows"
    )
    heads: int = Field(HEADS, ge=2, description="heads in the ensemble")
    overflow: Overflow = Field(
        "error",
        description="prompts over the window: error, or skip and count them",
        json_schema_extra={"identity": False},
    )
    shared_prefix: SharedPrefix = Field(
        "on",
        description="read a document once for all answers, or off for models that cannot",
        json_schema_extra={"identity": False},
    )
    token_budget: int = Field(
        TOKEN_BUDGET, ge=1, description="tokens read at once", json_schema_extra={"identity": False}
    )
    seed: int = Field(0, description="of the resamples")
    existing: Existing = Field("refuse", description=EXISTING_HELP, json_schema_extra={"identity": False})
