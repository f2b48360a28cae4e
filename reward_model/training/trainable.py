"""The model of a training run: base model, adapter or frozen layers, and the head's start.

In: settings. Out: a `Backbone` whose model the Trainer can train.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import get_peft_model, prepare_model_for_kbit_training
from torch import nn

from judge_pipeline.common.errors import UserError
from reward_model.data.batches import EncodedExample
from reward_model.modeling.features import read_features
from reward_model.modeling.head import initialise_head, score_weight
from reward_model.modeling.model import Backbone, load_backbone_for_rm
from reward_model.shared_prefix.exactness import prepare_shared_prefix
from reward_model.shared_prefix.interface import unwrap
from reward_model.training.adapters import keep_gradients_on_cpu, lora_config, weight_options
from reward_model.training.train_config import TrainConfig

MIDDLE = 5.0
"""Where outputs start when nothing but preferences is known: the middle of the scale."""

MEAN_PROMPTS = 2
"""Prompts whose features set a head that starts at the mean: the constant part of the features needs no more."""


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
    if config.method != "full":
        backbone.model = _with_adapter(backbone.model, config)
    elif config.freeze_layers:
        freeze_lowest(backbone.model, config.freeze_layers)
    return backbone


def _with_adapter(model: nn.Module, config: TrainConfig) -> nn.Module:
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


def weights_are_sharded() -> bool:
    """Whether this process holds only a part of the weights (ZeRO-3, or FSDP loading on one process)."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return bool(is_deepspeed_zero3_enabled()) or fsdp


def share_prefix(model: nn.Module) -> None:
    """Switch to shared-prefix attention, proving it exact where the whole model is at hand."""
    if weights_are_sharded():
        from reward_model.shared_prefix.exactness import check_supported
        from reward_model.shared_prefix.interface import enable_shared_prefix

        check_supported(model)
        enable_shared_prefix(model)
    else:
        prepare_shared_prefix(model)


def start_head(backbone: Backbone, items: Sequence[EncodedExample], config: TrainConfig, budget: int) -> str:
    """Start the head at the labels' mean or at a probe of them; says in words what was done."""
    how = config.head_init
    if how == "auto":
        how = "none" if weights_are_sharded() else "mean"
    if how == "none":
        return "head starts at random"
    targets = np.concatenate([item.targets_N_D for item in items])
    has_targets = not np.isnan(targets).all()
    if how == "mean" or not has_targets:
        mean = np.nanmean(targets, axis=0) if has_targets else np.full(targets.shape[1], MIDDLE)
        items = sorted(items, key=lambda item: item.shape.total)[:MEAN_PROMPTS]
        targets = np.tile(mean, (sum(len(item.answers) for item in items), 1))
    model = backbone.model
    model.to("cuda" if config.device == "auto" and torch.cuda.is_available() else "cpu").eval()
    features = read_features(model, items, token_budget=budget, shared=config.shared_prefix == "on")[:, 0]
    model.train()
    error = initialise_head(model, features, torch.from_numpy(np.asarray(targets, np.float32)))
    return f"head starts at the {how} (off by {float(error.mean()):.2f} points)"
