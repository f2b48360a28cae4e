"""Replies that end in a choice between two answers: A, B, or a tie."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from judge_pipeline.calls.call import Reply
from judge_pipeline.calls.thinking import after_thinking
from judge_pipeline.replies.marks import (
    Problem,
    choose,
    find_marks,
    fold,
    label_pattern,
)
from judge_pipeline.replies.shape import Fields, Shape, no_result, wrong_schema

Choice = Literal["A", "B", "tie"]


@dataclass(frozen=True)
class ChoiceShape(Shape[Choice]):
    """Analysis, then the better answer; no answer's text, which may hold marks of its own, decides."""

    analysis_chars: int = 600

    def schema(self) -> dict[str, Any]:
        """Analysis and choice."""
        return self.analysed(choice={"type": "string", "enum": ["A", "B", "tie"]})

    def write(self, fields: Fields, *, structured: bool) -> str:
        """From the example's `analysis` and `choice`."""
        if structured:
            return json.dumps({name: fields[name] for name in ("analysis", "choice")}, ensure_ascii=False)
        return f"{fields['analysis']}\n[[{fields['choice']}]]"

    def from_text(self, text: str, reply: Reply) -> Choice | Problem:
        """The mark that counts by the rules of `marks`."""
        words = fold(after_thinking(text)[0])
        chosen: tuple[Choice, Any] | Problem | None
        chosen = choose(find_marks(words, _LABEL), lambda mark: choice_of(mark.inner))
        if chosen is None:
            return no_result(words, "no choice [[A]], [[B]] or [[tie]]")
        return chosen if isinstance(chosen, Problem) else chosen[0]

    def from_json(self, data: dict[str, Any], reply: Reply) -> Choice | Problem:
        """The choice as the text protocol would write it."""
        return choice_of(str(data.get("choice"))) or wrong_schema(data, "choice")


def choice_of(raw: str) -> Choice | None:
    """What a word names: A, B, a tie (C); None for anything else."""
    return _CHOICES.get(raw.strip().lower())


_CHOICES: dict[str, Choice] = {"a": "A", "b": "B", "c": "tie", "tie": "tie"}
_LABEL = label_pattern(
    r"choice|verdict|winner|conclusion|preference|(?:better|best|final)(?: (?:answer|one|choice))?|结论|选择|判断|更好的?(?:回答|答案)?"
)
