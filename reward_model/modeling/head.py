"""The score head of a plain checkpoint: an output a dimension in points 0–10, without a bias.

``AutoModelForSequenceClassification`` has a head without bias, and a saved bias would be dropped by every program
that loads the model with code of its own. So the head works in points from the first step on; how it starts and how
its level is kept apart from the differences between answers is in ``level_head``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from judge_pipeline.common.errors import UserError
from reward_model.shared_prefix.interface import unwrap


def score_layer(model: nn.Module) -> nn.Module:
    """The head of a sequence classifier, PEFT's trainable copy of it included.

    Raises:
        UserError: the model has no ``score`` layer.
    """
    inner = unwrap(model)
    if not isinstance(getattr(inner, "score", None), nn.Module):
        raise UserError(
            f"{type(inner).__name__} has no 'score' head",
            hint="use a base model whose AutoModelForSequenceClassification ends in 'score' (decoder models do)",
        )
    return inner.score


def score_weight(model: nn.Module) -> nn.Parameter:
    """The weight ``(D, H)`` that is used and trained."""
    layer: Any = score_layer(model)
    if hasattr(layer, "modules_to_save"):
        layer = layer.modules_to_save[layer.active_adapters[0]]
    return layer.weight


def apply_head(model: nn.Module, hidden_N_H: torch.Tensor) -> torch.Tensor:
    """Points ``(N, D)`` fp32: bf16 cannot tell 8.00 from 8.03."""
    return nn.functional.linear(hidden_N_H.float(), score_weight(model).float())
