"""Baseline: one question, one number. The judge rates a whole answer 0–10 with the document before it.

In: a prompt. Out: a call an answer, and from each reply points 0–10 or the reason why there are none. It sees what
the four dimensions see, in one call, without statements, retrieval or key points: what those add is the difference.
"""

from __future__ import annotations

import json
import re
from typing import Any

from judge_pipeline.calls.call import Call, FailureReason, Reply
from judge_pipeline.common.records import SCORE_RANGE, Prompt
from judge_pipeline.prompts.baseline_prompts import baseline_call

_MARK = re.compile(r"\[\[\s*(-?\d+(?:\.\d+)?)\s*(?:/\s*10\s*)?\]\]")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "analysis": {"type": "string", "maxLength": 600},
        "rating": {"type": "integer", "minimum": 0, "maximum": 10},
    },
    "required": ["analysis", "rating"],
    "additionalProperties": False,
}


def holistic_call(prompt: Prompt, position: int, structured: bool = False) -> Call:
    """The question about the answer at `position`."""
    values = {"question": prompt.query, "answer": prompt.responses[position].text}
    return baseline_call("holistic", prompt.context, values, SCHEMA if structured else None)


def parse_rating(reply: Reply) -> tuple[float | None, FailureReason | None]:
    """(points, None) or (None, why not). A reply with two different ratings on its last rated line has none."""
    if reply.failure is not None:
        return None, reply.failure
    if reply.structured:
        try:
            values = {float(json.loads(reply.text)["rating"])}
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            return None, "unparsable"
    else:
        lines = [line for line in reply.text.splitlines() if _MARK.search(line)]
        values = {float(found) for found in _MARK.findall(lines[-1])} if lines else set()
    if len(values) != 1:
        return None, "unparsable"
    value = values.pop()
    return (value, None) if SCORE_RANGE[0] <= value <= SCORE_RANGE[1] else (None, "out_of_range")
