"""A dimension that is a single rating of the answer: helpfulness, logicality (LongReward, section 3.1), any you add.

In: question and answer (the document is not shown, as in the paper: these two can be told from the answer itself).
Out: points 0–10 with the judge's analysis. One prompt file `prompts/en/NAME.rate.txt` is all it takes.
"""

from __future__ import annotations

from pathlib import Path

from judge_pipeline.calls.call import Reply, Sampling
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.base import Document, Needs, ParsedRequest, Plan
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.steps import answered, in_place, prompt_language, ratings, request
from judge_pipeline.prompts.templates import PROMPTS, load_template
from judge_pipeline.replies.marks import Problem
from judge_pipeline.replies.ratings import JointShape, Rating, RatingShape

JOINT = ("helpfulness", "logicality")


class RatingDimension:
    """Rates each answer by itself with the template `NAME.rate`; those of `JOINT` in one call when `joint`."""

    needs: Needs = "text"

    def __init__(
        self, name: str, options: JudgeOptions, *, joint: bool = False, prompts: Path = PROMPTS
    ) -> None:
        self.name = name
        self._options, self._joint, self._prompts = options, joint, prompts

    def plan(self, prompt: Prompt, document: Document) -> Plan:
        """One call an answer and vote."""
        options = self._options
        name = "joint.rate" if self._joint else f"{self.name}.rate"
        template = load_template(name, prompt_language(options, document.text), self._prompts)
        bounds = template.language, *options.bounds

        def ask(index: int, sampling: Sampling) -> ParsedRequest[Rating]:
            fields = {"question": prompt.question, "answer": prompt.responses[index].text}
            if not self._joint:
                return request(template, fields, RatingShape(*bounds), sampling, (index,), options)
            joint = request(template, fields, JointShape(*bounds, JOINT), sampling, (index,), options)

            def own(reply: Reply) -> Rating | Problem:
                """This dimension's rating of a reply that rates several."""
                found = joint.read(reply)
                return found if isinstance(found, Problem) else found[self.name]

            return ParsedRequest(joint.call, joint.answers, own)

        return in_place(prompt, (yield from ratings(answered(prompt), ask, options)))
