"""The settings of `judge-pipeline label`: which judge, how it is asked, how its work is limited."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from judge_pipeline.common.config import free, setting
from judge_pipeline.common.run_dir import EXISTING_HELP, Existing
from judge_pipeline.common.weighting import Missing
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.documents.retrieval import Retrieval
from judge_pipeline.engines.limits import Limits
from judge_pipeline.engines.open import JudgeConfig
from judge_pipeline.labelling.shards import parse_shard


class LabelConfig(JudgeOptions, Limits):
    """Settings of `judge-pipeline label`; those of `JudgeOptions` and `Limits` are part of it."""

    prompts: Path = Field(
        description="prompts with responses: .jsonl, .jsonl.gz or .parquet",
        json_schema_extra={"positional": True},
    )
    output: Path = free(..., "directory of the run")
    judge: JudgeConfig = Field(default_factory=lambda: JudgeConfig.model_validate({}))
    structured: ClassVar[bool] = False  # type: ignore[misc]
    """No setting here: --judge.structured and the engine decide it."""
    dimensions: list[str] = setting(
        ["paper"],
        "dimensions to judge, by name; `paper` is the four of the paper, `trajectory` a set for agents",
    )
    retrieval: Retrieval = setting("dense", "how a statement finds its evidence: dense, bm25, hybrid")
    embedder: str = setting("minilm", "embedding model of dense and hybrid retrieval")
    top_k: int = setting(5, "segments shown as evidence for a statement", ge=1)
    segment_tokens: int = setting(128, "length of a segment", ge=8)
    chunk_tokens: int = setting(4096, "length of a chunk that key points are taken from", ge=64)
    weights: dict[str, float] = free({}, "weights in the reward, e.g. faithfulness=2; others weigh 1")
    missing: Missing = free(
        "null", "the reward where a dimension is missing: null, mean_of_rest, or zero for its points"
    )
    overflow: Literal["error", "skip"] = free(
        "error", "calls that do not fit the judge's window: refuse to start, or leave those dimensions out"
    )
    shard: str | None = setting(
        None,
        "label one part of the prompts, e.g. 3/8 for the third of eight; `judge-pipeline merge` joins them",
    )
    limit: int | None = free(None, "only the first so many prompts", ge=1)
    window: int = free(64, "prompts under way at a time", ge=1)
    document_megabytes: float = free(
        1024.0, "most megabytes of cut and embedded documents kept for later prompts over them", gt=0
    )
    existing: Existing = free("refuse", EXISTING_HELP)

    @field_validator("shard")
    @classmethod
    def _one_of(cls, value: str | None) -> str | None:
        if value is not None:
            parse_shard(value)
        return value

    def judge_options(self, *, structured: bool) -> JudgeOptions:
        """The dimensions' settings, once it is known whether the engine holds answers to a schema."""
        values = self.model_dump(include=set(JudgeOptions.model_fields) - {"structured"})
        return JudgeOptions(**values, structured=structured)

    def check(self) -> None:
        """Refuse settings that contradict each other. Raises UserError."""
        self.check_limits(self.judge)
