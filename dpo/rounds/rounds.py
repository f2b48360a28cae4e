"""`dpo round`: several rounds of sample → score → pair → train under one configuration, each model sampled again.

In: prompts, a model or adapter, a reward model. Out: `OUTPUT/round-K/` for every model, from the first (0) to the last,
with what each command writes, and `rounds.json`: reward, length and the judge's spot check of every model in one table.
Every step is a command that goes on where it stopped, and so does the whole: give the same command again.
"""

from __future__ import annotations

import gc
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from dpo.rounds.round_config import RoundConfig
from dpo.rounds.start import plain_model
from dpo.rounds.table import RoundFigures, print_table
from judge_pipeline.common.config import Config, settings_from
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_prompts, write_json, write_records, write_text
from judge_pipeline.common.run_dir import prepare_run


@dataclass(frozen=True)
class Step:
    """One command of a round."""

    command: str
    config: Config
    run: Callable[[Any], int | None]

    def do(self) -> None:
        """Run it in this process. Raises UserError when it did not end well."""
        print(f"\n{self.command}", flush=True)
        if code := self.run(self.config):
            raise UserError(f"{self.command} ended with {code}", "see above; the same command goes on here")
        _free_memory()


def _free_memory() -> None:
    """A step's model makes room for the next one's."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Rounds:
    """The steps of all rounds; imports are late because each is heavy."""

    def __init__(self, config: RoundConfig) -> None:
        self.config = config
        self.start = config.model
        self.folders = [config.output / f"round-{number}" for number in range(config.rounds + 1)]

    def model(self, number: int) -> str:
        """The model that round `number` samples."""
        return self.start if number == 0 else str(self.folders[number - 1] / "model")

    def sample(self, number: int, prompts: Path, output: Path) -> Step:
        """Answers of a round's model."""
        from dpo.sample.sample import run
        from dpo.sample.sample_config import SampleConfig

        fixed: dict[str, Any] = {"prompts": prompts, "model": self.model(number), "output": output}
        fixed |= {"seed": self.config.seed + number}
        return Step("dpo sample", settings_from(SampleConfig, {**self.config.sample, **fixed}, "sample"), run)

    def score(self, answers: Path, output: Path) -> Step:
        """Rewards of answers."""
        from reward_model.scoring.score import run
        from reward_model.scoring.score_config import ScoreConfig

        fixed = {"model": self.config.reward_model, "prompts": answers, "output": output}
        return Step(
            "reward-model score", settings_from(ScoreConfig, {**self.config.score, **fixed}, "score"), run
        )

    def pair(self, number: int) -> Step:
        """A round's pairs."""
        from dpo.pairs.pairs import run
        from dpo.pairs.pairs_config import PairsConfig

        folder = self.folders[number]
        fixed: dict[str, Any] = {"scored": folder / "scored.jsonl", "output": folder / "pairs.jsonl"}
        fixed |= {"seed": self.config.seed + number}
        return Step("dpo pairs", settings_from(PairsConfig, {**self.config.pairs, **fixed}, "pairs"), run)

    def train(self, number: int) -> Step:
        """The next round's model, from this round's."""
        from dpo.train.train_config import TrainConfig

        folder = self.folders[number]
        # The next round begins with a plain model: what vLLM samples fastest, and a fresh adapter trains from.
        merges = {"merge": self.config.train.get("method", "lora") != "full"}
        fixed: dict[str, Any] = {"pairs": folder / "pairs.jsonl", "model": self.model(number)}
        fixed |= {"output": folder / "model", "seed": self.config.seed + number}
        settings = settings_from(TrainConfig, {**merges, **self.config.train, **fixed}, "train")
        return Step("dpo train", settings, self._launched(settings, folder / "train.yaml"))

    def _launched(self, settings: Config, file: Path) -> Callable[[Any], int | None]:
        """Training in this process, or through what starts it on several devices."""
        if self.config.launch is None:
            from dpo.train.train import run

            return run
        words = [*shlex.split(self.config.launch), "-m", "dpo.cli", "train", "--config", str(file)]
        given = settings.model_dump(mode="json", exclude_unset=True)

        def start(_: Any) -> int:
            write_text(file, yaml.safe_dump(given, sort_keys=False))
            return subprocess.run(words, check=False).returncode

        return start

    def check(self, number: int) -> Step:
        """The judge's labels of the answers that `checked` takes out."""
        from judge_pipeline.labelling.label import run_label
        from judge_pipeline.labelling.label_config import LabelConfig

        folder = self.folders[number]
        fixed: dict[str, Any] = {"prompts": folder / "check.jsonl", "output": folder / "check"}
        fixed |= {"judge": self.config.judge.model_dump()}
        return Step(
            "judge-pipeline label",
            settings_from(LabelConfig, {**self.config.label, **fixed}, "label"),
            run_label,
        )

    def checked(self, number: int, scored: Path) -> Path:
        """A label run over the first answers to the first prompts, the same prompts in every round."""
        folder = self.folders[number]
        first = islice(read_prompts(scored), self.config.check)
        few = [
            prompt.model_copy(update={"responses": prompt.responses[:1], "preferences": []})
            for prompt in first
            if prompt.responses and prompt.responses[0].text.strip()
        ]
        write_records(folder / "check.jsonl", few)
        self.check(number).do()
        return folder / "check"

    def all_settings(self) -> None:
        """Read every step's settings, so that a wrong one is known before anything is sampled. Raises UserError."""
        for number in range(self.config.rounds):
            self.sample(number, self.config.prompts, self.folders[number] / "answers.jsonl")
            self.score(self.folders[number] / "answers.jsonl", self.folders[number] / "scored.jsonl")
            self.pair(number)
            self.train(number)
            self.check(number)

    def measured(self, number: int) -> Path:
        """The scored answers that the table is about, made where they are not there."""
        folder, held_out = self.folders[number], self.config.eval_prompts
        if held_out is None:
            return folder / "scored.jsonl"
        self.sample(number, held_out, folder / "eval.jsonl").do()
        self.score(folder / "eval.jsonl", folder / "eval.scored.jsonl").do()
        return folder / "eval.scored.jsonl"

    def answer(self, number: int) -> None:
        """A round's answers to the prompts it trains on, with rewards."""
        folder = self.folders[number]
        self.sample(number, self.config.prompts, folder / "answers.jsonl").do()
        self.score(folder / "answers.jsonl", folder / "scored.jsonl").do()


def run(config: RoundConfig) -> int:
    """All rounds; the table is written anew after each."""
    inputs = [path for path in (config.prompts, config.eval_prompts) if path]
    rounds = Rounds(config)
    rounds.all_settings()
    prepare_run(config.output, config, "dpo round", config.existing, inputs)
    rounds.start = plain_model(config.model, config.output / "start")
    table: list[RoundFigures] = []
    for number in range(config.rounds + 1):
        last = number == config.rounds
        print(f"\nround {number}: {rounds.model(number)}", flush=True)
        if not last or config.eval_prompts is None:
            rounds.answer(number)
        scored = rounds.measured(number)
        labels = rounds.checked(number, scored) if config.check else None
        table.append(RoundFigures.of(number, rounds.model(number), scored, labels))
        write_json(config.output / "rounds.json", {"rounds": [row.as_json() for row in table]})
        if not last:
            rounds.pair(number).do()
            rounds.train(number).do()
    print_table(table, config.output / "rounds.json", sys.stdout)
    return 0
