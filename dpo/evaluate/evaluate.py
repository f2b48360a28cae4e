"""`dpo evaluate`: are the new model's answers better? Win, tie and loss of two models on the same prompts.

In: two prompts files with the answers of model A and model B, and who decides: a reward model, the rewards that
the files carry, two label runs of the judge (which also give FactScore's two figures from the faithfulness
evidence), or the judge asked directly about each pair of answers, in both orders. Out: `evaluation.json`,
`report.html` with the answers side by side, `run.yaml`.

Scores of benchmarks such as LongBench come from lm-eval, which reads what `dpo train` writes (pip install lm-eval):

    lm_eval --model hf --model_args pretrained=MODEL,dtype=bfloat16,max_length=65536 \\
        --tasks longbench --apply_chat_template --batch_size 1 --output_path DIR

With an adapter, `pretrained=BASE,peft=OUTPUT`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpo.evaluate.evaluate_config import EvaluateConfig
from dpo.evaluate.lineage import warnings_about
from dpo.evaluate.match import Match, match_files, take_labels, vote_by_reward
from dpo.evaluate.page import evaluation_page, print_evaluation
from dpo.evaluate.stats import evaluation
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.progress import Progress
from judge_pipeline.common.quiet import quiet_libraries
from judge_pipeline.common.record_files import write_json, write_text
from judge_pipeline.common.run_dir import prepare_run
from judge_pipeline.engines.open import JudgeConfig


def score_with(model_dir: Path, matches: Sequence[Match]) -> None:
    """Score both models' answers, each document read once for all of them."""
    from reward_model.scoring.scorer import RewardModel

    model = RewardModel.from_pretrained(model_dir)
    with Progress(len(matches), "scoring", "prompts") as progress:
        for match in matches:
            texts = [answer.text for side in match.answers for answer in side]
            try:
                points = model.score(match.prompt.context, match.prompt.question, texts)
            except UserError as error:
                raise UserError(f"prompt '{match.prompt.id}': {error.message}", error.hint) from error
            rows = iter(zip(points.clip(0, 10).tolist(), model.reward(points).tolist(), strict=True))
            for side in match.answers:
                for index, (answer, (row, reward)) in enumerate(zip(side, rows, strict=False)):
                    scores = dict(zip(model.dimensions, row, strict=True))
                    side[index] = answer.model_copy(update={"scores": scores, "reward": reward})
            progress.update()


def ask_about(matches: Sequence[Match], judge: JudgeConfig, store: Path) -> dict[str, Any]:
    """Let the judge decide between both models' first answers; returns how its votes came about."""
    from judge_pipeline.evaluation.judges import ask_judge, vote_summary

    pairs = []
    for match in matches:
        both = {"responses": [side[0] for side in match.answers]}
        pairs.append((match.prompt.model_copy(update=both), 0, 1))
    votes = ask_judge(judge, store, pairs).votes
    for match, vote in zip(matches, votes, strict=True):
        match.vote, match.first_only = vote.vote, True
    return vote_summary(votes)


def run(config: EvaluateConfig) -> int:
    """Compare; 0 when every prompt was decided, 1 when the judge or a reward failed on some."""
    quiet_libraries()
    matches, left_out = match_files(config.a, config.b)
    prepare_run(config.output, config, "dpo evaluate", config.existing, [config.a, config.b])
    if config.reward_model is not None:
        score_with(config.reward_model, matches)
    elif config.labels_a is not None and config.labels_b is not None:
        take_labels(matches, (config.labels_a, config.labels_b))
    found: dict[str, Any] = {"decided_by": "the reward"}
    if config.pairwise:
        found = {"decided_by": "the judge, both orders of the first answers"}
        found["pairwise"] = ask_about(matches, config.judge, config.output / "calls.sqlite")
    else:
        for match in matches:
            match.vote = vote_by_reward(match, config.tie_margin)
        if all(match.vote is None for match in matches):
            raise UserError(
                "no prompt has rewards on both sides",
                "give --reward-model, or --labels-a and --labels-b, or --pairwise",
            )
    found["warnings"] = warnings_about(config)
    for warning in found["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    found |= {"a": config.name_a, "b": config.name_b, "left_out": left_out}
    found |= evaluation(matches, config.bootstrap, config.seed)
    write_text(config.output / "report.html", evaluation_page(found, matches, config.show))
    write_json(config.output / "evaluation.json", found)
    print_evaluation(found, config.output)
    return 0 if found["judged"] == found["prompts"] else 1
