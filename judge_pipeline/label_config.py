"""The settings of `judge-pipeline label`: which judge, how it is asked, how its work is limited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from judge_pipeline.config import Config, check_url
from judge_pipeline.errors import UserError
from judge_pipeline.options import JudgeOptions
from judge_pipeline.retrieval import Retrieval
from judge_pipeline.run_dir import EXISTING_HELP, Existing
from judge_pipeline.runner import Prices
from judge_pipeline.weighting import Missing

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


class LabelConfig(JudgeOptions, Config):
    """Settings of `judge-pipeline label`; those of `JudgeOptions` are part of it."""

    prompts: Path = Field(
        description="prompts with responses: .jsonl, .jsonl.gz or .parquet",
        json_schema_extra={"positional": True},
    )
    output: Path = Field(description="directory of the run", json_schema_extra=FREE)
    judge: JudgeConfig = Field(default_factory=lambda: JudgeConfig.model_validate({}))
    structured: ClassVar[bool] = False  # type: ignore[misc]
    """No setting here: --judge.structured and the engine decide it."""
    dimensions: list[str] = Field(
        ["paper"],
        description="dimensions to judge, by name; `paper` is the four of the paper, `trajectory` a set for agents",
    )
    retrieval: Retrieval = Field(
        "dense", description="how a statement finds its evidence: dense, bm25, hybrid"
    )
    embedder: str = Field("minilm", description="embedding model of dense and hybrid retrieval")
    top_k: int = Field(5, ge=1, description="segments shown as evidence for a statement")
    segment_tokens: int = Field(128, ge=8, description="length of a segment")
    chunk_tokens: int = Field(4096, ge=64, description="length of a chunk that key points are taken from")
    weights: dict[str, float] = Field(
        {}, description="weights in the reward, e.g. faithfulness=2; others weigh 1", json_schema_extra=FREE
    )
    missing: Missing = Field(
        "null",
        description="the reward where a dimension is missing: null, mean_of_rest, or zero for its points",
        json_schema_extra=FREE,
    )
    overflow: Literal["error", "skip"] = Field(
        "error",
        description="calls that do not fit the judge's window: refuse to start, or leave those dimensions out",
        json_schema_extra=FREE,
    )
    dry_run: bool = Field(
        False,
        description="show prompts, calls, tokens and money expected; ask nothing",
        json_schema_extra=FREE,
    )
    price_input: float | None = Field(
        None, ge=0, description="money per million input tokens", json_schema_extra=FREE
    )
    price_output: float | None = Field(
        None, ge=0, description="money per million output tokens", json_schema_extra=FREE
    )
    price_cached_input: float | None = Field(
        None,
        ge=0,
        description="money per million cached input tokens; default: as input",
        json_schema_extra=FREE,
    )
    max_calls: int | None = Field(
        None, ge=0, description="stop after so many calls in this run", json_schema_extra=FREE
    )
    max_cost: float | None = Field(
        None, gt=0, description="stop when this run has cost so much (needs prices)", json_schema_extra=FREE
    )
    retry_failed: bool = Field(
        False, description="do again what failed in an earlier run", json_schema_extra=FREE
    )
    limit: int | None = Field(
        None, ge=1, description="only the first so many prompts", json_schema_extra=FREE
    )
    window: int = Field(64, ge=1, description="prompts under way at a time", json_schema_extra=FREE)
    existing: Existing = Field("refuse", description=EXISTING_HELP, json_schema_extra=FREE)

    @property
    def prices(self) -> Prices:
        """Prices as given."""
        return Prices(self.price_input, self.price_output, self.price_cached_input)

    def judge_options(self, *, structured: bool) -> JudgeOptions:
        """The dimensions' settings, once it is known whether the engine holds answers to a schema."""
        values = {name: getattr(self, name) for name in JudgeOptions.model_fields if name != "structured"}
        return JudgeOptions(**{**values, "structured": structured})

    def check(self) -> None:
        """Refuse settings that contradict each other. Raises UserError."""
        if self.max_cost is not None and self.price_input is None and self.price_output is None:
            raise UserError("--max-cost needs prices", "give --price-input and --price-output")
        if self.judge.engine == "endpoint" and not self.judge.base_url:
            raise UserError("--judge.engine endpoint needs --judge.base-url")
        if self.judge.batch_out is not None and self.judge.base_url:
            raise UserError("--judge.batch-out asks no endpoint", "leave out --judge.base-url")
        if (self.judge.batch_out or self.judge.batch_in) and not self.judge.model:
            raise UserError("batch files need --judge.model", "name the model the batch is for")
