"""Baseline: ask the judge directly which of two answers is better, in both orders (LongReward, section 4.4).

In: a prompt and pairs of its answers. Out: calls, and from their replies a vote per pair: 1 for the first answer, 0
for the second, ½ where the two orders disagree or say tie. Judges favour a place, mostly the first; asking both ways
round cancels that and shows it (`inconsistent`, `first_place`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from judge_pipeline.calls.call import Call, FailureReason, Reply
from judge_pipeline.common.records import Prompt
from judge_pipeline.prompts.baseline_prompts import baseline_call

Choice = Literal["A", "B", "tie"]
_MARK = re.compile(r"\[\[\s*(A|B|C|tie)\s*\]\]", re.IGNORECASE)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "analysis": {"type": "string", "maxLength": 600},
        "choice": {"type": "string", "enum": ["A", "B", "tie"]},
    },
    "required": ["analysis", "choice"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class PairVote:
    """What the two orders said of one pair; `vote` is None when either call failed."""

    vote: float | None
    forward: Choice | None = None
    backward: Choice | None = None
    failure: FailureReason | None = None


def pair_calls(prompt: Prompt, first: int, second: int, structured: bool = False) -> tuple[Call, Call]:
    """The question about answers `first` and `second` (positions in the prompt), and the other way round."""
    texts = prompt.responses[first].text, prompt.responses[second].text
    forward, backward = (
        baseline_call(
            "pairwise",
            prompt.context,
            {"question": prompt.query, "first": one, "second": two},
            SCHEMA if structured else None,
        )
        for one, two in (texts, texts[::-1])
    )
    return forward, backward


def parse_choice(reply: Reply) -> Choice | None:
    """The choice of a reply; None where it states none, or several that differ."""
    if reply.structured:
        try:
            found = [str(json.loads(reply.text)["choice"])]
        except (json.JSONDecodeError, KeyError, TypeError):
            return None
    else:
        # Only the last line counts: what stands before may quote an answer that itself holds a mark.
        lines = [line for line in reply.text.splitlines() if _MARK.search(line)]
        found = _MARK.findall(lines[-1]) if lines else []
    choices = {"tie" if mark.lower() in ("c", "tie") else mark.upper() for mark in found}
    choice = choices.pop() if len(choices) == 1 else None
    return choice if choice in ("A", "B", "tie") else None  # type: ignore[return-value]


def judge_pair(forward: Reply, backward: Reply) -> PairVote:
    """Join the replies of both orders into one vote for the first answer."""
    for reply in (forward, backward):
        if reply.failure is not None:
            return PairVote(None, failure=reply.failure)
    one, two = parse_choice(forward), parse_choice(backward)
    if one is None or two is None:
        return PairVote(None, one, two, "unparsable")
    points = {"A": 1.0, "B": 0.0, "tie": 0.5}
    vote = (points[one] + 1.0 - points[two]) / 2
    # A win in one order and a tie in the other is a lean, not a win: only agreement decides.
    return PairVote(vote if vote in (0.0, 1.0) else 0.5, one, two)


def vote_summary(votes: Sequence[PairVote]) -> dict[str, Any]:
    """How the votes came about: failures, order effects, undecided pairs."""
    judged = [vote for vote in votes if vote.vote is not None]
    swapped = [vote for vote in judged if (vote.forward, vote.backward) in (("A", "A"), ("B", "B"))]
    first = sum((vote.forward == "A") + (vote.backward == "A") for vote in judged)
    decided = sum((vote.forward != "tie") + (vote.backward != "tie") for vote in judged)
    return {
        "pairs": len(votes),
        "judged": len(judged),
        "failed": len(votes) - len(judged),
        "undecided": sum(vote.vote == 0.5 for vote in judged),
        "inconsistent": len(swapped),
        "first_place": first / decided if decided else None,
    }
