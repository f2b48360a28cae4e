"""What tests of reward models share."""

from __future__ import annotations

import torch
from torch import nn

from reward_model.modeling.head import score_weight
from reward_model.modeling.ridge import ridge


@torch.no_grad()
def initialise_head(
    model: nn.Module, features_N_H: torch.Tensor, targets_N_D: torch.Tensor, strength: float = 1e-3
) -> torch.Tensor:
    """Start the head at the ridge solution; missing targets (NaN) count as the mean of their dimension.; returns the error (D,), points."""
    targets = targets_N_D.double().cpu()
    mean = targets.nanmean(0)
    targets = torch.where(targets.isnan(), mean, targets)
    features = features_N_H.double().cpu()
    weight = ridge(features, targets, strength, relative=True)
    parameter = score_weight(model)
    parameter.copy_(weight.to(parameter))
    outputs = features @ weight.T
    return (outputs - targets).pow(2).mean(0).sqrt().float()
