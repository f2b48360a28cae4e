"""`reward-model propose`: which unlabelled prompts the judge should label next.

In: a reward model, the labels it has, a pool of prompts with answers. Out: a prompts file, most telling first, ready
for `judge-pipeline label`; beside it a JSON file with every prompt's uncertainty.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.progress import Progress
from judge_pipeline.common.record_files import read_prompts, write_records, write_text
from judge_pipeline.common.records import Prompt
from judge_pipeline.common.run_dir import prepare_run_file
from reward_model.active.choice import Floats, Labelled, choose, rank_prompts
from reward_model.active.features import answer_features
from reward_model.active.propose_config import ProposeConfig
from reward_model.data.examples import Example, load_examples, usable
from reward_model.options import Overflow
from reward_model.scoring.scorer import RewardModel
from reward_model.training.guards import SCORING_KNOBS, explain_out_of_memory

Item = TypeVar("Item", Example, Prompt)


def _texts(item: Example | Prompt) -> list[str]:
    return [answer if isinstance(answer, str) else answer.text for answer in item.responses]


def within_window(model: RewardModel, items: Sequence[Item], overflow: Overflow, kind: str) -> list[Item]:
    """The prompts that fit the model's window with their longest answer; says how many do not.

    Raises:
        UserError: some do not fit and `overflow` is "error", or none does.
    """
    lengths = [model.encode(item.context, item.query, _texts(item)).shape.longest for item in items]
    kept = [item for item, length in zip(items, lengths, strict=True) if length <= model.max_length]
    over = len(items) - len(kept)
    if over and (overflow == "error" or not kept):
        raise UserError(
            f"{over} of {len(items)} {kind} prompts are longer than the model's window of {model.max_length} tokens; "
            f"the longest has {max(lengths)}",
            "leave them out with --overflow skip; documents are never cut" if kept else "",
        )
    if over:
        print(f"{over} of {len(items)} {kind} prompts are longer than the window, left out")
    return kept


def _features(
    model: RewardModel, items: list[tuple[str, str, list[str]]], budget: int, desc: str
) -> list[Floats]:
    found = []
    with Progress(len(items), desc, "prompts") as progress:
        for context, query, responses in items:
            found.append(answer_features(model, context, query, responses, budget))
            progress.update()
    return found


def labelled_features(model: RewardModel, examples: list[Example], budget: int) -> Labelled:
    """Features and targets of all labelled answers."""
    texts = [(item.context, item.query, _texts(item)) for item in examples]
    features = np.concatenate(_features(model, texts, budget, "labelled prompts"))
    targets = np.concatenate([item.targets_N_D for item in examples]).astype(np.float64)
    documents = [item.document_id for item in examples for _ in item.responses]
    return Labelled(features, targets, documents)


def propose(
    model: RewardModel, examples: list[Example], pool: list[Prompt], config: ProposeConfig
) -> tuple[list[int], Floats]:
    """(positions of the chosen prompts in `pool`, uncertainty of every prompt of `pool`)."""
    labelled = labelled_features(model, examples, config.token_budget)
    texts = [(item.context, item.query, _texts(item)) for item in pool]
    features = _features(model, texts, config.token_budget, "pool")
    uncertainty = rank_prompts(labelled, features, config.heads, config.seed)
    documents = [prompt.document_id for prompt in pool]
    return choose(uncertainty, documents, config.count, config.per_document), uncertainty


def run(config: ProposeConfig) -> int:
    """Choose and write."""
    examples = list(usable(load_examples(config.labels, prompts=config.prompts).items))
    known = {item.prompt_id for item in examples}
    everything = list(read_prompts(config.pool, need_responses=True))
    pool = [prompt for prompt in everything if prompt.id not in known and len(prompt.responses) > 1]
    if not pool:
        raise UserError(f"{config.pool} holds no unlabelled prompt with two or more answers")
    if not examples:
        raise UserError(f"{config.labels} holds no labelled answer to learn from")
    run_file = config.output.with_suffix(config.output.suffix + ".run.yaml")
    prepare_run_file(run_file, config.output, config, "reward-model propose", config.existing, [config.pool])
    with explain_out_of_memory("reading prompts", SCORING_KNOBS):
        model = RewardModel.from_pretrained(config.model, shared_prefix=config.shared_prefix)
        examples = within_window(model, examples, config.overflow, "labelled")
        pool = within_window(model, pool, config.overflow, "unlabelled")
        chosen, uncertainty = propose(model, examples, pool, config)
    write_records(config.output, (pool[position] for position in chosen))
    ranking: list[dict[str, Any]] = [
        {"prompt_id": pool[i].id, "document_id": pool[i].document_id, "uncertainty": float(uncertainty[i])}
        for i in np.argsort(-uncertainty, kind="stable").tolist()
    ]
    write_text(
        config.output.with_suffix(".uncertainty.json"), json.dumps(ranking, indent=1, ensure_ascii=False)
    )
    mean = float(np.mean(uncertainty[chosen]))
    print(
        f"{len(chosen)} of {len(pool)} unlabelled prompts chosen; the heads disagree by {mean:.2f} points on their "
        f"answers, {float(np.mean(uncertainty)):.2f} over the whole pool"
    )
    print(f"next: judge-pipeline label {config.output} --output DIR")
    return 0
