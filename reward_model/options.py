"""Values and defaults that the settings of several commands share; imports nothing that is slow to load."""

from __future__ import annotations

from typing import Literal

from pydantic.config import JsonDict

from judge_pipeline.common.window import Overflow

HOW: JsonDict = {"identity": False}
"""Marks settings that change how a run goes, not what it produces."""

Targets = Literal["auto", "judge", "human", "preferences"]
SharedPrefix = Literal["on", "off"]
ReadoutChoice = Literal["best", "plain"]
Documents = Literal["auto", "all"]
OnOff = Literal["on", "off"]
Likelihood = Literal["on", "off", "auto"]
LossName = Literal["regression", "pairwise", "regression+pairwise", "sequence", "level+order", "preference"]
Method = Literal["full", "lora", "qlora"]
RewardMethod = Literal["probe", "full", "lora", "qlora"]
TOKEN_BUDGET = 16_384
"""Tokens read at once when scoring."""

__all__ = [
    "HOW",
    "TOKEN_BUDGET",
    "Documents",
    "Likelihood",
    "LossName",
    "Method",
    "OnOff",
    "Overflow",
    "ReadoutChoice",
    "RewardMethod",
    "SharedPrefix",
    "Targets",
]
