"""Ridge regression in closed form, in fp64: for the start of the score head, and for linear probes on frozen features.

One linear system serves all targets at once, and is as large as the smaller of answers and features. The weights are
those of scikit-learn's ``Ridge`` (tested), which solves on the CPU and knows no missing targets.

Shape suffixes: N answers, H features, D targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

Tensor = torch.Tensor


def ridge(features_N_H: Tensor, targets_N_D: Tensor, alpha: float, *, relative: bool = False) -> Tensor:
    """Weights ``(D, H)`` fp64 of min ‖F Wᵀ - Y‖² + alpha ‖W‖², without intercept.

    Args:
        features_N_H: F; not centred, not scaled.
        targets_N_D: Y, none missing.
        alpha: strength, above 0.
        relative: whether `alpha` counts in mean squared lengths of a feature vector.
    """
    features, targets = features_N_H.double(), targets_N_D.double()
    few = features.shape[0] <= features.shape[1]
    gram = features @ features.T if few else features.T @ features
    if relative:
        alpha *= float(gram.diagonal().sum() / features.shape[0])
    gram.diagonal().add_(alpha)
    if few:
        return (features.T @ torch.linalg.solve(gram, targets)).T
    return torch.linalg.solve(gram, features.T @ targets).T


@dataclass(frozen=True)
class LinearProbe:
    """Points as a linear function of features."""

    weight_D_H: Tensor
    bias_D: Tensor

    def __call__(self, features_N_H: Tensor) -> Tensor:
        """Points ``(N, D)`` fp64."""
        return features_N_H.double() @ self.weight_D_H.T + self.bias_D


def fit_probe(features_N_H: Tensor, targets_N_D: Tensor, alpha: float) -> LinearProbe:
    """Ridge on standardised features with an intercept; an answer counts for the targets it has (others are NaN).

    Raises:
        ValueError: a target is missing everywhere.
    """
    features, targets = features_N_H.double(), targets_N_D.double()
    known_N_D = ~targets.isnan()
    if not known_N_D.any(0).all():
        raise ValueError("a target has no value at all")
    weight = features.new_empty(targets.shape[1], features.shape[1])
    bias = features.new_empty(targets.shape[1])
    patterns, pattern_D = known_N_D.unique(dim=1, return_inverse=True)
    for number, rows in enumerate(patterns.T):  # targets that are known for the same answers share one system
        columns = pattern_D == number
        own, wanted = features[rows], targets[rows][:, columns]
        centre, scale = own.mean(0), own.std(0, correction=0)
        scale = torch.where(scale == 0, 1.0, scale)  # a constant feature explains nothing
        middle = wanted.mean(0)
        weight[columns] = ridge((own - centre) / scale, wanted - middle, alpha) / scale
        bias[columns] = middle - weight[columns] @ centre
    return LinearProbe(weight, bias)
