"""Settings of `reward-model augment`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from judge_pipeline.common.config import Config
from judge_pipeline.common.records import DIMENSIONS
from judge_pipeline.common.run_dir import EXISTING_HELP, Existing
from reward_model.options import HOW

STRENGTHS = (1, 2, 3)


class AugmentConfig(Config):
    """Settings of `reward-model augment`."""

    prompts: Path = Field(
        description="prompts with responses, .jsonl, .jsonl.gz or .parquet",
        json_schema_extra={"positional": True},
    )
    output: Path = Field(description="file to write, .jsonl, .jsonl.gz or .parquet")
    existing: Existing = Field("refuse", description=EXISTING_HELP, json_schema_extra=HOW)
    dimensions: list[str] = Field(
        list(DIMENSIONS), min_length=1, description="dimensions to damage, each answer in one at a time"
    )
    strengths: list[int] = Field(
        list(STRENGTHS), min_length=1, description="strengths to draw from, 1 (one place) to 3 (nearly all)"
    )
    answers: int = Field(2, ge=1, description="answers of a prompt to change, drawn at random")
    per_answer: int = Field(1, ge=1, description="damages of each dimension an answer")
    keep_length: bool = Field(
        True,
        description="completeness: fill the room of dropped sentences from elsewhere in the document; "
        "false only drops them",
    )
    length_tolerance: float = Field(
        0.25, gt=0, description="share by which a changed answer may be longer or shorter"
    )
    neutral: bool = Field(True, description="add rewritings that leave every truth as it is")
    document_contrast: bool = Field(
        False, description="add the same answers beside a document whose fact is changed, and beside another"
    )
    seed: int = Field(0, description="of everything drawn at random")

    @field_validator("strengths")
    @classmethod
    def _known(cls, value: list[int]) -> list[int]:
        if set(value) - set(STRENGTHS):
            raise ValueError("strengths are 1, 2 and 3")
        return sorted(set(value))

    @field_validator("dimensions")
    @classmethod
    def _damageable(cls, value: list[str]) -> list[str]:
        unknown = sorted(set(value) - set(DIMENSIONS))
        if unknown:
            raise ValueError(f"'{unknown[0]}' cannot be damaged; these can: {', '.join(DIMENSIONS)}")
        return list(dict.fromkeys(value))
