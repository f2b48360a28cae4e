"""The score head: four outputs in points, without a bias, started at a linear probe.

``AutoModelForSequenceClassification`` has a head without bias, and a saved bias would be dropped by every program
that loads the model with code of its own. So nothing is folded in after training: the head works in points 0–10
from the first step on, losses compare *standardised* outputs, (points - mean) / standard deviation, and the head starts at
the ridge solution that maps the base model's features to the labels (or to their mean). The features of the last
token have a large constant part, so the mean is reached without a bias; ``initialise_head`` returns how closely.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from judge_pipeline.common.errors import UserError
from reward_model.modeling.ridge import ridge
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


@torch.no_grad()
def initialise_head(
    model: nn.Module, features_N_H: torch.Tensor, targets_N_D: torch.Tensor, strength: float = 1e-3
) -> torch.Tensor:
    """Start the head at the ridge solution; missing targets (NaN) count as the mean of their dimension.

    Args:
        model: a sequence classifier.
        features_N_H: final hidden states at the score tokens, from the untrained model.
        targets_N_D: points 0–10; give the means, repeated, to start at them.
        strength: of the ridge, relative to the mean squared length of a feature.

    Returns:
        Root mean squared difference ``(D,)`` between outputs and targets, in points.
    """
    targets = targets_N_D.double().cpu()
    mean = targets.nanmean(0)
    targets = torch.where(targets.isnan(), mean, targets)
    features = features_N_H.double().cpu()
    weight = ridge(features, targets, strength, relative=True)
    parameter = score_weight(model)
    parameter.copy_(weight.to(parameter))
    outputs = features @ weight.T
    return (outputs - targets).pow(2).mean(0).sqrt().float()
