"""Optimiser steps of the score head in centred coordinates, with a learning rate in points.

The features that the bias-free head reads are some 90% the same for all answers, so its gradient is mostly about that
part, and a step that is right for it is far too small for what tells answers apart. Here features are split along the
direction u of their mean: one coordinate is u·f in units of the mean's length (its weight is an output's level in
points), the others are f⊥ in units of its mean absolute sum. Steps are taken there; the head's weight stays the plain
one at every moment, so checkpoints, adapters and models hold nothing of this. The split itself lies in the optimiser's
state, from where a resumed run has it.

Because a coordinate of weight moves by at most the learning rate in a step of Adam, an output moves by about two
learning rates at most: the rate is in points a step.

The backbone gets no gradient along u: all outputs share it, and the backbone would learn to move them as one.

Shape suffixes: N answers, H hidden size, D outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reward_model.modeling.head import score_layer, score_weight

ALMOST_CONSTANT = 1e-3
"""Smallest unit of f⊥, in lengths of the mean: features that do not differ must not be blown up."""


@dataclass(frozen=True)
class CentredSplit:
    """x = S Q f, with Q the reflection that turns u into an axis, and S the units of the coordinates."""

    direction_H: Tensor
    """u, of length 1."""
    mirror_H: Tensor
    """v of Q = 1 - 2 v vᵀ, of length 1."""
    scale_H: Tensor
    """Diagonal of S."""

    @classmethod
    def of(cls, features_N_H: Tensor) -> CentredSplit:
        """From features of some answers, final hidden states at the score tokens."""
        features = features_N_H.double()
        mean = features.mean(0)
        length = mean.norm().clamp_min(1e-12)
        direction = mean / length
        axis = int(direction.abs().argmax())  # near the basis there is: features have a few large coordinates
        mirror, sign = direction.clone(), 1.0 if direction[axis] >= 0 else -1.0
        mirror[axis] += sign  # Q u = -sign · axis; the other sign would subtract nearly equal numbers
        mirror = mirror / mirror.norm()
        across = features - (features @ direction)[:, None] * direction
        across = across - 2 * (across @ mirror)[:, None] * mirror
        unit = torch.maximum(across.abs().sum(1).mean(), ALMOST_CONSTANT * length)
        scale = torch.full_like(mean, float(1 / unit))
        scale[axis] = -sign / length
        return cls(direction.float(), mirror.float(), scale.float())

    @classmethod
    def none(cls, size: int) -> CentredSplit:
        """No split: coordinates are the features, and gradients pass as they are."""
        return cls(torch.zeros(size), torch.zeros(size), torch.ones(size))

    def _reflect(self, rows_N_H: Tensor) -> Tensor:
        mirror = self.mirror_H.to(rows_N_H)
        return rows_N_H - 2 * (rows_N_H @ mirror)[:, None] * mirror

    def coordinates(self, features_N_H: Tensor) -> Tensor:
        """x (N, H) of features."""
        return self._reflect(features_N_H) * self.scale_H.to(features_N_H)

    gradient = coordinates
    """Gradient by centred weights (D, H), of that by the plain weight: both transform alike, as W = w S Q."""

    def fold(self, weight_D_H: Tensor) -> Tensor:
        """The plain weight (D, H) of weights on coordinates: W f = w x for every f."""
        return self._reflect(weight_D_H * self.scale_H.to(weight_D_H))

    def unfold(self, weight_D_H: Tensor) -> Tensor:
        """Weights on coordinates (D, H) of the plain weight."""
        return self._reflect(weight_D_H) / self.scale_H.to(weight_D_H)


class HeadSteps:
    """Gives a model's head a group of its own in an optimiser, whose steps are taken in centred coordinates."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, split: CentredSplit, rate: float
    ) -> None:
        """Registers hooks on optimiser and head.

        Args:
            model: whose `score` weight the optimiser has already; not sharded.
            optimizer: of Adam's kind.
            split: a resumed run gives any, and loads the optimiser's state.
            rate: learning rate of the group, points a step.
        """
        self._optimizer, self._weight = optimizer, score_weight(model)
        self._before = torch.empty(0)
        options: dict[str, Any] = {}
        for group in optimizer.param_groups:
            if any(weight is self._weight for weight in group["params"]):
                group["params"] = [weight for weight in group["params"] if weight is not self._weight]
                options = {name: value for name, value in group.items() if name != "params"}
        where = self._weight.device
        tensors = {name: getattr(split, name).to(where) for name in ("direction_H", "mirror_H", "scale_H")}
        optimizer.add_param_group({**options, "params": [self._weight], "lr": rate, **tensors})
        optimizer.register_step_pre_hook(self._enter)
        optimizer.register_step_post_hook(self._leave)
        score_layer(model).register_forward_pre_hook(self._listen)

    @property
    def split(self) -> CentredSplit:
        """As the optimiser's state has it."""
        group = self._optimizer.param_groups[-1]
        return CentredSplit(group["direction_H"], group["mirror_H"], group["scale_H"])

    @torch.no_grad()
    def _enter(self, *unused: Any) -> None:
        """The optimiser finds weights of 0 and the gradient by centred weights, and leaves its step in their place."""
        if self._weight.grad is not None:
            self._before = self._weight.clone()
            self._weight.zero_()
            self._weight.grad = self.split.gradient(self._weight.grad)

    @torch.no_grad()
    def _leave(self, *unused: Any) -> None:
        if self._weight.grad is not None:
            group = self._optimizer.param_groups[-1]
            kept = self._before * (1 - group["lr"] * group["weight_decay"])
            self._weight.copy_(kept + self.split.fold(self._weight))

    def _listen(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled() and args[0].requires_grad:
            args[0].register_hook(self._across)

    def _across(self, gradient: Tensor) -> Tensor:
        direction = self.split.direction_H.to(gradient)
        return gradient - (gradient @ direction)[..., None] * direction
