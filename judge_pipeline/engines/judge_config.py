"""Who answers the judge's calls: the settings under `--judge.*`, which labelling and evaluation share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from judge_pipeline.common.config import Config, check_url

FREE: dict[str, Any] = {"identity": False}
"""Marks settings that change how a run goes and not what it produces."""


class JudgeConfig(Config):
    """Who answers: an endpoint, a model in this process, or a batch file."""

    engine: Literal["auto", "endpoint", "local"] = Field(
        "auto",
        description="auto: the endpoint if --judge.base-url is given, else a model in this process",
        json_schema_extra=FREE,
    )
    base_url: list[str] = Field(
        [],
        description="OpenAI-compatible endpoint, e.g. http://localhost:8000/v1; several share the work, "
        "each prompt stays with one",
        json_schema_extra=FREE,
    )
    model: str | None = Field(
        None,
        description="the judge: a name the endpoint knows (default: its only one), or for a local judge "
        "`smollm2`, a folder or a hub model",
    )
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="environment variable that holds the key", json_schema_extra=FREE
    )
    structured: Literal["auto", "on", "off"] = Field(
        "auto",
        description="JSON held to a schema, or the text protocol; auto: JSON wherever the engine can hold to it",
    )
    extra_body: dict[str, Any] = Field(
        {}, description="more fields for each request, as JSON values, e.g. reasoning_effort=low"
    )
    max_concurrency: int = Field(
        256,
        ge=1,
        description="most calls in flight to one endpoint; below it the number finds itself",
        json_schema_extra=FREE,
    )
    timeout: float = Field(600.0, gt=0, description="seconds to wait for one answer", json_schema_extra=FREE)
    retries: int = Field(
        5, ge=0, description="further attempts after a failure that may pass", json_schema_extra=FREE
    )
    backoff: float = Field(
        0.5,
        ge=0,
        description="seconds before the first retry, doubled for each further one, drawn at random from 0 up",
        json_schema_extra=FREE,
    )
    batch_size: int = Field(
        8, ge=1, description="answers a local judge without vLLM writes at a time", json_schema_extra=FREE
    )
    backend: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="of a local judge: auto is vLLM when installed", json_schema_extra=FREE
    )
    batch_out: Path | None = Field(
        None,
        description="write the calls still to be made as an OpenAI batch file, and stop",
        json_schema_extra=FREE,
    )
    batch_in: list[Path] = Field(
        [],
        description="answers to the last batch file: its output file, and its error file if there is one; with "
        "--judge.base-url the endpoint is asked what they leave open",
        json_schema_extra=FREE,
    )

    @field_validator("base_url")
    @classmethod
    def _addresses(cls, value: list[str]) -> list[str]:
        return [check_url(url) for url in value]

    @field_validator("extra_body", mode="before")
    @classmethod
    def _decode(cls, value: Any) -> Any:
        """`top_k=5` on the command line means the number."""
        return {key: _json_or_text(item) for key, item in value.items()} if isinstance(value, dict) else value


def _json_or_text(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
