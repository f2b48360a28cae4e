"""Baseline: one question, one number. The judge rates a whole answer 0–10 with the document before it.

In: a prompt. Out: a call an answer, and from each reply a rating or the reason why there is none. It sees what
the four dimensions see, in one call, without statements, retrieval or key points: what those add is the difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from judge_pipeline.calls.call import Call, Reply
from judge_pipeline.common.records import Prompt
from judge_pipeline.evaluation.pairwise import baseline_call
from judge_pipeline.replies.marks import Problem
from judge_pipeline.replies.ratings import Rating, RatingShape


@dataclass(frozen=True)
class HolisticShape(RatingShape):
    """An analysis and a rating, with the schema that stored calls were asked with."""

    analysis_chars: int = 600

    def schema(self) -> dict[str, Any]:
        """Analysis and rating."""
        return self.analysed(rating={"type": "integer", "minimum": 0, "maximum": 10})


def holistic_call(prompt: Prompt, position: int, structured: bool = False) -> Call:
    """The question about the answer at `position`."""
    fields = {"question": prompt.query, "answer": prompt.responses[position].text}
    return baseline_call("holistic", prompt.context, fields, HolisticShape(), structured)


def read_holistic(reply: Reply) -> Rating | Problem:
    """The rating a reply states."""
    return HolisticShape().read(reply)
