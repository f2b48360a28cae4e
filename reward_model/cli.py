"""The `reward-model` command: train, score, evaluate, learning-curve, propose, augment, doctor."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from judge_pipeline.common.config import Command
from judge_pipeline.common.config import main as run_main
from reward_model.doctor import DoctorConfig, run_doctor

DESCRIPTION = "Train and use a long-context reward model distilled from an LLM judge."

DOCTOR = Command(
    "doctor",
    "Versions, devices, attention back ends and models; what is missing and the line that installs it.",
    DoctorConfig,
    run_doctor,
    "reward-model doctor",
)


def commands() -> tuple[Command, ...]:
    """All subcommands. They are imported here, so that `doctor` runs where their packages are missing."""
    from reward_model.augment.command import AUGMENT
    from reward_model.fidelity.evaluate import COMMANDS as FIDELITY_COMMANDS
    from reward_model.scoring.score import ScoreConfig
    from reward_model.scoring.score import run as run_score
    from reward_model.training.train_config import TrainConfig

    return (
        Command(
            "train",
            "Train a long-context reward model from the judge's labels, or from human scores or preferences.",
            TrainConfig,
            _train,
            "reward-model train runs/labels --base-model smollm2 --output runs/rm",
        ),
        Command(
            "score",
            "Give every answer of a prompts file its scores and reward, reading each document once.",
            ScoreConfig,
            run_score,
            "reward-model score runs/rm prompts.jsonl --output scored.jsonl",
        ),
        *FIDELITY_COMMANDS,
        AUGMENT,
        DOCTOR,
    )


def _train(config: object) -> int:
    from reward_model.training.processes import leave_together
    from reward_model.training.train import (
        train,  # the Trainer takes seconds to import, which `--help` should not
    )
    from reward_model.training.train_config import TrainConfig

    assert isinstance(config, TrainConfig)
    train(config)
    leave_together()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `reward-model`; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    available = (DOCTOR,) if words[:1] == ["doctor"] else commands()
    if available != (DOCTOR,):
        from reward_model.training.guards import show_log

        show_log()
    return run_main("reward-model", available, words, DESCRIPTION)


if __name__ == "__main__":
    sys.exit(main())
