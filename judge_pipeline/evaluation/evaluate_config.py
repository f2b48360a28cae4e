"""Settings of `judge-pipeline evaluate`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from judge_pipeline.common.config import POSITIONAL
from judge_pipeline.common.run_dir import EXISTING_HELP, Existing
from judge_pipeline.engines.limits import Limits
from judge_pipeline.engines.open import JudgeConfig


class EvaluateConfig(Limits):
    """Settings of `judge-pipeline evaluate`."""

    scored: Path = Field(
        description="a label run, a labels file, scored prompts, or prompts with people's values only (baselines)",
        json_schema_extra=POSITIONAL,
    )
    prompts: list[Path] = Field(
        [], description="prompts with `human` or `preferences`; default: those SCORED holds or was made from"
    )
    output: Path = Field(description="directory for agreement.json, agreement.md and report.html")
    name: str = Field("judge", description="what to call the thing measured in the tables")
    judges: dict[str, Path] = Field(
        {},
        description="label runs or scored files of further judges, NAME=PATH,…; every two are compared, paired",
    )
    weights: dict[str, float] = Field(
        {},
        description="weights of the dimensions in the reward, e.g. faithfulness=2; default: the stored reward",
    )
    embedding_model: str = Field(
        "minilm", description="model of the similarity baselines, or `none` to leave them out"
    )
    short_rm: str | None = Field(
        None,
        description="a sequence-classification reward model that sees question and answer, as a baseline",
    )
    pairwise_judge: bool = Field(
        False, description="ask --judge directly which answer of each decided pair is better, in both orders"
    )
    holistic: bool = Field(False, description="ask --judge for one score of each answer, in one call")
    also_ask: list[str] = Field(
        [],
        description="further models at the judge's endpoints that are asked the same, beside it in the tables",
    )
    judge: JudgeConfig = Field(default_factory=lambda: JudgeConfig.model_validate({}))
    bootstrap: int = Field(1000, ge=10, description="resamples of the documents for the 95% intervals")
    seed: int = Field(0, description="of the resamples and of the random baseline")
    existing: Existing = Field("refuse", description=EXISTING_HELP, json_schema_extra={"identity": False})
