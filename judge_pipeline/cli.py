"""`judge-pipeline`: the judge's commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from judge_pipeline.common import config as configuration
from judge_pipeline.common.config import POSITIONAL, Command, Config
from judge_pipeline.evaluation.evaluate_config import EvaluateConfig
from judge_pipeline.labelling import label, merge


class ReportConfig(Config):
    """Settings of `judge-pipeline report`."""

    run: Path = Field(description="directory of a label run", json_schema_extra=POSITIONAL)


def run_report(config: ReportConfig) -> int:
    """Write report.html of a label run again."""
    from judge_pipeline.report.write import write_report

    print(write_report(config.run))
    return 0


REPORT = Command(
    name="report",
    help="write report.html of a label run again",
    config=ReportConfig,
    run=run_report,
    example="judge-pipeline report labels",
)

EVALUATE = Command(
    name="evaluate",
    help="compare scores with people's judgements, beside baselines",
    config=EvaluateConfig,
    run="judge_pipeline.evaluation.run:run_evaluation",
    example="judge-pipeline evaluate runs/labels --prompts judged-by-people.jsonl --output runs/agreement",
)
COMMANDS: list[Command] = [label.COMMAND, merge.COMMAND, REPORT, EVALUATE]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `judge-pipeline` command."""
    return configuration.main(
        "judge-pipeline", COMMANDS, argv, "Score answers to questions about long documents with an LLM judge."
    )


if __name__ == "__main__":
    sys.exit(main())
