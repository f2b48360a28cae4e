"""The `dpo` command: sample, pairs, train, merge, evaluate, round, score-short."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dpo.evaluate.evaluate_config import EvaluateConfig
from dpo.pairs.pairs_config import PairsConfig
from dpo.pairs.score_short import ScoreShortConfig
from dpo.rounds.round_config import RoundConfig
from dpo.sample.sample_config import SampleConfig
from dpo.train.merge import MergeConfig
from dpo.train.train_config import TrainConfig
from judge_pipeline.common.config import Command
from judge_pipeline.common.config import main as run_main

COMMANDS = (
    Command(
        "sample",
        "Draw several answers to every prompt from the model that will be trained.",
        SampleConfig,
        "dpo.sample.sample:run",
        "dpo sample prompts.jsonl --model smollm2 --output answered.jsonl --n 10",
    ),
    Command(
        "pairs",
        "Turn scored answers into preference pairs, best against worst.",
        PairsConfig,
        "dpo.pairs.pairs:run",
        "dpo pairs scored.jsonl --output pairs.jsonl --min-margin 0.5",
    ),
    Command(
        "train",
        "DPO with cross-entropy on the pairs, the prompt of each pair encoded once.",
        TrainConfig,
        "dpo.train.train:run",
        "dpo train pairs.jsonl --model smollm2 --output runs/dpo --method lora",
    ),
    Command(
        "merge",
        "Make one plain model of an adapter and its base.",
        MergeConfig,
        "dpo.train.merge:run",
        "dpo merge runs/dpo --output runs/policy",
    ),
    Command(
        "evaluate",
        "Compare two models' answers to the same prompts: win, tie, loss, rewards, lengths, supported facts.",
        EvaluateConfig,
        "dpo.evaluate.evaluate:run",
        "dpo evaluate after.jsonl before.jsonl --reward-model runs/rm --output runs/compare",
    ),
    Command(
        "round",
        "Several rounds of sample, score, pair and train under one configuration, with a table of what became of them.",
        RoundConfig,
        "dpo.rounds.rounds:run",
        "dpo round prompts.jsonl --model smollm2 --reward-model runs/rm --output runs/rounds --rounds 3",
    ),
    Command(
        "score-short",
        "Score answers with a reward model that never sees the document (the paper's short-context arm).",
        ScoreShortConfig,
        "dpo.pairs.score_short:run",
        "dpo score-short answered.jsonl --reward-model short-rm --output scored-short.jsonl",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the installed command."""
    return run_main("dpo", COMMANDS, argv, "Sample answers, make preference pairs, train with DPO, evaluate.")


if __name__ == "__main__":
    sys.exit(main())
