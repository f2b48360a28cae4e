"""What scores token ids, and which engine the settings choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from judge_pipeline.common.weighting import full_weights
from reward_model.modeling.model import Manifest
from reward_model.scoring.score_config import ScoreConfig
from reward_model.scoring.scorer import RewardModel
from reward_model.shared_prefix.layout import EncodedPrompt, PromptShape

Array = NDArray[np.floating[Any]]


class Engine(Protocol):
    """What scores token ids: `RewardModel`, or vLLM."""

    tokens_read: int
    """Tokens that went through the model so far."""

    @property
    def reads(self) -> str:
        """What the scores are read from, and how many layers run for it."""
        ...

    def readings(self, prompt: EncodedPrompt) -> list[PromptShape]:
        """Token counts of what is read to score a prompt."""
        ...

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
    return RewardModel.from_pretrained(
        config.model, config.device, dtype, shared_prefix=config.shared_prefix, readout=config.readout
    )


def reward_weights(config: ScoreConfig, manifest: Manifest) -> dict[str, float]:
    """Dimension → its weight in the reward: those asked for, or those stored with the model.

    Raises:
        UserError: a name the model does not score, or weights that give no reward.
    """
    stored = dict(zip(manifest.dimensions, manifest.weight_list(), strict=True))
    given = config.weights or stored
    return full_weights(given, manifest.dimensions, "'{name}', which the model does not score")
