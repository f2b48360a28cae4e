"""Settings of `dpo sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from judge_pipeline.common.config import POSITIONAL, Config, check_url, json_values
from judge_pipeline.common.run_dir import EXISTING_HELP, Existing
from reward_model.options import HOW


def _one_or_several(value: Any) -> Any:
    return [] if value is None else [value] if isinstance(value, str) else value


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
    top_k: int = Field(0, ge=0, description="draw from so many likeliest tokens; 0 is all")
    min_p: float = Field(
        0.0, ge=0, lt=1, description="least probability of a token, as a share of the likeliest's"
    )
    repetition_penalty: float = Field(
        1.0, gt=0, description="over 1 makes tokens of the prompt and the answer so far less likely"
    )
    stop: list[str] = Field([], description="texts that end an answer and are no part of it")
    max_new_tokens: int = Field(1024, ge=1, description="most tokens an answer may have")
    seed: int = Field(0, description="seed of the run; every answer's own seed is derived and recorded")
    engine: Literal["auto", "vllm", "transformers", "endpoint"] = Field(
        "auto",
        description="auto: the endpoint if --base-url is given, else vLLM if installed, else transformers",
    )
    chat_template_kwargs: Annotated[dict[str, Any], BeforeValidator(json_values)] = Field(
        {},
        description="arguments of the chat template, as JSON values, e.g. enable_thinking=false; they go with the answers "
        "into pairs and training",
    )
    base_url: Annotated[list[str], BeforeValidator(_one_or_several)] = Field(
        [],
        description="OpenAI-compatible endpoint, e.g. http://localhost:8000/v1; several share the prompts",
        json_schema_extra=HOW,
    )
    api_key_variable: str = Field(
        "OPENAI_API_KEY",
        description="environment variable that holds the endpoint's key",
        json_schema_extra=HOW,
    )
    concurrency: int = Field(
        8, ge=1, description="prompts at a time, for each endpoint", json_schema_extra=HOW
    )
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
    def _addresses(cls, value: list[str]) -> list[str]:
        return [check_url(url) for url in value]
