"""The `dpo` command: sample, pairs, train, evaluate, score-short."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dpo import pairs, sample
from judge_pipeline.config import Command
from judge_pipeline.config import main as run_main

COMMANDS = (
    Command(
        "sample",
        "Draw several answers to every prompt from the model that will be trained.",
        sample.SampleConfig,
        sample.run,
        "dpo sample prompts.jsonl --model smollm2 --output answered.jsonl --n 10",
    ),
    Command(
        "pairs",
        "Turn scored answers into preference pairs, best against worst.",
        pairs.PairsConfig,
        pairs.run,
        "dpo pairs scored.jsonl --output pairs.jsonl --min-margin 0.5",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the installed command."""
    return run_main("dpo", COMMANDS, argv, "Sample answers, make preference pairs, train with DPO, evaluate.")


if __name__ == "__main__":
    sys.exit(main())
