"""Preference pairs on disk: TRL's preference formats, with what we know about each pair beside it.

In and out: JSONL or Parquet rows that `datasets.load_dataset` reads and stock TRL trains on. In are all of TRL's text
formats: turns or plain text, with the prompt named or implied by what `chosen` and `rejected` begin with alike, with
tools and arguments of the chat template. `read_pairs` checks what would otherwise surface in the middle of a training
run, and names the line.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from judge_pipeline.common.record_files import read_records
from judge_pipeline.common.records import ChatTurn, FieldError

UNSUPPORTED = {
    "images": "pictures are not trained on",
    "image": "pictures are not trained on",
    "ref_chosen_logps": "the reference is computed here: take the column out",
    "ref_rejected_logps": "the reference is computed here: take the column out",
}
"""Columns that TRL takes and `dpo train` does not."""
SIDES = ("chosen", "rejected")


class Turn(ChatTurn):
    """One turn of a preference, whose text may come in parts."""

    content: str | list[dict[str, Any]] | None = None

    @field_validator("content")
    @classmethod
    def _text_only(cls, value: Any) -> Any:
        for part in value if isinstance(value, list) else ():
            if part.get("type") != "text":
                raise ValueError(f"holds a part of type '{part.get('type')}'; only text is trained on")
        return value

    @property
    def says(self) -> bool:
        """Whether there is anything in it."""
        text = self.content
        if isinstance(text, list):
            text = "".join(str(part.get("text", "")) for part in text)
        return bool((text or "").strip() or (self.model_extra or {}).get("tool_calls"))


Side = list[Turn] | str


class Pair(BaseModel):
    """A prompt with a better and a worse answer: all turns, or all plain text, which no template is put around."""

    model_config = ConfigDict(extra="allow")

    prompt: Side = Field(min_length=1)
    chosen: Side = Field(min_length=1)
    rejected: Side = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More arguments of the chat template, e.g. `enable_thinking`."""
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
    chosen_generated: str | None = None
    rejected_generated: str | None = None
    """An answer as the model wrote it, where that is not its `content`: with the reasoning before it."""
    chosen_truncated: bool | None = None
    rejected_truncated: bool | None = None
    """Whether an answer was cut off at the most tokens it might have: no end token stands behind it."""
    arm: str | None = None
    rewards_of: str | None = None
    """Whose rewards were compared: `labels` (a label run's) or `file` (those of the scored file)."""

    @model_validator(mode="before")
    @classmethod
    def _as_trl_reads_it(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for name, why in UNSUPPORTED.items():
            if value.get(name) is not None:
                raise FieldError(name, why)
        if value.get("prompt") is None and all(value.get(side) for side in SIDES):
            value = {**value, **_with_prompt(value)}
        kinds = {name: isinstance(value[name], str) for name in ("prompt", *SIDES) if value.get(name)}
        if len(set(kinds.values())) > 1:
            words = ", ".join(f"{name} is {'text' if text else 'turns'}" for name, text in kinds.items())
            raise ValueError(f"{words}: a pair is all text or all turns")
        return value

    @field_validator("tools", mode="before")
    @classmethod
    def _tools_from_json(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("chat_template_kwargs", mode="before")
    @classmethod
    def _no_arguments(cls, value: Any) -> Any:
        return value or {}

    @model_validator(mode="after")
    def _comparable(self) -> Pair:
        if not isinstance(self.prompt, str) and not any(turn.says for turn in self.prompt):
            raise ValueError("prompt: nothing is asked")
        for side in SIDES:
            answer: Side = getattr(self, side)
            if isinstance(answer, list) and answer[-1].role != "assistant":
                raise ValueError(f"{side}: the last turn is the {answer[-1].role}'s, not the assistant's")
            if not (answer.strip() if isinstance(answer, str) else any(turn.says for turn in answer)):
                raise ValueError(
                    f"{side}: the answer is empty: nothing but the end token would be trained on"
                )
        if self.chosen == self.rejected:
            raise ValueError("chosen equals rejected: the pair has no preference")
        return self

    def turns(self, name: str) -> list[dict[str, Any]]:
        """`prompt`, `chosen` or `rejected` as messages; plain text is a user's or an assistant's."""
        side: Side = getattr(self, name)
        if isinstance(side, str):
            return [{"role": "user" if name == "prompt" else "assistant", "content": side}]
        return [turn.model_dump(exclude_unset=True) for turn in side]

    @property
    def prompt_text(self) -> str:
        """What tells prompts apart that have no ids."""
        return json.dumps(self.turns("prompt"), ensure_ascii=False, sort_keys=True)


def _with_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose prompt is what `chosen` and `rejected` begin with alike, taken out as TRL does it."""
    from trl.data_utils import extract_prompt  # slow to import

    if row["chosen"] == row["rejected"]:
        raise ValueError("chosen equals rejected: the pair has no preference")
    found = extract_prompt({side: row[side] for side in SIDES})
    if not found["prompt"]:
        raise FieldError("prompt", "is missing, and chosen and rejected do not begin alike")
    return dict(found)


def read_pairs(path: Path | str) -> Iterator[Pair]:
    """Yield the pairs of a file.

    Raises:
        DataError: a missing column, chosen equal to rejected, an empty answer, …: with line and field.
    """
    numbers = itertools.count()
    return read_records(path, Pair, lambda _: next(numbers))  # pairs have no id of their own
