"""The `reward-model` command: train, score, evaluate, learning-curve, propose, augment, doctor."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from judge_pipeline.common.config import Command
from judge_pipeline.common.config import main as run_main
from reward_model.active.propose_config import ProposeConfig
from reward_model.augment.augment_config import AugmentConfig
from reward_model.doctor import DoctorConfig
from reward_model.fidelity.evaluate_config import EvaluateConfig
from reward_model.fidelity.learning_curve_config import LearningCurveConfig
from reward_model.scoring.score_config import ScoreConfig
from reward_model.training.guards import show_log
from reward_model.training.train_config import TrainConfig

COMMANDS = (
    Command(
        "train",
        "Train a long-context reward model from the judge's labels, or from human scores or preferences.",
        TrainConfig,
        "reward_model.training.train:run",
        "reward-model train runs/labels --base-model smollm2 --output runs/rm",
    ),
    Command(
        "score",
        "Give every answer of a prompts file its scores and reward, reading each document once.",
        ScoreConfig,
        "reward_model.scoring.score:run",
        "reward-model score runs/rm prompts.jsonl --output scored.jsonl",
    ),
    Command(
        "evaluate",
        "compare a reward model's scores with the judge's or with people's, beside baselines",
        EvaluateConfig,
        "reward_model.fidelity.evaluate:run",
        "reward-model evaluate runs/rm runs/labels --output runs/fidelity",
    ),
    Command(
        "learning-curve",
        "train on growing sets of labels and show what more labels bring",
        LearningCurveConfig,
        "reward_model.fidelity.learning_curve:run",
        "reward-model learning-curve runs/labels --base-model smollm2 --output runs/curve --sizes 50 100 200",
    ),
    Command(
        "propose",
        "choose the unlabelled prompts from which the model would learn most",
        ProposeConfig,
        "reward_model.active.propose:run",
        "reward-model propose runs/rm runs/labels unlabelled.jsonl --output next.jsonl --count 100",
    ),
    Command(
        "augment",
        "Make answers worse on purpose, one dimension at a time: labels that cost nothing.",
        AugmentConfig,
        "reward_model.augment.command:run",
        "reward-model augment prompts.jsonl --output augmented.jsonl --document-contrast",
    ),
    Command(
        "doctor",
        "Versions, devices, attention back ends and models; what is missing and the line that installs it.",
        DoctorConfig,
        "reward_model.doctor:run_doctor",
        "reward-model doctor",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `reward-model`; returns the exit code."""
    show_log()
    description = "Train and use a long-context reward model distilled from an LLM judge."
    return run_main("reward-model", COMMANDS, argv, description)


if __name__ == "__main__":
    sys.exit(main())
