"""`dpo score-short`: rewards from a reward model that never sees the document (LongReward's short-context arm).

In: prompts with responses and any sequence-classification reward model. Out: the same prompts, each response with
`short_context_reward`, which `dpo pairs --arm short-context-rm` reads; `scores` and `reward` stay as they are.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from judge_pipeline.common.config import POSITIONAL, Config
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.quiet import quiet_libraries
from judge_pipeline.common.record_files import read_prompts, write_records
from judge_pipeline.common.run_dir import EXISTING_FILE_HELP, ExistingFile, prepare_run
from reward_model.options import HOW

SHORT_REWARD = "short_context_reward"
"""Field of a response that `dpo score-short` writes."""


class ScoreShortConfig(Config):
    """Settings of `dpo score-short`."""

    prompts: Path = Field(description="prompts with responses", json_schema_extra=POSITIONAL)
    reward_model: str = Field(description="sequence-classification model: a folder or a hub name")
    output: Path = Field(description="file to write, .jsonl or .parquet")
    batch_size: int = Field(8, ge=1, description="answers at a time", json_schema_extra=HOW)
    existing: ExistingFile = Field("refuse", description=EXISTING_FILE_HELP, json_schema_extra=HOW)


def run(config: ScoreShortConfig) -> int:
    """Score every answer that has text; empty ones get no reward."""
    from judge_pipeline.evaluation.short_context_rm import ShortContextRM  # torch is slow to import

    quiet_libraries()
    run_file = Path(f"{config.output}.run.yaml")
    prompts = list(read_prompts(config.prompts, need_responses=True))
    answers = [
        (prompt.question, item) for prompt in prompts for item in prompt.responses if item.text.strip()
    ]
    try:
        model = ShortContextRM(config.reward_model, config.batch_size)
    except (OSError, ValueError) as error:
        message = f"the reward model '{config.reward_model}' does not load: {error}"
        raise UserError(message, "name a folder or hub model") from error
    prepare_run(
        config.output, config, "dpo score-short", config.existing, [config.prompts], run_file=run_file
    )
    rewards = model.score([query for query, _ in answers], [item.text for _, item in answers])
    for (_, item), reward in zip(answers, rewards, strict=True):
        setattr(item, SHORT_REWARD, float(reward))  # responses keep fields that the schema does not name
    write_records(config.output, prompts)
    print(f"{config.output}: {len(answers)} answers to {len(prompts)} prompts scored")
    return 0
