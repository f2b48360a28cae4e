"""The optional set `trajectory`: two dimensions for what an agent reports after a long run. Off by default.

The trajectory (thoughts, tool calls, results) is the document, the task is the question, the agent's report or
plan is the answer.

- `plan_completeness`: does the answer account for every step the task needed and the trajectory shows? The steps
  are extracted chunk by chunk and the answer is held against all of them, as in completeness.
- `execution_faithfulness`: did what the answer says was done happen, with that result? Each claim about an action
  is verified against the closest segments of the trajectory, as in faithfulness.

Not in the paper; made of its two document-grounded dimensions with prompts of their own.
"""

from __future__ import annotations

from judge_pipeline.dimensions.completeness import Completeness
from judge_pipeline.dimensions.faithfulness import Faithfulness
from judge_pipeline.dimensions.options import JudgeOptions


class PlanCompleteness(Completeness):
    """Coverage of the steps that a trajectory shows the task to need."""

    def __init__(self, options: JudgeOptions) -> None:
        super().__init__(options, "plan_completeness")


class ExecutionFaithfulness(Faithfulness):
    """Share of an answer's claims about actions and results that the trajectory supports."""

    def __init__(self, options: JudgeOptions) -> None:
        super().__init__(options, "execution_faithfulness")
