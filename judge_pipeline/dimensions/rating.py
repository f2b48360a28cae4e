"""A dimension that is a single rating of the answer: helpfulness, logicality, and any such one you add.

In: question and answer (the document is not shown, as in the paper: these two can be told from the answer itself).
Out: points 0–10 with the judge's analysis. One prompt file `prompts/en/NAME.rate.txt` is all it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from judge_pipeline.calls.call import Reply, Sampling
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.asking import Ask, RateAsk, answered, in_place, prompt_language, rate
from judge_pipeline.dimensions.base import Document, Plan
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.prompts.templates import PROMPTS, build_call, load_template
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
        makers = [self._maker(prompt, index, document) for index in live]
        outcomes = yield from rate(makers, self._options)
        return in_place(prompt, dict(zip(live, outcomes, strict=True)))

    def _maker(self, prompt: Prompt, index: int, document: Document) -> RateAsk:
        options = self._options
        language = prompt_language(options, document.text)
        fields = {"question": prompt.query, "answer": prompt.responses[index].text}
        shape: RatingShape | JointShape
        if self._joint:
            template = load_template(JOINT_TEMPLATE, language, self._prompts)
            shape = JointShape(template.language, options.analysis_chars, options.item_chars, JOINT)
        else:
            template = load_template(f"{self.name}.rate", language, self._prompts)
            shape = RatingShape(template.language, options.analysis_chars, options.item_chars)

        def make(sampling: Sampling) -> Ask[Rating]:
            call = build_call(
                template, fields, shape, sampling, structured=options.structured, few_shot=options.few_shot
            )
            return Ask(
                call, (index,), self._read_joint(shape) if isinstance(shape, JointShape) else shape.read
            )

        return make

    def _read_joint(self, shape: JointShape) -> Callable[[Reply], Rating | Problem]:
        def read(reply: Reply) -> Rating | Problem:
            ratings = shape.read(reply)
            return ratings if isinstance(ratings, Problem) else ratings[self.name]

        return read
