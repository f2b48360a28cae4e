"""The model of a training run: base model, adapter or frozen layers, and the head's start.

In: settings. Out: a `Backbone` whose model the Trainer can train.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import get_peft_model, prepare_model_for_kbit_training
from torch import nn

from judge_pipeline.common.errors import UserError
from reward_model.data.batches import EncodedExample
from reward_model.modeling.features import read_features
from reward_model.modeling.head import score_weight
from reward_model.modeling.level_head import separate_start
from reward_model.modeling.model import Backbone, load_backbone_for_rm
from reward_model.shared_prefix.interface import unwrap
from reward_model.training.adapters import check_targets, keep_gradients_on_cpu, lora_config, weight_options
from reward_model.training.head_steps import CentredSplit
from reward_model.training.objective import Objective
from reward_model.training.probe import MIDDLE
from reward_model.training.probe_run import ProbeResult
from reward_model.training.sharding import optimiser_is_ours
from reward_model.training.train_config import TrainConfig
from reward_model.training.trainer import HeadStart

STEP, PROBE_STEP = 0.1, 0.02
"""Default learning rate of the head, in spreads of the labels: from nowhere, and from a probe, which is nearly there."""

START_ANSWERS = 64
"""Answers whose features set a head that starts at the mean label: enough to find directions they differ in."""


def build_backbone(config: TrainConfig, dimensions: Sequence[str], weights: dict[str, float]) -> Backbone:
    """Base model with its head, an adapter where one is trained, layers frozen where asked.

    Raises:
        UserError: the model cannot be loaded, or 4-bit loading is not installed.
    """
    backbone = load_backbone_for_rm(
        config.base_model,
        dimensions,
        weights=weights,
        max_length=config.max_length,
        rope_parameters=config.rope_parameters(),
        **weight_options(config, full_precision=["score"]),
    )
    if config.method in ("lora", "qlora"):
        backbone.model = _with_adapter(backbone.model, config)
    elif config.freeze_layers:
        freeze_lowest(backbone.model, config.freeze_layers)
    return backbone


def _with_adapter(model: nn.Module, config: TrainConfig) -> nn.Module:
    check_targets(model, config.lora)
    if config.method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # `train` does that
        keep_gradients_on_cpu(model)
    adapted = get_peft_model(model, lora_config(config.lora, "SEQ_CLS", modules_to_save=["score"]))
    weight = score_weight(adapted)
    weight.data = weight.data.float()  # the head learns in fp32, whatever the frozen model's type
    return adapted


def freeze_lowest(model: nn.Module, layers: int) -> None:
    """Keep the embeddings and the lowest `layers` as they are; no gradient is computed below the first trained one.

    Raises:
        UserError: the model has not more layers than that.
    """
    base: Any = unwrap(model).base_model
    count = len(base.layers)
    if layers >= count:
        raise UserError(f"--freeze-layers {layers}: the model has {count} layers", f"at most {count - 1}")
    for module in (base.get_input_embeddings(), *base.layers[:layers]):
        module.requires_grad_(False)


@torch.no_grad()
def start_head(
    backbone: Backbone,
    items: Sequence[EncodedExample],
    config: TrainConfig,
    budget: int,
    probe: ProbeResult | None,
) -> tuple[str, CentredSplit | None]:
    """Start the head at what the probe taught, at the labels' mean, or at random.

    Returns:
        What was done, in words, and how the head's features split along their mean; None where the head learns with
        the other weights.
    """
    weight, features, split = score_weight(backbone.model), None, None
    if optimiser_is_ours() or (probe is None and config.head_init == "mean"):
        features = _start_features(backbone.model, items, config, budget)
    if features is not None and optimiser_is_ours():
        split = CentredSplit.of(features)
    if probe is not None:
        if not weight.is_meta:  # FSDP hands the first process's weights to the others
            weight.copy_(probe.head_D_H.to(weight))
        return "head starts at the probe", split
    if features is None or config.head_init != "mean":
        return "head starts at random", split
    targets = np.concatenate([item.targets_N_D for item in items])
    known = not np.isnan(targets).all()
    mean = np.nanmean(targets, axis=0) if known else np.full(targets.shape[1], MIDDLE)
    weight.copy_(separate_start(features, torch.from_numpy(mean)).folded().to(weight))
    return "head starts at the mean", split


def _start_features(
    model: nn.Module, items: Sequence[EncodedExample], config: TrainConfig, budget: int
) -> torch.Tensor:
    """Features (N, H) of some answers at the score token, by the model as it is."""
    some: list[EncodedExample] = []
    for item in sorted(items, key=lambda item: item.shape.total):
        if sum(len(one.answers) for one in some) < START_ANSWERS:
            some.append(item)
    model.to("cuda" if config.device == "auto" and torch.cuda.is_available() else "cpu").eval()
    features = read_features(model, some, token_budget=budget, shared=config.shared_prefix == "on")[:, 0]
    model.train()
    return features


def head_start(
    config: TrainConfig,
    backbone: Backbone,
    objective: Objective,
    split: CentredSplit | None,
    from_probe: bool,
) -> HeadStart | None:
    """How the head's steps are taken; without a split (a checkpoint has it) any will do.

    Raises:
        UserError: a rate for the head where it learns with the other weights.
    """
    if not optimiser_is_ours():
        if config.head_learning_rate:
            raise UserError(
                "--head-learning-rate: under FSDP and DeepSpeed the head learns at --learning-rate",
                "leave it out, or train without sharding",
            )
        return None
    spread = float(objective.standardizer.std_D.mean())
    rate = config.head_learning_rate or (PROBE_STEP if from_probe else STEP) * spread
    return HeadStart(split or CentredSplit.none(score_weight(backbone.model).shape[1]), rate)


def probe_starts(config: TrainConfig) -> bool:
    """Whether this run fits a probe: to be the model, or to start from and to beat."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    return config.head_init in ("auto", "probe") and not is_deepspeed_zero3_enabled()
