"""A dimension that is a single rating of the answer: helpfulness, logicality, and any such one you add.

In: question and answer (the document is not shown, as in the paper: these two can be told from the answer itself).
Out: points 0–10 with the judge's analysis. One prompt file `prompts/en/NAME.rate.txt` is all it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from judge_pipeline.calls.call import Reply, Sampling
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.base import Document, ParsedRequest, Plan
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.steps import (
    RatingRequest,
    answered,
    in_place,
    prompt_language,
    ratings,
    request,
)
from judge_pipeline.prompts.templates import PROMPTS, load_template
from judge_pipeline.replies.marks import Problem
from judge_pipeline.replies.ratings import JointShape, Rating, RatingShape

JOINT = ("helpfulness", "logicality")
JOINT_TEMPLATE = "joint.rate"


class RatingDimension:
    """Rates each answer by itself with the template `NAME.rate`."""

    def __init__(
        self, name: str, options: JudgeOptions, *, joint: bool = False, prompts: Path = PROMPTS
    ) -> None:
        self.name = name
        self._options = options
        self._joint = joint
        self._prompts = prompts

    def plan(self, prompt: Prompt, document: Document) -> Plan:
        """One call an answer and vote."""
        live = answered(prompt)
        outcomes = yield from ratings(
            [self._request(prompt, index, document) for index in live], self._options
        )
        return in_place(prompt, dict(zip(live, outcomes, strict=True)))

    def _request(self, prompt: Prompt, index: int, document: Document) -> RatingRequest:
        options = self._options
        name = JOINT_TEMPLATE if self._joint else f"{self.name}.rate"
        template = load_template(name, prompt_language(options, document.text), self._prompts)
        fields = {"question": prompt.query, "answer": prompt.responses[index].text}
        bounds = template.language, options.analysis_chars, options.item_chars

        def one_vote(sampling: Sampling) -> ParsedRequest[Rating]:
            if not self._joint:
                return request(template, fields, RatingShape(*bounds), sampling, (index,), options)
            joint = request(template, fields, JointShape(*bounds, JOINT), sampling, (index,), options)
            return ParsedRequest(joint.call, joint.answers, self._own(joint.read))

        return one_vote

    def _own(
        self, read_all: Callable[[Reply], dict[str, Rating | Problem] | Problem]
    ) -> Callable[[Reply], Rating | Problem]:
        """This dimension's rating of a reply that rates several."""

        def read(reply: Reply) -> Rating | Problem:
            found = read_all(reply)
            return found if isinstance(found, Problem) else found[self.name]

        return read
