"""Baseline: ask the judge directly which of two answers is better, in both orders (LongReward, section 4.4).

In: a prompt and pairs of its answers. Out: calls, and from their replies a vote per pair: 1 for the first answer, 0
for the second, ½ where the two orders disagree or say tie. Judges favour a place, mostly the first; asking both ways
round cancels that and shows it (`inconsistent`, `first_place`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from judge_pipeline.calls.call import Call, FailureReason, Reply, Sampling
from judge_pipeline.common.records import Prompt
from judge_pipeline.documents.words import detect_language
from judge_pipeline.prompts.templates import build_call, load_template
from judge_pipeline.replies.choices import Choice, ChoiceShape
from judge_pipeline.replies.marks import Problem
from judge_pipeline.replies.shape import Shape


def baseline_call(
    name: str, document: str, fields: dict[str, str], shape: Shape[Any], structured: bool
) -> Call:
    """The call of one baseline question over a document, in the document's language."""
    template = load_template(f"baseline.{name}", detect_language(document))
    fields = {"document": document, **fields}
    return build_call(template, fields, shape, Sampling(max_tokens=512), structured=structured)


@dataclass(frozen=True)
class PairVote:
    """What the two orders said of one pair; `vote` is None when either call failed."""

    vote: float | None
    forward: Choice | None = None
    backward: Choice | None = None
    failure: FailureReason | None = None


def pair_calls(prompt: Prompt, first: int, second: int, structured: bool = False) -> tuple[Call, Call]:
    """The question about answers `first` and `second` (positions in the prompt), and the other way round."""
    one, two = prompt.responses[first].text, prompt.responses[second].text

    def call(left: str, right: str) -> Call:
        fields = {"question": prompt.query, "first": left, "second": right}
        return baseline_call("pairwise", prompt.context, fields, ChoiceShape(), structured)

    return call(one, two), call(two, one)


def judge_pair(forward: Reply, backward: Reply) -> PairVote:
    """Join the replies of both orders into one vote for the first answer."""
    one, two = (ChoiceShape().read(reply) for reply in (forward, backward))
    if isinstance(one, Problem):
        return PairVote(None, failure=one.reason)
    if isinstance(two, Problem):
        return PairVote(None, failure=two.reason)
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
