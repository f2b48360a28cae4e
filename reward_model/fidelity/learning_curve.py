"""`reward-model learning-curve`: fidelity against the number of labelled prompts, to know when to stop paying the judge.

In: labels and a base model. Out: a model trained at each size on nested sets of prompts, every one measured on the same
held-out documents; `curve.json`, `report.html`, a table, and what twice as many labels would bring and cost. A size
that is finished is not trained again.

So that labels are not confounded with steps, every size may take as many steps as the largest takes in its epochs, and
stops when documents that are neither trained on nor measured get no better. Every size is trained with several seeds,
which draw other prompts too. A probe has no steps: it needs no such documents.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_json, write_records, write_text
from judge_pipeline.common.run_dir import prepare_run
from judge_pipeline.statistics import render as render
from judge_pipeline.statistics.baselines import all_baselines
from reward_model.data.examples import Example, load_examples, usable
from reward_model.data.splits import hash_fraction, split_by_document
from reward_model.fidelity.curve_report import curve_page, summarise, terminal_curve
from reward_model.fidelity.fidelity import evaluate_scores
from reward_model.fidelity.inputs import Reference, keep_within_window, model_columns, read_reference
from reward_model.fidelity.learning_curve_config import LearningCurveConfig
from reward_model.modeling.model import MANIFEST
from reward_model.options import TOKEN_BUDGET
from reward_model.scoring.scorer import RewardModel
from reward_model.training.callbacks import read_metrics
from reward_model.training.train import train
from reward_model.training.train_config import TrainConfig


def nested_subsets(prompt_ids: Sequence[str], sizes: Sequence[int], seed: int) -> dict[int, list[str]]:
    """For each size the first prompts of one fixed order, so that a larger set holds every smaller one."""
    order = sorted(prompt_ids, key=lambda name: hash_fraction(name, seed))
    return {size: order[:size] for size in sizes if size <= len(order)}


@dataclass(frozen=True)
class Run:
    """One model to train."""

    ids: list[str]
    seed: int
    longer: float
    """Times as many epochs as the largest size takes, for as many steps."""


def plan_runs(prompt_ids: Sequence[str], sizes: Sequence[int], seeds: int, seed: int) -> list[Run]:
    """Every size with every seed; sizes that the prompts do not fill are left out."""
    found = []
    for number in range(seed, seed + seeds):
        subsets = nested_subsets(prompt_ids, sizes, number)
        found += [Run(ids, number, max(subsets) / size) for size, ids in subsets.items()]
    return sorted(found, key=lambda run: len(run.ids))


def write_subset(reference: Reference, ids: Sequence[str], folder: Path) -> tuple[Path, Path | None]:
    """(labels or prompts to train on, the prompts behind labels) of a subset, as files in `folder`."""
    wanted = set(ids)
    prompts = folder / "prompts.jsonl"
    write_records(prompts, (prompt for prompt in reference.prompts if prompt.id in wanted))
    if not reference.labels:
        return prompts, None
    labels = folder / "labels.jsonl"
    write_records(labels, (label for key, label in reference.labels.items() if key[0] in wanted))
    return labels, prompts


@dataclass(frozen=True)
class Sides:
    """Prompt ids by what they are for."""

    train: list[str]
    stop: list[str]
    """Early stopping watches these; empty for a probe."""
    held_out: list[str]


def split_sides(items: Sequence[Example], config: LearningCurveConfig) -> Sides:
    """Documents to measure on, to stop by, and to train on; the same for all sizes and seeds."""
    train, held_out = split_by_document(items, config.eval_fraction, config.seed)
    stop: list[Example] = []
    if config.method != "probe" and config.early_stopping:
        # Another seed: by the same one the hashes of what is left lie above the first fraction.
        train, stop = split_by_document(train, config.stop_fraction, config.seed + 1)
    return Sides(*([item.prompt_id for item in side] for side in (train, stop, held_out)))


def train_size(
    config: LearningCurveConfig, reference: Reference, sides: Sides, run: Run, folder: Path
) -> Path:
    """Train on a subset; returns the model's directory, trained now or by an earlier run."""
    labels, prompts = write_subset(reference, run.ids, folder)
    watched, watched_prompts = (
        write_subset(reference, sides.stop, config.output / "stop") if sides.stop else (None, None)
    )
    settings = TrainConfig.model_validate(
        {
            **config.model_dump(include=set(TrainConfig.model_fields)),
            "labels": labels,
            "prompts": prompts,
            "output": folder / "model",
            "existing": "resume",
            "eval_labels": watched,
            "eval_prompts": watched_prompts,
            "eval_fraction": 0.0,  # the held-out documents are in no subset
            "allow_constant": True,  # a small subset may hold one score only; a larger one tells
            "seed": run.seed,
            "epochs": config.epochs * run.longer,
            "early_stopping": math.ceil(config.early_stopping * run.longer),
        }
    )
    if not (settings.output / MANIFEST).is_file():
        train(settings)
    return settings.output


def measure(
    config: LearningCurveConfig, reference: Reference, held_out: Sequence[str], model_dir: Path
) -> dict[str, Any]:
    """Fidelity of one model on the held-out prompts, as `evaluate_scores` gives it."""
    model = RewardModel.from_pretrained(model_dir, shared_prefix=config.shared_prefix)
    held = Reference(list(reference.prompts), reference.groups, reference.labels, reference.files)
    held.keep(held_out)
    keep_within_window(held, model, config.overflow)
    answers = held.table(lambda prompt: len(model.render(prompt.context, prompt.question)), "tokens")
    predicted = model_columns(model, answers, config.token_budget or TOKEN_BUDGET)
    return evaluate_scores(
        answers,
        held.targets(answers),
        predicted,
        preferences=[] if reference.labels else answers.preferences(),
        baselines=all_baselines(answers, None, config.seed),
        replicates=config.bootstrap,
        seed=config.seed,
        notes=held.notes,
    )


def label_cost(reference: Reference) -> dict[str, float]:
    """What the judge spent per prompt, from the labels' usage; empty for people's judgements."""
    used = [label.usage for label in reference.labels.values()]
    prompts = len({key[0] for key in reference.labels})
    if not prompts:
        return {}
    return {
        "calls": sum(usage.calls for usage in used) / prompts,
        "input_tokens": sum(usage.input_tokens for usage in used) / prompts,
        "output_tokens": sum(usage.output_tokens for usage in used) / prompts,
    }


def run(config: LearningCurveConfig) -> int:
    """Train and measure every size."""
    reference = read_reference(config.labels, [config.prompts] if config.prompts else [])
    prepare_run(config.output, config, "reward-model learning-curve", config.existing, reference.files)
    found = load_examples(config.labels, prompts=config.prompts, targets=config.targets)
    sides = split_sides(list(usable(found.items)), config)
    if not sides.held_out:
        raise UserError(
            "all prompts share one document, so none can be held out", "label prompts over several documents"
        )
    runs = plan_runs(sides.train, config.sizes, config.seeds, config.seed)
    if not runs:
        raise UserError(
            f"there are {len(sides.train)} training prompts, fewer than the smallest size {config.sizes[0]}",
            "give smaller --sizes",
        )
    left_out = [size for size in config.sizes if size > len(sides.train)]
    if left_out:
        print(f"note: only {len(sides.train)} prompts to train on; sizes {left_out} are left out")
    curve = summarise([_step(config, reference, sides, run) for run in runs], label_cost(reference))
    write_text(config.output / "curve.json", json.dumps(curve, indent=1, ensure_ascii=False))
    write_text(config.output / "report.html", curve_page(curve))
    print(terminal_curve(curve))
    print(f"\nwritten: {config.output / 'curve.json'} and report.html")
    return 0


def _step(config: LearningCurveConfig, reference: Reference, sides: Sides, run: Run) -> dict[str, Any]:
    folder = config.output / f"size-{len(run.ids):05d}" / f"seed-{run.seed}"
    done = folder / "step.json"
    if not done.is_file():
        print(f"training on {len(run.ids)} prompts, seed {run.seed}", flush=True)
        model_dir = train_size(config, reference, sides, run, folder)
        steps = max((row["step"] for row in read_metrics(model_dir / "metrics.jsonl")), default=0)
        found = measure(config, reference, sides.held_out, model_dir)
        step = {"size": len(run.ids), "seed": run.seed, "steps": steps, "fidelity": found}
        write_text(done, json.dumps(step, indent=1, ensure_ascii=False))
        if not config.keep_models:
            shutil.rmtree(model_dir)
    return read_json(done)
