"""The data of one training run: loaded, split by document, checked, and tokenised.

In: settings. Out: examples and token ids on both sides of the split, and the objective on their scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_prompts
from judge_pipeline.common.weighting import full_weights
from reward_model.data.batches import EncodedExample, encode_examples, fit_window
from reward_model.data.contrasts import Augmented, add_contrasts
from reward_model.data.evidence import AnswerEvidence, Key, load_evidence
from reward_model.data.examples import (
    Example,
    check_learnable,
    holds_labels,
    load_examples,
    unlabelled_example,
    usable,
)
from reward_model.data.splits import document_groups, refuse_leak, split_by_document
from reward_model.modeling.model import Backbone
from reward_model.options import LossName
from reward_model.training.losses import Standardizer
from reward_model.training.objective import Objective
from reward_model.training.train_config import TrainConfig


@dataclass(frozen=True)
class TrainingData:
    """Examples on both sides of the split, and what their targets are called."""

    train: list[Example]
    held_out: list[Example]
    dimensions: tuple[str, ...]
    sources: tuple[Path, ...]
    preferences: bool
    unlabelled: list[Example] = field(default_factory=list)
    """Prompts the plain head is taught on beside those of `train`."""
    evidence: dict[Key, AnswerEvidence] = field(default_factory=dict)
    """What the judge found of single sentences and key points; empty where labels hold none or it is not wanted."""
    augmented: Augmented = field(default_factory=Augmented)
    """What answers made worse on purpose added to `train`."""


def read_data(config: TrainConfig) -> TrainingData:
    """Load, split by document and check what there is to learn.

    Raises:
        UserError, DataError: see `data` and `splits`.
    """
    found = load_examples(
        config.labels, prompts=config.prompts, targets=config.targets, dimensions=config.dimensions
    )
    full_weights(config.weights, found.dimensions, "'{name}' is no dimension of these labels")
    items = list(usable(found.items))
    sources = found.sources
    if config.eval_labels is None:
        fraction = 0.0 if config.folds else config.eval_fraction
        train, held_out = split_by_document(items, fraction, config.seed)
    else:
        other = load_examples(
            config.eval_labels,
            prompts=config.eval_prompts,
            targets=config.targets,
            dimensions=found.dimensions,
        )
        train, held_out = items, list(usable(other.items))
        sources += other.sources
    refuse_leak(train, held_out)
    preferences = any(item.preferences for item in train)
    if not train:
        raise UserError(f"{config.labels} has no labelled answer to train on")
    if not preferences:
        check_learnable(train, found.dimensions, allow_constant=config.allow_constant)
    added = add_contrasts(config.augment, train, held_out, found.dimensions)
    more = read_unlabelled(config.unlabelled, added.train, held_out, len(found.dimensions))
    sources += tuple(path for path in (config.augment, config.unlabelled) if path)
    labels = found.sources[0]
    evidence = load_evidence(labels) if config.evidence == "on" and holds_labels(labels) else {}
    return TrainingData(added.train, held_out, found.dimensions, sources, preferences, more, evidence, added)


def read_unlabelled(
    path: Path | None, train: Sequence[Example], held_out: Sequence[Example], dimensions: int
) -> list[Example]:
    """Prompts with answers whose labels are not looked at, without those of `train` and documents of `held_out`."""
    if path is None:
        return []
    items = []
    for prompt in read_prompts(path, need_responses=True):
        there = [item for item in prompt.responses if item.text.strip()]
        if there:
            items.append(unlabelled_example(prompt, there, dimensions))
    groups = document_groups([*held_out, *items])
    known = {item.prompt_id for item in (*train, *held_out)}
    kept_out = set(groups[: len(held_out)])
    return [
        item
        for item, group in zip(items, groups[len(held_out) :], strict=True)
        if item.prompt_id not in known and group not in kept_out
    ]


def make_objective(config: TrainConfig, data: TrainingData, weights: list[float]) -> Objective:
    """The losses of the run, on the scale of the training targets."""
    if (config.loss == "preference") > data.preferences:
        raise UserError("--loss preference needs preferences", "add --targets preferences")
    if data.preferences and config.loss not in ("auto", "preference"):
        raise UserError(f"--loss {config.loss} needs scores, and preferences have none", "--loss preference")
    automatic: LossName = "preference" if data.preferences else "level+order"
    targets = torch.from_numpy(np.concatenate([item.targets_N_D for item in data.train]))
    options = config.loss_options
    return Objective(
        name=automatic if config.loss == "auto" else config.loss,
        standardizer=Standardizer.fit(targets, torch.tensor(weights)),
        delta=options.huber_delta,
        contrast_weight=config.augment_weight if any(item.contrasts for item in data.train) else 0.0,
        **options.model_dump(exclude={"huber_delta", "confidence"}),
    )


@dataclass(frozen=True)
class EncodedData:
    """Token ids of both sides, all within the window, and how many prompts were left out for it."""

    train: list[EncodedExample]
    held_out: list[EncodedExample]
    skipped: int
    unlabelled: list[EncodedExample] = field(default_factory=list)


def encode_data(config: TrainConfig, data: TrainingData, backbone: Backbone) -> EncodedData:
    """Tokenise both sides.

    Raises:
        UserError: prompts over the window (unless they may be skipped), or none within it.
    """
    window = backbone.manifest.max_length
    sides, skipped = [], 0
    for items in (data.train, data.held_out, data.unlabelled):
        if config.loss_options.confidence == "none":
            items = [_equal_confidence(item) for item in items]
        kept, over = fit_window(encode_examples(items, backbone.renderer.encode), window, config.overflow)
        sides.append(kept)
        skipped += over
    if not sides[0]:
        raise UserError(f"no training prompt fits the window of {window} tokens")
    return EncodedData(sides[0], sides[1], skipped, sides[2])


def _equal_confidence(item: Example) -> Example:
    return replace(item, confidence_N_D=np.ones_like(item.confidence_N_D))
