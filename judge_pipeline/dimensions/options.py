"""How the judge is asked and how its replies count: the settings that dimensions read.

In: typed fields (a command's `--judging.*` flags or a YAML file). Everything here determines scores; where a
call is asked, and how many at a time, is settled elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

RULES = {"full": 10.0, "zero": 0.0, "null": None}
"""What a score is where there is nothing to judge: 10, 0, no score (a typed failure); or a number: these points."""


def rule_points(rule: str) -> float | None:
    """The points a rule gives; None for "null"."""
    return RULES[rule] if rule in RULES else float(rule)


def check_rule(value: Any, words: Collection[str]) -> str:
    """A rule as text, from one of `words` or from points 0–10 (YAML gives numbers). Raises ValueError."""
    text = str(value).strip().lower() if not isinstance(value, bool) else ""
    if value is None:
        return "null"  # YAML reads the word as nothing
    if text in words:
        return text
    try:
        points = float(text)
    except ValueError:
        points = -1.0
    if not 0 <= points <= 10:
        raise ValueError(f"is '{value}', neither {', '.join(words)} nor points from 0 to 10")
    return f"{points:g}"


class JudgeOptions(BaseModel):
    """Settings of all dimensions; the defaults are the paper's method (LongReward, section 3.1)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    statements_per_call: int = Field(
        default=1,
        ge=1,
        le=6,
        description="statements verified in one call; 1 is the paper's, up to 6 saves calls",
    )
    joint_ratings: bool = Field(
        default=False, description="ask helpfulness and logicality in one call, each analysed on its own"
    )
    score: Literal["printed", "expected"] = Field(
        default="printed",
        description="the printed rating, or its expected value over the score tokens' probabilities",
    )
    votes: int = Field(default=1, ge=1, le=64, description="samples per rating and per verdict, averaged")
    structured: bool = Field(
        default=False,
        description="ask for JSON held to a schema; needs an engine that can constrain decoding",
    )
    language: Literal["auto", "en", "zh"] = Field(
        default="auto", description="language of the prompts; auto goes by the document's script"
    )
    no_statements: str = Field(
        default="full",
        description="faithfulness of an answer that states no facts: full, zero, null, or points 0-10",
    )
    no_key_points: str = Field(
        default="ask",
        description="completeness when the document holds nothing on the question: ask the judge, full, zero, "
        "null, or points 0-10",
    )
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="of ratings and verdicts; default 0, or 1 with several votes"
    )
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus of ratings and verdicts")
    max_tokens: int = Field(
        default=2048, ge=16, description="longest reply; a reply that reaches it is a failure"
    )
    seed: int | None = Field(default=None, description="sent with every call when set; vote i uses seed + i")
    few_shot: int | None = Field(default=None, ge=0, description="examples per prompt; default all there are")
    analysis_chars: int = Field(
        default=1500, ge=1, description="longest analysis in a structured reply, characters"
    )
    max_statements: int | None = Field(
        default=None,
        ge=1,
        description="judge at most this many statements of an answer (recorded where it bites)",
    )
    max_key_points: int | None = Field(
        default=None,
        ge=1,
        description="keep at most this many key points of a chunk (recorded where it bites)",
    )
    item_chars: int = Field(
        default=600, ge=20, description="longest statement or key point in a structured reply"
    )
    logprobs: int = Field(
        default=20, ge=1, le=20, description="top log-probabilities asked for with expected scores"
    )

    @field_validator("no_statements", mode="before")
    @classmethod
    def _statement_rule(cls, value: Any) -> str:
        return check_rule(value, RULES)

    @field_validator("no_key_points", mode="before")
    @classmethod
    def _key_point_rule(cls, value: Any) -> str:
        return check_rule(value, (*RULES, "ask"))

    @property
    def vote_temperature(self) -> float:
        """Temperature of ratings and verdicts, with the default filled in."""
        if self.temperature is not None:
            return self.temperature
        return 1.0 if self.votes > 1 else 0.0
