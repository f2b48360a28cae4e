"""What became of each round's model: reward, length and the judge's spot check, in one table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from judge_pipeline.common.record_files import read_labels, read_prompts


@dataclass(frozen=True)
class RoundFigures:
    """Figures of one model's answers; None where there is nothing to average."""

    round: int
    model: str
    prompts: int
    answers: int
    reward: float | None
    """Mean reward of the answers: what was optimised."""
    length: float | None
    """Mean length, characters."""
    truncated: float | None
    """Share of answers that ended at the limit."""
    judge: float | None
    """Mean of the judge's rewards: what it was optimised for."""
    checked: int

    @classmethod
    def of(cls, number: int, model: str, scored: Path, labels: Path | None) -> RoundFigures:
        """The figures of a scored file and of a label run over some of it."""
        prompts = list(read_prompts(scored))
        answers = [answer for prompt in prompts for answer in prompt.responses]
        judged = [row.reward for row in read_labels(labels)] if labels is not None else []
        known = [reward for reward in judged if reward is not None]
        return cls(
            number,
            model,
            len(prompts),
            len(answers),
            _mean([answer.reward for answer in answers if answer.reward is not None]),
            _mean([float(len(answer.text)) for answer in answers]),
            _mean([float("truncated" in answer.flags) for answer in answers]),
            _mean(known),
            len(known),
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def print_table(rows: list[RoundFigures], path: Path, file: TextIO) -> None:
    """The table for the terminal."""

    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    print("\nround   reward   length   truncated   judge (answers)   model", file=file)
    for row in rows:
        judge = f"{cell(row.judge, '.2f')} ({row.checked})"
        print(
            f"{row.round:>5}   {cell(row.reward, '6.2f')}   {cell(row.length, '6.0f')}   {cell(row.truncated, '9.0%')}   "
            f"{judge:<15}   {row.model}",
            file=file,
        )
    print(f"{path}", file=file)
