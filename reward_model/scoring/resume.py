"""What a scoring run keeps on disk: `FILE.part` while it lasts, `FILE.summary.json`, and what an earlier run left of both.

Each prompt is on disk before the next batch starts. A run that was stopped keeps what it has and goes on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from judge_pipeline.common.errors import disk_error
from judge_pipeline.common.record_files import JsonlAppender, read_json, read_prompts, write_records
from judge_pipeline.common.records import Prompt, Response
from reward_model.scoring.engine import ScoreConfig

OVER_WINDOW = "over_window"


@dataclass
class Summary:
    """What is in the output and what it took; seconds and tokens add up over resumed runs."""

    engine: str
    model: str
    reads: str = ""
    """What the scores are read from, and how many layers run for it."""
    prompts: int = 0
    responses: int = 0
    scored: int = 0
    empty: int = 0
    over_window: int = 0
    tokens_read: int = 0
    """Tokens that went through the model."""
    tokens_one_by_one: int = 0
    """What reading the document again for every answer would have cost."""
    seconds: float = 0.0
    """Time spent scoring, without loading the model."""

    def count(self, prompt: Prompt) -> None:
        """Add a finished prompt."""
        self.prompts += 1
        self.responses += len(prompt.responses)
        self.scored += sum(map(scorable, prompt.responses))
        self.empty += sum(is_empty(item) for item in prompt.responses)
        self.over_window += sum(OVER_WINDOW in item.flags for item in prompt.responses)


def is_empty(response: Response) -> bool:
    """Whether there is nothing to score."""
    return not response.text.strip()


def scorable(response: Response) -> bool:
    """Whether an answer gets scores."""
    return not is_empty(response) and OVER_WINDOW not in response.flags


def part_file(config: ScoreConfig) -> Path:
    """What is written while the run lasts."""
    return Path(f"{config.output}.part")


def summary_file(config: ScoreConfig) -> Path:
    """Where the summary lies."""
    return Path(f"{config.output}.summary.json")


def resumed_summary(config: ScoreConfig) -> Summary:
    """A summary that goes on from an earlier run's time and tokens; a run that was killed left none to add to."""
    summary = Summary(engine=config.engine, model=str(config.model))
    file = summary_file(config)
    if file.is_file() and (config.output.is_file() or part_file(config).is_file()):
        before = read_json(file)
        summary.seconds, summary.tokens_read = before["seconds"], before["tokens_read"]
        summary.tokens_one_by_one = before["tokens_one_by_one"]
    return summary


def done_before(part: Path, output: Path, summary: Summary) -> set[str]:
    """Ids of prompts that an earlier run scored, counted into `summary`."""
    source = part if part.is_file() else output
    if source is part:
        JsonlAppender(part).close()  # cuts off a line that a killed run left torn
    if not source.is_file() or source.stat().st_size == 0:
        return set()
    done = set()
    for prompt in read_prompts(source):
        done.add(prompt.id)
        summary.count(prompt)
    return done


def finalise(part: Path, output: Path) -> None:
    """Put the finished file in its place."""
    try:
        if output.suffix in (".parquet", ".gz"):
            write_records(output, read_prompts(part))
            part.unlink()
        else:
            os.replace(part, output)
    except OSError as error:
        raise disk_error(error, output) from error
