"""Settings of `reward-model score`, and the engine they choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.config import JsonDict

from judge_pipeline.common.config import Config
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.run_dir import EXISTING_HELP, Existing
from reward_model.data.window import Overflow
from reward_model.modeling.model import Manifest
from reward_model.scoring.scorer import TOKEN_BUDGET, RewardModel
from reward_model.shared_prefix.layout import EncodedPrompt

Array = NDArray[np.floating[Any]]
HOW: JsonDict = {"identity": False}


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


class Engine(Protocol):
    """What scores token ids: `RewardModel`, or vLLM."""

    tokens_read: int
    """Tokens that went through the model so far."""

    def encode(self, context: str, query: str, responses: Sequence[str]) -> EncodedPrompt:
        """Tokenise."""
        ...

    def score_encoded(self, prompts: Sequence[EncodedPrompt], token_budget: int) -> Iterator[Array]:
        """Points (N, D) of each prompt, in order."""
        ...

    def close(self) -> None:
        """Let go of processes and memory."""
        ...


def make_engine(config: ScoreConfig) -> Engine:
    """Load the model in the engine asked for.

    Raises:
        UserError: not a finished reward model, or the engine is not installed.
    """
    if config.engine == "vllm":
        from reward_model.scoring.vllm_engine import VllmEngine

        return VllmEngine(config.model, config.dtype, **config.vllm.model_dump())
    dtype = None if config.dtype == "auto" else config.dtype
    return RewardModel.from_pretrained(config.model, config.device, dtype, shared_prefix=config.shared_prefix)


def reward_weights(config: ScoreConfig, manifest: Manifest) -> dict[str, float]:
    """Dimension → its weight in the reward: those asked for, or those stored with the model.

    Raises:
        UserError: a name the model does not score, or weights that give no reward.
    """
    unknown = set(config.weights) - set(manifest.dimensions)
    if unknown:
        raise UserError(
            f"--weights names '{min(unknown)}', which the model does not score",
            f"it scores: {', '.join(manifest.dimensions)}",
        )
    stored = dict(zip(manifest.dimensions, manifest.weight_list(), strict=True))
    weights = {name: config.weights.get(name, 1.0) for name in stored} if config.weights else stored
    if sum(weights.values()) <= 0 or min(weights.values()) < 0:
        raise UserError("--weights: weights are 0 or more, and one is above 0")
    return weights
