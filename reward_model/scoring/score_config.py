"""Settings of `reward-model score`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from judge_pipeline.common.config import Config
from judge_pipeline.common.run_dir import EXISTING_HELP, Existing
from reward_model.options import HOW, TOKEN_BUDGET, Overflow, ReadoutChoice


class VllmSettings(Config):
    """How `--engine vllm` uses the machine."""

    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="share of a GPU's memory to take"
    )
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs to spread the model over")
    enforce_eager: bool = Field(default=False, description="skip compilation: a faster start, slower scoring")


class ScoreConfig(Config):
    """Settings of `reward-model score`."""

    model: Path = Field(
        description="directory `reward-model train` wrote", json_schema_extra={"positional": True}
    )
    prompts: Path = Field(
        description="prompts with responses, .jsonl, .jsonl.gz or .parquet",
        json_schema_extra={"positional": True},
    )
    output: Path = Field(description="file to write, .jsonl, .jsonl.gz or .parquet")
    existing: Existing = Field("refuse", description=EXISTING_HELP, json_schema_extra=HOW)
    weights: dict[str, float] = Field(
        {},
        description="weights of the dimensions in the reward, a=2,b=1; those stored with the model by default",
    )
    overflow: Overflow = Field(
        "error",
        description="answers over the window: error, or skip (null scores, marked over_window, counted)",
    )
    engine: Literal["torch", "vllm"] = Field("torch", description="what runs the model")
    readout: ReadoutChoice = Field(
        "best",
        description="torch: best scores with the readout beside the plain head, where the model has one (vllm knows the "
        "plain head alone); plain",
    )
    shared_prefix: Literal["on", "off"] = Field(
        "on", description="torch: read a document once for all answers, or off for models that cannot"
    )
    token_budget: int = Field(
        TOKEN_BUDGET,
        ge=1,
        description="torch: tokens in one pass; a longer prompt is read in chunks. Scores do not depend on it, up to "
        "rounding: 1e-4 points in float32",
        json_schema_extra=HOW,
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="arithmetic; auto: as the model was saved (torch), vLLM's choice (vllm)"
    )
    device: str | None = Field(
        None,
        description="torch: cuda, cuda:1, cpu; by default a GPU when there is one",
        json_schema_extra=HOW,
    )
    vllm: VllmSettings = Field(default_factory=VllmSettings)
