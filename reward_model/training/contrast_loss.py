"""The loss of answers that were changed on purpose: one worse in what was damaged, both the same in the rest.

In: standardised predictions, and which answers stand against each other. Out: as of every loss in `losses`, a sum
divided by the terms of the whole optimiser step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reward_model.training.losses import Metrics

EQUAL_DELTA = 0.5
"""Spreads from which on a difference that should be none pulls no harder: less than half as hard as a damage pushes,
for "the same" is true only nearly."""


def count_contrasts(gaps_C_D: Tensor) -> Tensor:
    """How many terms there are: gaps that are known, those of zero among them."""
    return (~gaps_C_D.isnan()).sum().float()


def contrast_loss(
    predictions_A_D: Tensor,
    better_C: Tensor,
    worse_C: Tensor,
    gaps_C_D: Tensor,
    *,
    normaliser: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """−log σ(better − worse) in the damaged dimension, Huber of the difference in those that were kept.

    `gaps_C_D`: above 0 where the second is worse (how much changes no weight), 0 where both are as good, NaN where
    nothing is known. `better_C` and `worse_C` index into A. Without any term the loss is 0 and still connected to the
    predictions.
    """
    margins = predictions_A_D[better_C] - predictions_A_D[worse_C]
    gaps = gaps_C_D.to(margins)
    total = count_contrasts(gaps) if normaliser is None else normaliser
    apart = F.softplus(-margins) * (gaps > 0)
    level = F.huber_loss(margins, torch.zeros_like(margins), reduction="none", delta=EQUAL_DELTA)
    terms = apart + level * (gaps == 0)
    divisor = torch.as_tensor(total, dtype=terms.dtype, device=terms.device).clamp(min=1e-12)
    loss = (terms.sum() + 0.0 * predictions_A_D.sum()) / divisor
    return loss, {"contrast": loss.detach()}
