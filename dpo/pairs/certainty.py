"""How sure a reward model's order of two answers is, from where the judge has labelled the same answers.

Within a prompt the judge's rewards are regressed on the model's. What is left over is the error of an answer, and a
difference of two has √2 of it: with slope b and an error s of a difference, the judge orders two answers that are m points
apart as the model does with probability Φ(b·m/s).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import norm

from dpo.judged import as_judged
from dpo.pairs.choice import Rules, reward_of, task_of
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import labels_by_answer, read_prompts
from judge_pipeline.common.records import Prompt
from judge_pipeline.common.run_dir import read_run_yaml

LEAST = 10
"""Answers beyond one a prompt; with fewer, the error is a guess."""


@dataclass(frozen=True)
class Certainty:
    """What `measure` found."""

    slope: float
    """Judge's points for one of the model's."""
    error: float
    """Standard deviation of a difference of two answers' rewards around what the model says of it, in judge's points."""
    prompts: int
    answers: int

    def probability(self, margin: float) -> float:
        """That the judge orders two answers `margin` apart as the model does."""
        return float(norm.cdf(self.slope * margin / self.error))

    def margin(self, probability: float) -> float:
        """The least margin with that probability."""
        return float(norm.ppf(probability)) * self.error / self.slope


def measure(scored: Path, labels: Path, rules: Rules) -> Certainty:
    """The certainty of the rewards that `scored` carries, from a label run over some of the same answers.

    Documents that the reward model was trained on are left out, where the file's run.yaml says which model it was.

    Raises:
        UserError: too few answers have both rewards, or the model's order has nothing to do with the judge's.
    """
    trained = _trained_documents(scored)
    centred: list[np.ndarray] = []
    judged = labels_by_answer(labels)
    for prompt in read_prompts(scored, need_responses=True):
        if trained and not trained.isdisjoint(_digests([prompt])):
            continue
        both = [
            (
                reward_of(item, task_of(prompt), rules),
                reward_of(as_judged(item, label), task_of(prompt), rules),
            )
            for item in prompt.responses
            if (label := judged.get((prompt.id, item.id))) is not None
        ]
        known = np.array([row for row in both if None not in row], dtype=float).reshape(-1, 2)
        if len(known) > 1:
            centred.append(known - known.mean(axis=0))
    free = sum(len(rows) - 1 for rows in centred) - 1
    if free < LEAST:
        raise UserError(
            f"{scored} and {labels} have too few answers with both rewards to tell how sure the model is",
            "label some prompts of this file whose documents the reward model was not trained on, or use --min-margin",
        )
    model, judge = np.concatenate(centred).T
    slope = float(model @ judge / (model @ model)) if model.any() else 0.0
    if slope <= 0:
        raise UserError(
            f"the order that {scored} gives has nothing to do with that of {labels}: no margin is enough"
        )
    left = judge - slope * model
    error = math.sqrt(2 * float(left @ left) / free)
    return Certainty(slope, max(error, 1e-9), len(centred), len(model))


def _trained_documents(scored: Path) -> set[str]:
    run_file = Path(f"{scored}.run.yaml")
    run = read_run_yaml(run_file) if run_file.is_file() else {}
    if run.get("command") != "reward-model score":
        return set()
    from reward_model.fidelity.inputs import trained_documents  # loads torch

    return trained_documents(Path(run["config"]["model"])) or set()


def _digests(prompts: Iterable[Prompt]) -> list[str]:
    from reward_model.data.splits import document_digests

    return document_digests(prompts)
