"""Labels a sample of prompts for what it takes (`--dry-run --calibrate N`), not for its rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from judge_pipeline.common.progress import Progress
from judge_pipeline.common.records import Label, Prompt
from judge_pipeline.common.weighting import Weighting
from judge_pipeline.dimensions.base import Dimension
from judge_pipeline.documents.indexed import DocumentIndexer
from judge_pipeline.engines.calibration import MeasuringRunner
from judge_pipeline.engines.call_counts import Amounts
from judge_pipeline.labelling.planning import PromptPlanner
from judge_pipeline.labelling.scheduler import Scheduler
from judge_pipeline.labelling.summary import Tally
from judge_pipeline.labelling.workers import Workers


@dataclass
class NoRows:
    """Takes rows in and writes none: the calls behind them are in the store, where the labelling run finds them."""

    tally: Tally
    kept: frozenset[str] = frozenset()
    next_position: int = 0

    def put(self, position: int, rows: list[Label] | str) -> int:
        """Count a prompt's answers."""
        return len(rows)

    def finish(self) -> None:
        """There is nothing to finish."""


async def label_sample(
    prompts: Sequence[Prompt],
    dimensions: Sequence[Dimension],
    indexer: DocumentIndexer,
    runner: MeasuringRunner,
) -> list[Amounts]:
    """What labelling some prompts asks and costs, each. Raises UserError when a limit ends it."""
    names = [dimension.name for dimension in dimensions]
    answers = sum(len(prompt.responses) for prompt in prompts)
    with closing(Workers()) as workers, Progress(answers, "calibrating", "answers") as progress:
        planner = PromptPlanner(dimensions, runner, Weighting(dict.fromkeys(names, 1.0)), workers)
        await Scheduler(planner, indexer, NoRows(Tally(names)), progress=progress).run(iter(prompts))
    return runner.of([prompt.id for prompt in prompts])
