"""Weights without a bias that act as if they had one, for the head of a plain checkpoint.

Features of the last token are nearly constant: their mean is some ten times longer than what tells answers apart. So
a feature is split along the direction u of the mean: f = (u·f) u + f⊥. The part along u carries one level per output,
the part across it, which has mean zero, is fitted to what is left. Both are linear in f: `folded` is the plain head,
exactly. Levels and rows are conditioned apart, which a ridge on f itself would not do.

Shape suffixes: N answers, H hidden size, D outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from reward_model.modeling.ridge import Choice, Rows, choose_penalties, fit_rows

Tensor = torch.Tensor
START_SPREAD = 0.25
"""Spread in points of each output where a head starts at the mean labels: little, and for each output its own."""


@dataclass(frozen=True)
class LevelHead:
    """Outputs = level · (u·f) / |mean| + weight · f⊥."""

    mean_H: Tensor
    level_D: Tensor
    weight_D_H: Tensor

    def split(self, features_N_H: Tensor) -> tuple[Tensor, Tensor]:
        """(u·f / |mean| (N,), f⊥ (N, H)); over the features of the fit the first has mean 1 and the second 0."""
        features = features_N_H.double()
        direction = self.mean_H / self.mean_H.norm()
        along = features @ direction
        return along / self.mean_H.norm(), features - along[:, None] * direction

    def __call__(self, features_N_H: Tensor) -> Tensor:
        """Points (N, D) fp64, level and weights apart."""
        along, across = self.split(features_N_H)
        return along[:, None] * self.level_D + across @ self.weight_D_H.T

    def folded(self) -> Tensor:
        """The plain head's weight (D, H) fp64, which needs no bias."""
        direction = self.mean_H / self.mean_H.norm()
        across = self.weight_D_H - (self.weight_D_H @ direction)[:, None] * direction
        return across + (self.level_D / self.mean_H.norm())[:, None] * direction


def _at_level(features_N_H: Tensor, level_D: Tensor) -> LevelHead:
    mean = features_N_H.double().mean(0)
    return LevelHead(mean, level_D.double(), mean.new_zeros(len(level_D), len(mean)))


def teach_head(features_N_H: Tensor, outputs: Rows, penalties_D: Sequence[float]) -> LevelHead:
    """The head whose outputs come closest to those of a better readout.

    Args:
        features_N_H: final hidden states at the score tokens.
        outputs: the readout's points on the same answers, none missing, one row an answer.
        penalties_D: see `choose_teaching`.
    """
    head = _at_level(features_N_H, outputs.targets_R_D.mean(0))
    rows, across = _centred(features_N_H, outputs, head)
    probe = fit_rows(rows, across, penalties_D)
    # Both sides have mean zero, so the bias is zero but for rounding.
    return replace(head, weight_D_H=probe.weight_D_H)


def choose_teaching(features_N_H: Tensor, outputs: Rows) -> Choice:
    """Penalty of each output by folds over documents; `Choice.explained` says how much of the readout is passed on."""
    head = _at_level(features_N_H, outputs.targets_R_D.mean(0))
    return choose_penalties(*_centred(features_N_H, outputs, head))


def _centred(features_N_H: Tensor, outputs: Rows, head: LevelHead) -> tuple[Rows, Tensor]:
    """What is left to fit across the mean: the outputs without their levels, and f⊥."""
    along, across = head.split(features_N_H)
    return replace(outputs, targets_R_D=outputs.targets_R_D - along[:, None] * head.level_D), across


def separate_start(features_N_H: Tensor, mean_D: Tensor, spread: float = START_SPREAD) -> LevelHead:
    """A head at the mean labels whose outputs do not move together, where no label is to be learnt from yet.

    Rows across the mean are principal directions of f⊥, so over these features the outputs are uncorrelated but for
    the part along the mean, which they share; the rows are made larger than that part.

    Args:
        features_N_H: of some answers; with fewer than D + 1 the rows that are left over point anywhere.
        mean_D: where the outputs start, in points.
        spread: of each output over the answers, in points.
    """
    head = _at_level(features_N_H, mean_D)
    along, across = head.split(features_N_H)
    count = len(mean_D)
    _, length, directions = torch.linalg.svd(across, full_matrices=False)
    there = length > 1e-9 * head.mean_H.norm()
    rows = directions[there][:count]
    if len(rows) < count:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(count, across.shape[1], generator=generator, dtype=torch.float64)
        rows = torch.linalg.qr(torch.cat([rows, drawn.to(rows)]).T)[0].T[:count]
    spreads = (across @ rows.T).std(0, correction=0).clamp_min(1e-9 * float(head.mean_H.norm()))
    shared = along.std(correction=0) * mean_D.abs().max() if len(along) > 1 else along.new_zeros(())
    size = max(spread, 2 * float(shared))
    # A direction that hardly varies here must not be blown up: it may vary on other answers.
    spreads = spreads.clamp_min(0.1 * float(spreads.max()))
    return replace(head, weight_D_H=rows * (size / spreads)[:, None])
