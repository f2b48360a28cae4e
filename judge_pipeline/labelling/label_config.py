"""The settings of `judge-pipeline label`: which judge, how it is asked, how its work is limited."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from judge_pipeline.common.config import Config
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.run_dir import EXISTING_HELP, Existing
from judge_pipeline.common.weighting import Missing
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.documents.retrieval import Retrieval
from judge_pipeline.engines.judge_config import FREE, JudgeConfig
from judge_pipeline.engines.run_calls import Prices


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
