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
from judge_pipeline.common.run_dir import check_place, describe_run, write_run_yaml

SHORT_REWARD = "short_context_reward"
"""Field of a response that `dpo score-short` writes."""


class ScoreShortConfig(Config):
    """Settings of `dpo score-short`."""

    prompts: Path = Field(description="prompts with responses", json_schema_extra=POSITIONAL)
    reward_model: str = Field(description="sequence-classification model: a folder or a hub name")
    output: Path = Field(description="file to write, .jsonl or .parquet")
    batch_size: int = Field(8, ge=1, description="answers at a time", json_schema_extra={"identity": False})


def run(config: ScoreShortConfig) -> int:
    """Score every answer that has text; empty ones get no reward."""
    from judge_pipeline.evaluation.short_context_rm import ShortContextRM  # torch is slow to import

    quiet_libraries()
    run_file = Path(f"{config.output}.run.yaml")
    check_place(config.output, run_file, [config.prompts])
    prompts = list(read_prompts(config.prompts, need_responses=True))
    answers = [(prompt.query, item) for prompt in prompts for item in prompt.responses if item.text.strip()]
    try:
        model = ShortContextRM(config.reward_model, config.batch_size)
    except (OSError, ValueError) as error:
        message = f"the reward model '{config.reward_model}' does not load: {error}"
        raise UserError(message, "name a folder or hub model") from error
    rewards = model.score([query for query, _ in answers], [item.text for _, item in answers])
    for (_, item), reward in zip(answers, rewards, strict=True):
        setattr(item, SHORT_REWARD, float(reward))  # responses keep fields that the schema does not name
    write_records(config.output, prompts)
    write_run_yaml(run_file, describe_run(config, "dpo score-short", [config.prompts]))
    print(f"{config.output}: {len(answers)} answers to {len(prompts)} prompts scored")
    return 0
