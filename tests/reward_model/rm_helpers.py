"""What tests of reward models share."""

from __future__ import annotations

import torch
from sklearn.linear_model import Ridge
from torch import nn

from reward_model.modeling.head import score_weight


def ridge(features_N_H: torch.Tensor, targets_N_D: torch.Tensor, strength: float) -> torch.Tensor:
    """Weights (D, H) fp64 without intercept; `strength` in mean squared lengths of a feature vector."""
    features, targets = features_N_H.double().numpy(), targets_N_D.double().numpy()
    alpha = strength * (features**2).sum(1).mean()
    return torch.from_numpy(Ridge(alpha, fit_intercept=False).fit(features, targets).coef_)


@torch.no_grad()
def initialise_head(
    model: nn.Module, features_N_H: torch.Tensor, targets_N_D: torch.Tensor, strength: float = 1e-3
) -> torch.Tensor:
    """Start the head at the ridge solution; missing targets (NaN) count as the mean of their dimension.; returns the error (D,), points."""
    targets = targets_N_D.double().cpu()
    mean = targets.nanmean(0)
    targets = torch.where(targets.isnan(), mean, targets)
    features = features_N_H.double().cpu()
    weight = ridge(features, targets, strength)
    parameter = score_weight(model)
    parameter.copy_(weight.to(parameter))
    outputs = features @ weight.T
    return (outputs - targets).pow(2).mean(0).sqrt().float()
