"""How the judge is asked and how its replies count: the settings that dimensions read, all of which determine scores."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from judge_pipeline.common.config import free, setting

RULES = {"full": 10.0, "zero": 0.0, "null": None}
"""What a score is where there is nothing to judge: 10, 0, no score (a typed failure); or a number: these points."""


class JudgeOptions(BaseModel):
    """Settings of all dimensions; the defaults are the paper's method (LongReward, section 3.1)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    statements_per_call: int = setting(
        1, "statements verified in one call; 1 is the paper's, up to 6 saves calls", ge=1, le=6
    )
    joint_ratings: bool = setting(
        False, "ask helpfulness and logicality in one call, each analysed on its own"
    )
    score: Literal["printed", "expected"] = setting(
        "printed", "printed ratings and verdicts, or their expected values over the tokens' probabilities"
    )
    votes: int = setting(1, "samples per rating and per verdict, averaged", ge=1, le=64)
    structured: bool = setting(
        False, "ask for JSON held to a schema; needs an engine that can constrain decoding"
    )
    language: Literal["auto", "en", "zh"] = setting(
        "auto", "language of the prompts; auto goes by the document's script"
    )
    no_statements: str = setting(
        "null",
        "faithfulness of an answer that states no facts, e.g. declines: null (no score), full, zero, or points 0-10",
    )
    no_key_points: str = setting(
        "ask",
        "completeness when the document holds nothing on the question: ask the judge, full, zero, null, or points 0-10",
    )
    tolerate_failed: float = setting(
        0.0,
        "share of a document's chunks, or of an answer's statements, that may fail without costing the score "
        "(recorded where it happens)",
        ge=0,
        le=0.2,
    )
    temperature: float | None = setting(
        None, "of ratings and verdicts; default 0, or 1 with several votes", ge=0, le=2
    )
    top_p: float = setting(1.0, "nucleus of ratings and verdicts", gt=0, le=1)
    max_tokens: int = free(2048, "room for a reply; one that reaches it is asked for again with more", ge=16)
    seed: int | None = setting(None, "sent with every call when set; vote i uses seed + i")
    few_shot: int | None = setting(None, "examples per prompt; default all there are", ge=0)
    analysis_chars: int = setting(1500, "longest analysis in a structured reply, characters", ge=1)
    max_statements: int | None = setting(
        None, "judge at most this many statements of an answer (recorded where it bites)", ge=1
    )
    max_key_points: int | None = setting(
        None, "keep at most this many key points of a chunk (recorded where it bites)", ge=1
    )
    key_points_per_call: int = setting(
        100,
        "key points an answer is held against in one call; more are covered in groups, each rated by itself "
        "(40 tell answers better apart and take more calls)",
        ge=1,
    )
    item_chars: int = setting(600, "longest statement or key point in a structured reply", ge=20)
    logprobs: int = setting(20, "top log-probabilities asked for with expected scores", ge=1, le=20)

    @field_validator("no_statements", "no_key_points", mode="before")
    @classmethod
    def _rule(cls, value: Any, info: ValidationInfo) -> str:
        """One of the words, or points 0–10 as text (YAML gives numbers, and reads "null" as nothing)."""
        words = (*RULES, "ask") if info.field_name == "no_key_points" else tuple(RULES)
        text = "null" if value is None else str(value).strip().lower()
        if text in words:
            return text
        try:
            points = float(text)
        except ValueError:
            points = -1.0
        if not 0 <= points <= 10:
            raise ValueError(f"is '{value}', neither {', '.join(words)} nor points from 0 to 10")
        return f"{points:g}"

    @property
    def bounds(self) -> tuple[int, int]:
        """Characters of the longest analysis and of the longest item, for the shape of a reply."""
        return self.analysis_chars, self.item_chars

    @property
    def vote_temperature(self) -> float:
        """Temperature of ratings and verdicts, with the default filled in."""
        if self.temperature is not None:
            return self.temperature
        return 1.0 if self.votes > 1 else 0.0
