"""Helpfulness: is the answer relevant, informative and on the question's point? (LongReward, section 3.1)"""

from __future__ import annotations

from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.rating import RatingDimension


class Helpfulness(RatingDimension):
    """One rating an answer, from question and answer; asked together with logicality when `joint`."""

    def __init__(self, options: JudgeOptions, *, joint: bool = False) -> None:
        super().__init__("helpfulness", options, joint=joint)
