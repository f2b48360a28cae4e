"""Settings of `dpo pairs`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from judge_pipeline.common.config import POSITIONAL, Config
from judge_pipeline.common.run_dir import EXISTING_FILE_HELP, ExistingFile
from reward_model.options import HOW

Arm = Literal["best-worst", "contrast", "short-context-rm"]
RewardsOf = Literal["labels", "file"]
"""Whose rewards a pair compares: those of the label run, or those that the scored file carries."""
FlagName = Literal["empty", "truncated", "refused", "duplicate"]


class PairsConfig(Config):
    """Settings of `dpo pairs`."""

    scored: Path = Field(description="prompts with scored responses", json_schema_extra=POSITIONAL)
    output: Path = Field(description="file to write, .jsonl or .parquet")
    labels: Path | None = Field(
        None, description="label run whose rewards are used for the prompts it covers; others keep the file's"
    )
    arm: Arm = Field("best-worst", description="which baseline of the paper: best-worst is LongReward itself")
    pairs: Literal["best-worst", "all"] = Field(
        "best-worst", description="one pair a prompt, or all above the margin"
    )
    min_responses: int = Field(5, ge=2, description="scored answers a prompt must have")
    min_margin: float = Field(
        0.0, ge=0, description="least difference of rewards, in points; ties are always dropped"
    )
    max_length_ratio: float | None = Field(
        None,
        ge=1,
        description="pairs matched in length: the longer answer has at most so many times the characters of the shorter",
    )
    sureness: float | None = Field(
        None,
        gt=0.5,
        lt=1,
        description="least probability that the judge orders two answers as the file's rewards do; the margin follows from "
        "their errors where --sure-labels has the same answers. Judge's own rewards need none",
    )
    sure_labels: Path | None = Field(
        None, description="label run that the errors are measured on; --labels by default"
    )
    keep_flagged: list[FlagName] = Field(
        default_factory=list, description="flagged answers to use all the same, e.g. truncated"
    )
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="dimension weights, faithfulness=2,…; others weigh 1; none takes the rewards as they stand",
    )
    task_weights: Path | None = Field(
        None, description="YAML or JSON file: task → dimension → weight; others weigh 1"
    )
    reference: str | None = Field(None, description="contrast: id or source of the given reference answer")
    contrast_rejected: Literal["random", "worst"] = Field(
        "random", description="contrast: which sampled answer"
    )
    mix: Path | None = Field(None, description="short-context preference pairs to mix in")
    mix_proportion: float = Field(0.0, ge=0, lt=1, description="their share of the output")
    seed: int = Field(0, description="seed of random choices (contrast, mixing)")
    existing: ExistingFile = Field("refuse", description=EXISTING_FILE_HELP, json_schema_extra=HOW)

    @model_validator(mode="after")
    def _belong_together(self) -> PairsConfig:
        if (self.arm == "contrast") != (self.reference is not None):
            raise ValueError("--arm contrast and --reference go together")
        if self.arm == "short-context-rm" and (self.weights or self.task_weights):
            raise ValueError(
                "--arm short-context-rm has one reward: --weights and --task-weights do not apply"
            )
        if self.arm == "contrast" and (self.max_length_ratio or self.sureness):
            raise ValueError(
                "--arm contrast sets a given answer against one other: no pair of it can be chosen"
            )
        if self.sureness is not None and self.sure_labels is None and self.labels is None:
            raise ValueError(
                "--sureness needs --labels or --sure-labels: what the judge says of some of the answers"
            )
        if self.sure_labels is not None and self.sureness is None:
            raise ValueError("--sure-labels and --sureness go together")
        if (self.mix is None) != (self.mix_proportion == 0):
            raise ValueError("--mix and --mix-proportion go together")
        if "duplicate" in self.keep_flagged or "empty" in self.keep_flagged:
            raise ValueError("--keep-flagged: empty and doubled answers never make a pair")
        return self
