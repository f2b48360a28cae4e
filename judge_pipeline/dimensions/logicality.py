"""Logicality: do the answer's parts agree, do its conclusions follow? (LongReward, section 3.1)

The prompt has the judge look for errors first and rate only then, as the paper does.
"""

from __future__ import annotations

from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.rating import RatingDimension


class Logicality(RatingDimension):
    """One rating an answer, from question and answer; asked together with helpfulness when `joint`."""

    def __init__(self, options: JudgeOptions, *, joint: bool = False) -> None:
        super().__init__("logicality", options, joint=joint)
