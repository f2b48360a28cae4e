"""Settings of `dpo sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from judge_pipeline.common.config import POSITIONAL, Config, check_url
from judge_pipeline.common.run_dir import EXISTING_HELP, Existing
from reward_model.options import HOW


class SampleConfig(Config):
    """Settings of `dpo sample`."""

    prompts: Path = Field(
        description="prompts file, .jsonl, .jsonl.gz or .parquet", json_schema_extra=POSITIONAL
    )
    model: str = Field(
        description="model that answers: a folder, a hub name, 'smollm2', or the endpoint's model name"
    )
    output: Path = Field(description="file to write, .jsonl")
    n: int = Field(10, ge=1, description="answers a prompt")
    temperature: float = Field(1.0, ge=0, description="sampling temperature; 0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus mass; 1 is all")
    max_new_tokens: int = Field(1024, ge=1, description="most tokens an answer may have")
    seed: int = Field(0, description="seed of the run; every answer's own seed is derived and recorded")
    engine: Literal["auto", "vllm", "transformers", "endpoint"] = Field(
        "auto",
        description="auto: the endpoint if --base-url is given, else vLLM if installed, else transformers",
    )
    base_url: str | None = Field(
        None, description="OpenAI-compatible endpoint, e.g. http://localhost:8000/v1", json_schema_extra=HOW
    )
    api_key_variable: str = Field(
        "OPENAI_API_KEY",
        description="environment variable that holds the endpoint's key",
        json_schema_extra=HOW,
    )
    concurrency: int = Field(8, ge=1, description="prompts at a time at an endpoint", json_schema_extra=HOW)
    device: str = Field("auto", description="transformers: cpu, cuda, cuda:1, …", json_schema_extra=HOW)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="type of the weights"
    )
    engine_args: dict[str, Any] = Field(
        {}, description="more arguments for vllm.LLM, name=value,…", json_schema_extra=HOW
    )
    overflow: Literal["error", "skip"] = Field(
        "error",
        description="a prompt over the model's window: stop before anything is sampled, or leave it out",
    )
    replace: bool = Field(False, description="drop answers that the input already has")
    existing: Existing = Field("refuse", description=EXISTING_HELP, json_schema_extra=HOW)

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return check_url(value) if value is not None else None
