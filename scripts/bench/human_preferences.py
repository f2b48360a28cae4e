"""A reward model trained on people's choices, beside TRL's `RewardTrainer` on the same pairs and the same backbone.

People compared samples of one model over short passages (`qa_feedback`). Both trainers start from the same weights and
head, see the same pairs as the same token ids, once; ours reads a document once for all its answers. Measured on
documents neither saw: share of people's choices predicted, with intervals over documents, beside the baselines.

In these data the lower-numbered sample wins 60% of the comparisons, an effect of the raters' screen. No input may tell
the number: models see texts only, answers are in the order of a hash of their text, and rows are shuffled. "Lower
sample number" stands in the table as what a model would reach that found it out.

    python scripts/bench/human_preferences.py --data DIR [--prompts 16] [--pairs 2] [--test-prompts 40]

Sizes are small because TRL reads each document twice a pair. Writes human_preferences.json beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from judge_pipeline.common.record_files import read_prompts, write_records
from judge_pipeline.common.records import Preference, Prompt, Response
from judge_pipeline.statistics.baselines import all_baselines, minilm_embed
from judge_pipeline.statistics.bootstrap import DocumentBootstrap
from judge_pipeline.statistics.compare import PREFERENCES, Comparison, Predictor
from judge_pipeline.statistics.render import interval, markdown
from judge_pipeline.statistics.table import REWARD, AnswerTable, Floats, build_table
from reward_model.data.batches import EncodedExample
from reward_model.data.splits import hash_fraction
from reward_model.fidelity.inputs import model_columns
from reward_model.modeling.head import score_weight
from reward_model.modeling.model import Backbone
from reward_model.scoring.scorer import RewardModel
from reward_model.training.run_data import encode_data, read_data
from reward_model.training.sharding import share_prefix
from reward_model.training.train import train
from reward_model.training.train_config import TrainConfig
from reward_model.training.trainable import build_backbone, start_head
from scripts.bench.evidence_common import command_line, environment, settings_of, write_result


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of qa_feedback.jsonl")
    parser.add_argument("--base-model", default="smollm2")
    parser.add_argument("--work", type=Path, default=Path("runs/human-preferences"))
    parser.add_argument(
        "--prompts", type=int, default=16, help="training prompts, each over its own document"
    )
    parser.add_argument("--pairs", type=int, default=2, help="people's choices used of each prompt")
    parser.add_argument("--test-prompts", type=int, default=40)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--freeze-layers", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def hash_order(prompt: Prompt) -> list[Response]:
    """The answers in the order of a hash of their text."""
    return sorted(prompt.responses, key=lambda item: hashlib.sha256(item.text.encode()).hexdigest())


def blind(prompt: Prompt) -> Prompt:
    """The prompt without the sample's number, answers in the order of a hash of their text, under new ids."""
    order = hash_order(prompt)
    names = {item.id: f"r{place}" for place, item in enumerate(order)}
    hidden = [item.model_copy(update={"id": names[item.id], "source": None, "human": None}) for item in order]
    choices = sorted((names[choice.winner], names[choice.loser]) for choice in prompt.preferences)
    preferences = [Preference(winner=winner, loser=loser) for winner, loser in choices]
    kept = {name: getattr(prompt, name) for name in ("id", "document_id", "context", "query")}
    return Prompt(**kept, responses=hidden, preferences=preferences)


def split(args: argparse.Namespace) -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
    """(training, test, test with the sample numbers, for that one baseline): no document on both sides."""
    everything = [prompt for prompt in read_prompts(args.data / "qa_feedback.jsonl") if prompt.preferences]
    order = sorted(everything, key=lambda prompt: hash_fraction(prompt.document_id, args.seed))
    test = order[: args.test_prompts]
    known = {prompt.document_id for prompt in test}
    rest = [prompt for prompt in order[args.test_prompts :] if prompt.document_id not in known]
    training = []
    for prompt in rest[: args.prompts]:
        kept = blind(prompt)
        rng = random.Random(f"{args.seed}:{prompt.id}")
        kept.preferences = rng.sample(kept.preferences, min(args.pairs, len(kept.preferences)))
        training.append(kept)
    return training, [blind(prompt) for prompt in test], test


def settings(args: argparse.Namespace, file: Path) -> TrainConfig:
    """The same for both trainers as far as they have the same settings."""
    return TrainConfig.model_validate(
        {
            "labels": file,
            "base_model": args.base_model,
            "output": args.work / "ours",
            "existing": "replace",
            "targets": "preferences",
            "loss": "preference",
            "eval_fraction": 0.0,
            "method": "full",
            "freeze_layers": args.freeze_layers,
            "precision": "fp32",
            "epochs": args.epochs,
            "learning_rate": args.learning_rate,
            "device": "auto" if torch.cuda.is_available() else "cpu",
            "seed": args.seed,
        }
    )


def untrained(config: TrainConfig) -> Backbone:
    """The base model with a fresh head for the data's dimensions."""
    names = read_data(config).dimensions
    return build_backbone(config, names, dict.fromkeys(names, 1.0))


def encoded(config: TrainConfig, backbone: Backbone) -> list[EncodedExample]:
    """The training prompts as token ids."""
    return encode_data(config, read_data(config), backbone).train


def one_prompt_a_step(config: TrainConfig) -> TrainConfig:
    """The token budget that holds the longest prompt: about one prompt a step, as many pairs as TRL takes a step."""
    longest = max(item.shape.total for item in encoded(config, untrained(config)))
    return config.model_copy(update={"token_budget": longest})


def trl_pairs(config: TrainConfig, backbone: Backbone) -> list[dict[str, list[int]]]:
    """Every pair as the token ids our trainer sees: prefix and answer with its end."""
    data = read_data(config)
    rows = []
    for item in encoded(config, backbone):
        example = next(one for one in data.train if one.prompt_id == item.prompt_id)
        sequences = [[*item.prefix.tolist(), *answer.tolist()] for answer in item.answers]
        rows += [
            {"chosen_ids": sequences[winner], "rejected_ids": sequences[loser]}
            for winner, loser in example.preferences
        ]
    return rows


def fresh_backbone(config: TrainConfig) -> Backbone:
    """The weights our trainer starts from, its head included, on a model of plain transformers."""
    started, plain = untrained(config), untrained(config)
    share_prefix(started.model)
    start_head(started, encoded(config, started), config, config.token_budget or 8192, None)
    with torch.no_grad():
        score_weight(plain.model).copy_(score_weight(started.model))
    return plain


def train_trl(args: argparse.Namespace, config: TrainConfig, backbone: Backbone) -> dict[str, Any]:
    """Train `backbone` in place with TRL; returns time and tokens."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    rows = trl_pairs(config, backbone)
    trainer = RewardTrainer(
        model=backbone.model,
        args=RewardConfig(
            output_dir=str(args.work / "trl"),
            per_device_train_batch_size=args.pairs,
            num_train_epochs=args.epochs,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=int(0.1 * len(rows) / args.pairs),
            weight_decay=0.0,
            max_length=None,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            save_strategy="no",
            logging_steps=5,
            seed=args.seed,
        ),
        processing_class=backbone.tokenizer,
        train_dataset=Dataset.from_list(rows),
    )
    begun = time.time()
    trainer.train()
    return {
        "seconds": time.time() - begun,
        "pairs": len(rows),
        "tokens": sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows),
    }


def sample_number(prompts: Sequence[Prompt], table: AnswerTable) -> Floats:
    """Minus the number in each answer's `source`, in the rows of the blinded table: the effect of the screen."""
    column = np.full(table.rows, np.nan)
    for prompt in prompts:
        for place, item in enumerate(hash_order(prompt)):
            column[table.row_of[prompt.id, f"r{place}"]] = -float((item.source or "0").rsplit("-", 1)[-1])
    return column


def measure(
    test: list[Prompt], numbered: list[Prompt], models: dict[str, RewardModel], seed: int
) -> dict[str, Any]:
    """Share of people's choices each scorer predicts on the test documents."""
    table = build_table(test)
    rewards = {name: model_columns(model, table, 16384)[REWARD] for name, model in models.items()}
    predictors = [Predictor(name, "model", {REWARD: column}) for name, column in rewards.items()]
    baselines = all_baselines(table, minilm_embed(), seed)
    baselines["lower sample number (effect of the screen)"] = sample_number(numbered, table)
    predictors += [Predictor(name, "baseline", any_target=column) for name, column in baselines.items()]
    comparison = Comparison(table, predictors, DocumentBootstrap(table.document_P, 1000, seed))
    return comparison.preferred(table.preferences())


def main() -> None:
    """Train both, measure, write."""
    args = arguments()
    training, test, numbered = split(args)
    args.work.mkdir(parents=True, exist_ok=True)
    file = args.work / "training.jsonl"
    write_records(file, training)
    config = one_prompt_a_step(settings(args, file))
    start, trl_backbone = fresh_backbone(config), fresh_backbone(config)
    begun = time.time()
    ours_dir = train(config)
    ours_seconds = time.time() - begun
    ours_tokens = sum(item.shape.total for item in encoded(config, start))
    trl = train_trl(args, config, trl_backbone)
    models = {
        "ours, trained": RewardModel.from_pretrained(ours_dir),
        "TRL RewardTrainer, trained": RewardModel(trl_backbone),
        "untrained, same start": RewardModel(start),
    }
    found = measure(test, numbered, models, args.seed)
    rows = [
        [row["name"], row["kind"], interval(row["within"]["pairs"]), interval(row["ahead"].get("pairs"))]
        for row in found["rows"]
    ]
    print(markdown(["scored by", "kind", f"{PREFERENCES}, share right", "ours ahead"], rows))
    result = {
        "settings": settings_of(args, "data", "work"),
        "training": {
            "documents": len({prompt.document_id for prompt in training}),
            "prompts": len(training),
            "pairs": trl["pairs"],
            "ours": {"seconds": ours_seconds, "tokens": ours_tokens},
            "trl": trl,
            "note": "ours includes loading the model and saving it; TRL's time is its train() alone",
        },
        "test": found,
        **environment(),
    }
    write_result(Path(__file__).with_suffix(".json"), result)


if __name__ == "__main__":
    main()
