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
from judge_pipeline.common.run_dir import prepare_run
from judge_pipeline.common.window import over_window
from reward_model.active.choice import Floats, Labelled, choose, rank_prompts
from reward_model.active.propose_config import ProposeConfig
from reward_model.data.examples import Example, load_examples, usable
from reward_model.options import Overflow
from reward_model.scoring.scorer import RewardModel
from reward_model.shared_prefix.layout import EncodedPrompt
from reward_model.training.guards import SCORING_KNOBS, explain_out_of_memory

Item = TypeVar("Item", Example, Prompt)


def encode(model: RewardModel, items: Sequence[Example] | Sequence[Prompt]) -> list[EncodedPrompt]:
    """Token ids of prompts with their answers."""
    return [
        model.encode(
            item.context,
            item.query,
            [answer if isinstance(answer, str) else answer.text for answer in item.responses],
        )
        for item in items
    ]


def within_window(
    model: RewardModel, items: Sequence[Item], overflow: Overflow, kind: str
) -> tuple[list[Item], list[EncodedPrompt]]:
    """The prompts that fit the model's window with their longest answer, and their ids; says how many do not.

    Raises:
        UserError: some do not fit and `overflow` is "error", or none does.
    """
    encoded = encode(model, items)
    names = [item.prompt_id if isinstance(item, Example) else item.id for item in items]
    lengths = [(name, prompt.shape.longest) for name, prompt in zip(names, encoded, strict=True)]
    over = over_window(lengths, model.max_length, overflow, f"{kind} prompts")
    if over:
        print(f"{len(over)} of {len(items)} {kind} prompts are longer than the window, left out")
    kept = [index for index in range(len(items)) if index not in over]
    return [items[index] for index in kept], [encoded[index] for index in kept]


def answer_features(
    model: RewardModel, prompts: Sequence[EncodedPrompt], token_budget: int, description: str
) -> list[Floats]:
    """What the model's own head sees, (N, H) of every prompt's answers."""
    with Progress(len(prompts), description, "prompts") as progress:
        # A pass of its own for each prompt: the same numbers, whatever else is in the pool.
        return [
            model.features([prompt], token_budget=token_budget, progress=progress)[:, 0].double().numpy()
            for prompt in prompts
        ]


def labelled_answers(examples: Sequence[Example], features: Sequence[Floats]) -> Labelled:
    """Features and targets of all labelled answers as one set."""
    targets = np.concatenate([item.targets_N_D for item in examples]).astype(np.float64)
    documents = [item.document_id for item in examples for _ in item.responses]
    return Labelled(np.concatenate(features), targets, documents)


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
    prepare_run(
        config.output, config, "reward-model propose", config.existing, [config.pool], run_file=run_file
    )
    with explain_out_of_memory("reading prompts", SCORING_KNOBS):
        model = RewardModel.from_pretrained(config.model, shared_prefix=config.shared_prefix, readout="plain")
        examples, known_ids = within_window(model, examples, config.overflow, "labelled")
        pool, pool_ids = within_window(model, pool, config.overflow, "unlabelled")
        labelled = labelled_answers(
            examples, answer_features(model, known_ids, config.token_budget, "labelled prompts")
        )
        features = answer_features(model, pool_ids, config.token_budget, "pool")
    uncertainty = rank_prompts(labelled, features, config.heads, config.seed)
    documents = [prompt.document_id for prompt in pool]
    chosen = choose(uncertainty, documents, config.count, config.per_document)
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
