"""Preference pairs on disk: TRL's conversational preference format, with what we know about each pair beside it.

In and out: JSONL or Parquet rows that `datasets.load_dataset` reads and stock TRL trains on. `read_pairs` checks
what would otherwise surface in the middle of a training run, and names the line.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from judge_pipeline.common.record_files import read_records


class Turn(BaseModel):
    """One chat message."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class Pair(BaseModel):
    """A prompt with a better and a worse answer. Plain strings are read as a user's and an assistant's turn."""

    model_config = ConfigDict(extra="allow")

    prompt: list[Turn] = Field(min_length=1)
    chosen: list[Turn] = Field(min_length=1)
    rejected: list[Turn] = Field(min_length=1)
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    margin: float | None = None
    """chosen_reward - rejected_reward, in points 0–10."""
    prompt_id: str | None = None
    document_id: str | None = None
    chosen_id: str | None = None
    rejected_id: str | None = None
    chosen_scores: dict[str, float | None] | None = None
    rejected_scores: dict[str, float | None] | None = None
    task: str | None = None
    template: str | None = None
    """Fingerprint of the chat template the answers were sampled with (see `dpo.chat.template_id`)."""
    arm: str | None = None
    rewards_of: str | None = None
    """Whose rewards were compared: `labels` (a label run's) or `file` (those of the scored file)."""

    @field_validator("prompt", "chosen", "rejected", mode="before")
    @classmethod
    def _text_is_a_turn(cls, value: object, info: Any) -> object:
        if isinstance(value, str):
            return [{"role": "user" if info.field_name == "prompt" else "assistant", "content": value}]
        return value

    @model_validator(mode="after")
    def _comparable(self) -> Pair:
        for side in ("chosen", "rejected"):
            turns: list[Turn] = getattr(self, side)
            if turns[-1].role != "assistant":
                raise ValueError(f"{side}: the last turn is the {turns[-1].role}'s, not the assistant's")
            if not "".join(turn.content for turn in turns).strip():
                raise ValueError(
                    f"{side}: the answer is empty: nothing but the end token would be trained on"
                )
        if self.chosen == self.rejected:
            raise ValueError("chosen equals rejected: the pair has no preference")
        return self


def read_pairs(path: Path | str) -> Iterator[Pair]:
    """Yield the pairs of a file.

    Raises:
        DataError: a missing column, chosen equal to rejected, an empty answer, …: with line and field.
    """
    numbers = itertools.count()
    return read_records(path, Pair, lambda _: next(numbers))  # pairs have no id of their own
